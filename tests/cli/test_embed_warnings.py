"""What is wrong with slides' files, in the summary of ``mil embed`` and in the bags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tifffile
import timm
import torch
from safetensors.torch import save_file

from features.bags.h5 import read_meta
from features.encoders.runtime_cache import take_write_error
from tests.cli.running import mil_ok
from tests.cli.test_filter import tissue
from tests.cli.test_scenes import backbone

N_SLIDES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six slides with an absurd pixel size, and one without fault."""
    base = tmp_path_factory.mktemp("warnings")
    (base / "slides").mkdir()
    torch.manual_seed(0)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    save_file(state, base / "weights.safetensors")
    for number in range(N_SLIDES + 1):
        size = 0.5 if number == N_SLIDES else 900.0
        tifffile.imwrite(
            base / "slides" / f"s{number}.ome.tif", tissue(number, 256), photometric="rgb",
            ome=True, tile=(128, 128),
            metadata={"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size},
        )  # fmt: skip
    return base


def test_faults_of_files_and_of_the_cache_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIL_CACHE", str(folder / "weights.safetensors"))  # a file is no folder
    take_write_error()  # of an earlier test of this process
    command = ("embed", folder / "slides", "--bags", folder / "bags", *backbone(folder))
    text = mil_ok(*command, "--tissue", "all").output
    assert text.count("weights.safetensors cannot be used as a folder (Not a directory)") == 1
    assert "something is wrong with the files of 6 slides" in text
    for number in range(5):
        assert f"  s{number}: 900 x 900 µm/px in PhysicalSizeX" in text
    assert "s5: 900" not in text
    assert "and 1 more; see" in text
    again = mil_ok(*command, "--tissue", "all", "--json")
    warnings = json.loads(again.stdout)["warnings"]
    assert sorted(warnings) == [f"s{number}" for number in range(N_SLIDES)]
    assert "is not used" in warnings["s5"][0]
    assert "is not used" in read_meta(folder / "bags" / "s0.h5").warnings
    assert read_meta(folder / "bags" / f"s{N_SLIDES}.h5").warnings == ""
