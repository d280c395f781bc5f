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


def test_real_slides_of_one_stain_are_alike_and_of_another_are_not(mil_data: Path) -> None:
    from features.embedding.config import EmbedConfig
    from features.tiling.slide_tiles import open_slide_tiles

    config, metas = EmbedConfig(), {}
    for name in ("cmu-1-small-region.svs", "cmu-1-small-region.pyramid.tiff", "kidney-48-5.tif"):
        given = 0.25 if name.startswith("kidney") else None
        with open_slide_tiles(
            mil_data / "slides" / name, tiles=config.tiles, tissue=config.tissue, given_mpp=given
        ) as opened:
            tissue = opened.tissue
        assert tissue.tissue_rgb is not None
        metas[name] = replace(
            META, background_rgb=tissue.background_rgb, tissue_rgb=tissue.tissue_rgb
        )
    skin, copy, kidney = metas.values()
    trained = Provenance.of([skin])
    assert trained.compare(copy) == ()
    assert [note.kind for note in trained.compare(kidney)] == ["stain"]
