"""Colours that an export has spoilt, from `mil inspect` to the bag."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from safetensors.torch import save_file

from features.bags.h5 import find_bags, read_meta
from tests.cli.running import mil_ok
from tests.features.tiling.test_colours import HE


def test_spoilt_colours_are_named_by_inspect_in_the_summary_and_in_the_bag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    pixels = {"right": HE, "dark": HE // 4, "exchanged": HE[..., ::-1]}
    for name, part in pixels.items():
        whole = np.repeat(np.repeat(part, 8, 0), 8, 1)
        tifffile.imwrite(
            f"{name}.tif", whole, photometric="rgb", tile=(256, 256), metadata=None,
            description="MPP = 1.0",
        )  # fmt: skip
    messages = {"dark": "read too dark", "exchanged": "red and blue may be exchanged"}
    inspected = json.loads(mil_ok("inspect", ".", "--json").stdout)["slides"]
    found = {each["slide_id"]: " ".join(each["warnings"]) for each in inspected}
    embedded = mil_ok(
        "embed", ".", "--bags", "bags", "--backbone", "test_vit", "--weights",
        "weights.safetensors", "--execution", "eager", "--mpp", 2.0, "--tile-px", 64, "--json",
    )  # fmt: skip
    summary = json.loads(embedded.stdout)["warnings"]
    in_bags = {name: read_meta(path).warnings for name, path in find_bags(Path("bags")).items()}
    for name in pixels:
        for text in (found[name], " ".join(summary.get(name, ())), in_bags[name]):
            assert messages.get(name, "") in text
            assert bool(text) == (name in messages), text
