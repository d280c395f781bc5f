"""In what slides differ from all training slides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features.bags.bag import as_json
from mil.typicality.provenance import Provenance, read_provenance, write_provenance
from tests.fakes import make_bag, make_series

META = replace(
    make_bag("a").meta, mpp_source="assumed", background_rgb=(240, 240, 240),
    software=as_json(timm="1.0", torch="2.9"), tissue_rgb=(170, 70, 150), reader="openslide",
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, []),
        ({"background_rgb": (228, 250, 235)}, []),
        ({"background_rgb": (200, 210, 240)}, ["glass"]),
        ({"mpp_source": "file", "mpp_x": 0.5, "mpp_y": 0.5}, ["resolution"]),
        ({"mpp_x": 0.5, "mpp_y": 0.5}, ["resolution"]),
        ({"mpp_x": 0.26, "mpp_y": 0.25}, []),
        ({"mpp_x": 0.0, "mpp_y": 0.0}, []),
        ({"mpp_x": float("nan")}, []),
        ({"software": as_json(timm="1.1", torch="2.9")}, ["software"]),
        ({"software": as_json(other="1.1")}, []),
        ({"software": "no JSON"}, []),
        ({"software": "[1]"}, []),
        ({"reader": "tiff"}, ["reader"]),
        ({"reader": ""}, []),
        ({"tissue_rgb": (205, 110, 185)}, []),  # a paler stain
        ({"tissue_rgb": (100, 60, 130)}, []),  # with more haematoxylin
        ({"tissue_rgb": (150, 100, 60)}, ["stain"]),  # brown
        ({"tissue_rgb": (70, 90, 190)}, ["stain"]),  # blue
        ({"tissue_rgb": (239, 240, 238)}, []),  # hardly any
        ({"tissue_rgb": (-1, -1, -1)}, []),
    ],
)
def test_a_slide_is_compared_with_all_training_slides(
    change: dict[str, Any], kinds: list[str], tmp_path: Path
) -> None:
    trained = Provenance.of([META, replace(META, background_rgb=(250, 230, 245))])
    write_provenance(tmp_path, trained)
    again = read_provenance(tmp_path)
    assert again == trained
    assert [note.kind for note in again.compare(replace(META, **change))] == kinds


def test_what_occurs_in_training_is_no_difference() -> None:
    other = replace(META, mpp_source="file", mpp_x=0.5, mpp_y=0.5, software=as_json(timm="1.1"))
    trained = Provenance.of([META, other])
    assert trained.compare(other) == trained.compare(META) == ()
    (note,) = Provenance.of([other]).compare(META)[:1]
    assert note.text == "resolution assumed, and stated for all training slides"


def test_series_have_neither_glass_nor_resolution() -> None:
    meta = replace(make_series("s").meta, software=as_json(pillow="1"))
    assert Provenance.of([meta]).compare(replace(meta, background_rgb=(0, 0, 0))) == ()


def test_bags_of_earlier_versions_state_neither_stain_nor_reader(tmp_path: Path) -> None:
    earlier = Provenance.of([replace(META, tissue_rgb=(-1, -1, -1), reader="")])
    assert (earlier.stains, earlier.readers) == ((), ())
    assert earlier.compare(META) == ()
    write_provenance(tmp_path, earlier)
    file = tmp_path / "provenance.json"
    stored = json.loads(file.read_text())
    del stored["stains"], stored["readers"]
    file.write_text(json.dumps(stored))
    assert read_provenance(tmp_path) == earlier


def test_earlier_runs_have_none(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) is None
