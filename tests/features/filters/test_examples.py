"""Tables of example tiles: read, checked, cut and embedded, and put to use while embedding."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from features.bags.h5 import read_bag
from features.embedding.config import EmbedConfig, config_from_fingerprint
from features.embedding.pipeline import embed_slides
from features.embedding.results import SlideResult
from features.encoders.base import AsyncResult, ConcatResult
from features.encoders.preprocessing import Preprocessing
from features.errors import BagError, FilterError, SlideError, TableError
from features.filters.classifier import (
    EmbeddingSpec,
    ExampleSlide,
    LabelledTiles,
    TileFilter,
    load_filter_copy,
)
from features.filters.examples import embed_examples, read_example_table
from features.filters.training import fit_filter
from features.slides.base import RgbArray
from features.slides.file_info import content_hash
from features.tiling.grid import TileSettings
from features.tiling.tissue import TissueSettings

SETTINGS = EmbedConfig(
    tiles=TileSettings(tile_px=64, min_tissue=0.05, rules=()), tissue=TissueSettings(),
    batch_tiles=8, n_workers=2,
)  # fmt: skip


class ColourEncoder:
    """An encoder whose embedding is the mean colour of a tile."""

    name = "colour"
    weights_sha256 = "c" * 64
    preprocessing = Preprocessing(
        input_px=64, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    dim = 3
    device = torch.device("cpu")
    execution = "eager float32 batch 8"

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        return ConcatResult([AsyncResult(torch.from_numpy(self.embed(tiles)), None)], axis=0)

    def embed(self, tiles: RgbArray) -> np.ndarray:
        return (tiles.mean(axis=(1, 2)) / 255).astype(np.float32)


def picture(path: Path, colour: tuple[int, int, int], side_px: int = 64) -> Path:
    noisy = np.random.default_rng(len(path.name)).normal(colour, 6, (side_px, side_px, 3))
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path)
    return path


def table_of(folder: Path, *rows: str, header: str = "path,label,slide_id") -> Path:
    (folder / "examples.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "examples.csv"


def embed(path: Path) -> LabelledTiles:
    return embed_examples(
        read_example_table(path), ColourEncoder(), tile_px=64, target_mpp=0.5, given_mpp={}
    )


def test_images_are_cut_into_whole_tiles_with_one_answer(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (200, 60, 90), side_px=150)
    picture(tmp_path / "b.png", (40, 160, 90))
    examples = embed(table_of(tmp_path, "a.png,keep,s1.svs", "b.png,Drop,s2"))
    assert examples.drop.tolist() == [False] * 4 + [True]
    assert examples.slide_index.tolist() == [0] * 4 + [1]
    assert examples.slides == (ExampleSlide(slide_id="s1"), ExampleSlide(slide_id="s2"))
    np.testing.assert_allclose(examples.features[-1] * 255, (40, 160, 90), atol=2)
    assert examples.features.dtype == np.float16


def test_ids_of_examples_are_those_of_cohorts(tmp_path: Path) -> None:
    """Decomposed as macOS writes them: the same patient must not be on both sides of a fold."""
    picture(tmp_path / "a.png", (200, 60, 90))
    header = "path,label,slide_id,patient_id"
    rows = read_example_table(
        table_of(tmp_path, "a.png,keep,u\u0308.svs.tif,A\u0308", header=header)
    )
    assert [(row.slide_id, row.patient_id) for row in rows] == [("\u00fc", "\u00c4")]


def test_tiles_of_slides_are_cut_as_they_are_embedded_later(tmp_path: Path) -> None:
    pixels = np.full((300, 300, 3), 255, np.uint8)
    pixels[128:256, :128] = (200, 60, 90)  # one tile at 0.5 µm/px of a slide at 0.25
    Image.fromarray(pixels).save(tmp_path / "one.png")
    table = table_of(
        tmp_path, "one.png,0,128,keep,p7", "one.png,128,128,drop,",
        header="slide_path,x,y,label,patient_id",
    )  # fmt: skip
    examples = embed(table)
    np.testing.assert_allclose(examples.features[0] * 255, (200, 60, 90), atol=1)
    np.testing.assert_allclose(examples.features[1] * 255, 255, atol=1)
    expected = ExampleSlide(
        slide_id="one", content_id=content_hash(tmp_path / "one.png"), patient_id="p7"
    )
    assert examples.slides == (expected,)


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("path,label,slide_id", "a.png,maybe,s", r"row 2: label 'maybe'; expected keep or drop"),
        ("path,label,slide_id", "a.png,keep,", r"no slide_id.*in both training and test folds"),
        ("path,slide_id", "a.png,s", r"no column 'label'"),
        ("label,slide_id", "keep,s", r"no column 'path' or 'slide_path'"),
        ("slide_path,x,y,label", "a.png,3,here,drop", r"x '3', y 'here'; expected whole numbers"),
        ("path,slide_path,label", ",,drop", "neither path nor slide_path"),
        ("path,label,slide_id", "a.png,keep,NA", r"no slide_id.*in both training and test folds"),
        ("slide_path,x,y,label", "a.png,3,1_0,drop", r"y '1_0'; expected whole numbers"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, header: str, row: str, message: str
) -> None:
    with pytest.raises(TableError, match=message):
        read_example_table(table_of(tmp_path, row, header=header))


def test_spellings_of_columns_and_ids_are_one(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, (200, 60, 90))
    apart = unicodedata.normalize("NFD", "é")
    one, other = read_example_table(table_of(
        tmp_path, f"a.png,keep,{apart}.svs,{apart}", "b.png,drop,é,é",
        header="Path,Label,Slide ID,PatientId",
    ))  # fmt: skip
    assert (one.slide_id, one.patient_id) == (other.slide_id, other.patient_id) == ("é", "é")
    with pytest.raises(TableError, match="columns 'patient_id' and 'Patient ID'"):
        read_example_table(table_of(
            tmp_path, "a.png,keep,s,p,q", header="path,label,slide_id,patient_id,Patient ID"
        ))  # fmt: skip
    with pytest.raises(TableError, match=r"row 2: no file .*/c.png; expected an image"):
        read_example_table(table_of(tmp_path, "c.png,keep,s"))


@pytest.mark.parametrize(
    ("row", "is_refused"),
    [("b.png,drop,s1,", True), ("b.png,keep,s2,", True), ("b.png,keep,s1,", False),
     ("b.png,keep,s2,p1", False), ("glass.png,drop,s2,", False),
     ("b.png,keep,s1,\nglass.png,keep,s2,p1", False),
     ("b.png,keep,s2,\nglass.png,keep,s2,p1", False)],
)  # fmt: skip
def test_copies_of_a_tile_have_one_label_and_one_slide_or_patient(
    tmp_path: Path, row: str, is_refused: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    for name in ("glass.png", "more.png"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / name)
    header = "path,label,slide_id,patient_id"
    first = "a.png,keep,s1," + "p1" * ("p1" in row)
    table = table_of(tmp_path, first, "more.png,keep,s1,", *row.split("\n"), header=header)
    if is_refused:
        with pytest.raises(TableError, match=r"row 4: a tile with the same pixels as one of .* 2;"):
            embed(table)
    else:
        assert len(embed(table).drop) == 3 + row.count("\n")


def test_coordinates_and_patients_are_read_beside_rows_without_them(tmp_path: Path) -> None:
    """As pandas writes a column of numbers that has an empty cell."""
    picture(tmp_path / "a.png", (200, 60, 90))
    table = table_of(
        tmp_path, "a.png,,,,keep,s1,NA", ",a.png,12.0,0.0,drop,s2,p2",
        header="path,slide_path,x,y,label,slide_id,patient_id",
    )  # fmt: skip
    one, other = read_example_table(table)
    assert (one.corner_px0, one.patient_id) == (None, "")
    assert (other.corner_px0, other.patient_id) == ((12, 0), "p2")


def test_contradictions_between_rows_are_refused(tmp_path: Path) -> None:
    header = "path,label,slide_id,patient_id"
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, (200, 60, 90))
    with pytest.raises(TableError, match=r"row 3: the same tile as in .*row 2"):
        read_example_table(table_of(tmp_path, "a.png,keep,s,", "a.png,drop,s,", header=header))
    with pytest.raises(TableError, match=r"patient 'q' for slide 's', which has 'p' above"):
        read_example_table(table_of(tmp_path, "a.png,keep,s,p", "b.png,drop,s,q", header=header))


def test_images_that_cannot_be_cut_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "small.png", (0, 0, 0), side_px=50)
    with pytest.raises(TableError, match=r"row 2: .*50 × 50 px; expected at least 64 × 64"):
        embed(table_of(tmp_path, "small.png,keep,s"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SlideError, match=r"broken\.png"):
        embed(table_of(tmp_path, "broken.png,keep,s"))
    outside = table_of(tmp_path, "small.png,50,0,keep", header="slide_path,x,y,label")
    with pytest.raises(TableError, match=r"\(50, 0\); expected a position on the slide of 50"):
        embed(outside)


def green_filter(folder: Path, **spec: object) -> TileFilter:
    """Drops green tiles, keeps red ones; fitted on six slides."""
    rows = []
    for number in range(6):
        for colour, label in (((190 + number, 70, 100), "keep"), ((60, 170 + number, 110), "drop")):
            name = picture(folder / f"{label}{number}.png", colour, side_px=128).name
            rows.append(f"{name},{label},slide{number}")
    own = EmbeddingSpec.from_fingerprint(SETTINGS.make_fingerprint(ColourEncoder()))
    examples = embed(table_of(folder, *rows))
    return fit_filter(examples, spec=replace(own, **spec))  # type: ignore[arg-type]


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """White glass with red on the left, green on the right."""
    pixels = np.random.default_rng(0).normal(243, 2, (1024, 1024, 3))
    pixels[128:896, 128:512] += np.array((190, 70, 100)) - 243
    pixels[128:896, 512:896] += np.array((60, 170, 110)) - 243
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "one.png"
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


def run(slide: Path, bags: Path, settings: EmbedConfig) -> SlideResult:
    (outcome,) = embed_slides([slide], bags, replace(settings, encoder=ColourEncoder()))
    return outcome


def test_embedding_drops_tiles_by_the_filter_and_counts_them(tmp_path: Path, slide: Path) -> None:
    tile_filter = green_filter(tmp_path)
    whole, filtered = tmp_path / "whole", tmp_path / "filtered"
    run(slide, whole, SETTINGS)
    outcome = run(slide, filtered, replace(SETTINGS, tile_filter=tile_filter))
    before, after = read_bag(whole / "one.h5"), read_bag(filtered / "one.h5")
    dropped = before.features[:, 1] > before.features[:, 0]
    dropped &= before.features[:, 1] < 0.9
    assert dropped.sum() >= 12
    assert (after.features == before.features[~dropped]).all()
    assert (after.coords_px0 == before.coords_px0[~dropped]).all()
    assert json.loads(after.meta.left_out) == {"filter": dropped.sum()}
    assert outcome.left_out == {"filter": dropped.sum()}
    assert outcome.n_tiles == len(after.features)
    assert after.meta.n_tried == len(before.features)
    assert after.meta.fingerprint == replace(
        before.meta.fingerprint, filter_sha256=tile_filter.sha256
    )
    assert load_filter_copy(filtered, tile_filter.sha256).sha256 == tile_filter.sha256
    assert run(slide, filtered, replace(SETTINGS, tile_filter=tile_filter)).status == "skipped"


def test_bags_with_and_without_a_filter_are_not_mixed(tmp_path: Path, slide: Path) -> None:
    tile_filter = green_filter(tmp_path)
    run(slide, tmp_path / "bags", replace(SETTINGS, tile_filter=tile_filter))
    with pytest.raises(BagError, match=r"made with --filter with hash .*; expected no --filter"):
        run(slide, tmp_path / "bags", SETTINGS)
    fingerprint = read_bag(tmp_path / "bags" / "one.h5").meta.fingerprint
    again = config_from_fingerprint(
        fingerprint, batch_tiles=8, n_workers=2, tile_filter=tile_filter
    )
    assert again == replace(SETTINGS, encoder="colour", tile_filter=tile_filter)


def test_a_filter_of_another_recipe_is_refused_before_anything_is_read(
    tmp_path: Path, slide: Path
) -> None:
    other = green_filter(tmp_path, target_mpp=1.0)
    with pytest.raises(FilterError, match=r"--mpp 1; expected --mpp 0\.5"):
        run(slide, tmp_path / "bags", replace(SETTINGS, tile_filter=other))
    assert not list((tmp_path / "bags").glob("*.h5"))


def test_a_slide_of_which_everything_is_dropped_says_so(tmp_path: Path, slide: Path) -> None:
    pixels = np.asarray(Image.open(slide)).copy()
    pixels[:, :512] = 243
    Image.fromarray(pixels).save(slide)
    settings = replace(
        SETTINGS, tiles=replace(SETTINGS.tiles, min_tissue=0.9), tile_filter=green_filter(tmp_path)
    )
    outcome = run(slide, tmp_path / "bags", settings)
    assert outcome.status == "empty"
    assert "tiles left out: filter" in outcome.message
