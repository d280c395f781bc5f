"""``--tissue all``, and the warnings of slides that are tissue nearly everywhere or nowhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.bags.bag import UNKNOWN_SHARE
from features.bags.h5 import find_bags, read_bag
from features.embedding.config import config_from_fingerprint
from features.errors import BagError
from tests.cli.running import mil_ok

EMBED = ("--slide-mpp", 0.5, "--device", "cpu", "--execution", "eager", "--rules", "none")


def write_picture(folder: Path, kind: str) -> Path:
    """Write 1,000 px at 0.5 µm/px: bare glass, tissue everywhere, or both halves."""
    rng = np.random.default_rng(1)
    pixels = np.full((1000, 1000, 3), 240.0)
    tissue = np.kron(rng.uniform(0.5, 0.9, (63, 63)), np.ones((16, 16)))[:1000, :1000, None]
    part = {"glass": slice(0, 0), "tissue": slice(None), "half": slice(500)}[kind]
    pixels[part] *= (tissue * (1.0, 0.7, 0.9))[part]
    pixels += rng.normal(0, 1.5, pixels.shape)  # of the camera: no two tiles of glass are equal
    path = folder / f"{kind}.png"
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("command", ["embed", "preview"])
def test_slides_nearly_all_or_nearly_without_tissue_are_named(tmp_path: Path, command: str) -> None:
    slides = [write_picture(tmp_path, kind) for kind in ("glass", "tissue", "half")]
    options = ("--bags", tmp_path / "bags", *EMBED) if command == "embed" else (
        "--out", tmp_path / "out", "--slide-mpp", 0.5, "--rules", "none")  # fmt: skip
    text = mil_ok(command, *slides, *options).stderr
    assert "tissue nearly everywhere on 1 slide: tissue." in " ".join(text.split())
    assert "hardly any tissue on 1 slide: glass." in " ".join(text.split())
    assert ("Look at them with 'mil preview'" in " ".join(text.split())) == (command == "embed")
    again = json.loads(mil_ok(command, *slides, *options, "--json").stdout)
    assert again["tissue_nearly_all"] == ["tissue"]
    assert again["tissue_nearly_none"] == ["glass"]


def test_all_takes_every_tile_and_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    glass = write_picture(tmp_path, "glass")
    run = mil_ok("embed", glass, "--bags", tmp_path / "bags", "--tissue", "all", *EMBED)
    assert "hardly any tissue" not in run.stderr
    bag = read_bag(find_bags(tmp_path / "bags")["glass"])
    assert len(bag.features) == 16  # of 4 x 4 tiles
    assert bag.meta.tissue_share == UNKNOWN_SHARE
    assert config_from_fingerprint(bag.meta.fingerprint).tissue.method == "all"
    preview = ("preview", glass, "--out", tmp_path / "out", "--slide-mpp", 0.5)
    summary = json.loads(mil_ok(*preview, "--tissue", "all", "--json").stdout)
    assert summary["n_tiles_found"] == 16
    assert summary["tissue_nearly_all"] == []
    estimate = mil_ok(
        "embed", glass, "--bags", tmp_path / "no", "--tissue", "all", "--dry-run", "--json", *EMBED
    )
    assert json.loads(estimate.stdout)["n_tiles"] == 16


def test_bags_of_the_earlier_mask_are_not_added_to(tmp_path: Path) -> None:
    half = write_picture(tmp_path, "half")
    mil_ok("embed", half, "--bags", tmp_path / "bags", *EMBED)
    bag = read_bag(find_bags(tmp_path / "bags")["half"])
    assert 0.4 < bag.meta.tissue_share < 0.6
    tissue = json.loads(bag.meta.fingerprint.tissue)
    del tissue["mask_version"]
    earlier = replace(bag.meta.fingerprint, tissue=json.dumps(tissue))
    with pytest.raises(BagError, match="found tissue in another way"):
        config_from_fingerprint(earlier)
