"""Slides that come from elsewhere than all training slides are named and counted."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.bags.h5 import write_bag
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.cli.running import mil_ok
from tests.fakes import make_bag

SLIDE: dict[str, Any] = {
    "mpp_source": "assumed", "background_rgb": (240, 240, 240), "tissue_rgb": (170, 70, 150),
    "reader": "openslide",
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "same": {},
    "stated": {"mpp_source": "file"},
    "glass": {"background_rgb": (240, 200, 240)},
    "stain": {"tissue_rgb": (150, 100, 60)},
    "reader": {"reader": "tiff"},
    "both": {"tissue_rgb": (150, 100, 60), "reader": "tiff"},
}


def write(folder: Path, name: str, **changes: Any) -> None:
    bag = make_bag(name, n_tiles=5)
    meta = replace(bag.meta, **SLIDE | changes)
    write_bag(folder / f"{name}.h5", replace(bag, meta=meta))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    (folder / "bags").mkdir()
    rows = ["image_id,patient_id,label"]
    for number in range(12):
        write(folder / "bags", f"s{number}")
        rows.append(f"s{number},p{number},{'ab'[number % 2]}")
    (folder / "train.csv").write_text("\n".join(rows))
    for name, changes in CHANGES.items():
        write(folder / "bags", name, **changes)
    new = [f"{name},{name}" for name in CHANGES]
    (folder / "new.csv").write_text("\n".join(["image_id,patient_id", *new]))
    train_run(
        folder / "train.csv", folder / "bags", folder / "run", n_folds=2, report=False,
        config=TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=4),
    )  # fmt: skip
    return folder


def test_the_patient_carries_a_note_and_the_summary_counts_them(
    world: Path, tmp_path: Path
) -> None:
    where = ("--run", world / "run", "--bags", world / "bags", "--patients", world / "new.csv")
    result = mil_ok("infer", *where, "--out", tmp_path / "out.csv")
    assert (
        "slides of 5 patients differ from all training slides (resolution 1, glass 1, stain 2, "
        "reader 2); see the column 'provenance' of the details"
    ) in " ".join(result.output.split())
    with (tmp_path / "out.details.csv").open() as file:
        notes = {row["patient_id"]: row["provenance"] for row in csv.DictReader(file)}
    assert notes["same"] == ""
    assert notes["stated"] == (
        "stated: resolution stated (0.25 µm/px), and assumed for all training slides"
    )
    assert notes["glass"].startswith("glass: glass (240, 200, 240), 40 from any training slide")
    assert "degrees of colour" in notes["stain"]
    stain, reader = notes["both"].split(" | ")
    assert stain.startswith("both: stain ")
    assert reader.startswith("both: read by ")
    assert notes["both"].endswith("read by tiff, and in training by openslide")
    told = mil_ok("infer", *where, "--out", tmp_path / "out.csv", "--json").stdout
    assert json.loads(told)["differences"] == {
        "resolution": 1, "glass": 1, "stain": 2, "reader": 2,
    }  # fmt: skip
    told = mil_ok("explain", *where, "--patient", "both", "--out", tmp_path / "explained").output
    assert "differ from all training slides, patients by kind: reader 1, stain 1" in told
    page = (tmp_path / "explained" / "both" / "index.html").read_text()
    assert "Slide both differs from all training slides: stain" in page


def test_the_stored_colours_are_those_of_the_slide(tmp_path: Path) -> None:
    from features.tiling.tissue import TissueSettings, segment_tissue

    overview = np.full((80, 80, 3), 240, np.uint8)
    overview[20:60, 20:60] = (170, 70, 150)
    mask = segment_tissue(overview, downsample=32, mpp=0.25, settings=TissueSettings())
    assert np.abs(np.subtract(mask.tissue_rgb, (170, 70, 150))).max() <= 2
    whole = TissueSettings(method="all")
    assert segment_tissue(overview, downsample=32, mpp=0.25, settings=whole).tissue_rgb is None
