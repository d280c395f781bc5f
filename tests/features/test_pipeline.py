from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from features.bags import find_bags, read_bag
from features.embedding import embed_tiles
from features.encoders import Encoder, load_encoder
from features.errors import BagError, SlideError, TableError
from features.pipeline import (
    EmbedSettings,
    SlideOutcome,
    embed_slides,
    fingerprint_of,
    read_mpp_table,
    read_slide_table,
    settings_like,
)
from features.slides.opening import find_slides
from features.tiles import TileSettings, read_tile
from features.tissue import TissueSettings
from tests.fakes import FakeSlide
from tests.features.test_tiles import grid_at

SETTINGS = EmbedSettings(
    tiles=TileSettings(tile_px=160), tissue=TissueSettings(), batch_tiles=8, n_workers=2
)


def keep(tile: np.ndarray) -> str:
    """A judge that leaves nothing out."""
    return ""


class Silent:
    """Progress that nobody looks at."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None: ...
    def tiles_done(self, n_tiles: int) -> None: ...
    def slide_ended(self, outcome: SlideOutcome) -> None: ...


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return load_encoder("test_vit", weights_path=path, device=torch.device("cpu"))


@pytest.fixture
def slides(tmp_path: Path) -> Iterator[Path]:
    """Two painted slides, one blank, one that is no slide."""
    from features.synthetic import paint_clot, plan_cohort, write_slide

    folder = tmp_path / "slides"
    folder.mkdir()
    for number, plan in enumerate(plan_cohort(n_patients=2, seed=1, signal=1.0)[:2]):
        write_slide(folder / f"s{number}.tif", paint_clot(plan)[600:2600, 600:2600])
    write_slide(folder / "blank.tif", np.full((900, 900, 3), (196, 211, 192), np.uint8))
    (folder / "broken.tif").write_bytes(b"II*\x00 no more")
    return folder


def run(slides: Path, bags: Path, encoder: Encoder, **options: object) -> list[SlideOutcome]:
    defaults = {
        "settings": SETTINGS, "given_mpp": {}, "overwrite": False, "progress": Silent(),
    }  # fmt: skip
    return embed_slides(find_slides([slides]), bags, encoder, **{**defaults, **options})


def test_a_folder_becomes_bags_and_a_bad_slide_stops_no_other(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    outcomes = {o.slide_id: o for o in run(slides, tmp_path / "bags", encoder)}
    assert {name: o.status for name, o in outcomes.items()} == {
        "s0": "done", "s1": "done", "blank": "empty", "broken": "failed",
    }  # fmt: skip
    assert list(find_bags(tmp_path / "bags")) == ["blank", "s0", "s1"]
    bag = read_bag(tmp_path / "bags" / "s0.h5")
    assert bag.features.shape == (outcomes["s0"].n_tiles, encoder.dim)
    assert bag.meta.mpp_source == "assumed"
    assert bag.meta.n_tried == len(bag.features) > 0
    assert read_bag(tmp_path / "bags" / "blank.h5").meta.empty_reason == "no tissue found"
    table = pd.read_csv(tmp_path / "bags" / "embed.csv", dtype=str, keep_default_na=False)
    assert table.set_index("slide_id")["status"].to_dict()["broken"] == "failed"
    assert "no reader can open it" in table.set_index("slide_id")["message"]["broken"]


def test_finished_slides_are_skipped_and_the_same_bytes_come_again(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(slides, tmp_path / "bags", encoder)
    before = {p.name: p.read_bytes() for p in (tmp_path / "bags").glob("*.h5")}
    (tmp_path / "bags" / "s1.h5").write_bytes(before["s1.h5"][:5000])  # as if it had been cut off
    statuses = {o.slide_id: o.status for o in run(slides, tmp_path / "bags", encoder)}
    assert statuses == {"s0": "skipped", "s1": "done", "blank": "skipped", "broken": "failed"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "bags").glob("*.h5")} == before
    again = run(slides, tmp_path / "bags", encoder, overwrite=True)
    assert {o.status for o in again} == {"done", "empty", "failed"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "bags").glob("*.h5")} == before


def test_a_folder_of_other_settings_is_not_mixed(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(slides, tmp_path / "bags", encoder)
    other = EmbedSettings(tiles=TileSettings(tile_px=160, target_mpp=1.0), tissue=TissueSettings())
    with pytest.raises(BagError, match=r"target_mpp is 0\.5; expected 1\.0.*--overwrite"):
        run(slides, tmp_path / "bags", encoder, settings=other)


def test_two_slides_of_one_name_are_refused(slides: Path, tmp_path: Path, encoder: Encoder) -> None:
    (slides / "more").mkdir()
    (slides / "more" / "s0.tiff").write_bytes(b"x")
    with pytest.raises(SlideError, match="slide 's0': 2 files of that name"):
        run(slides, tmp_path / "bags", encoder)


def test_a_given_resolution_changes_the_tiles_and_is_recorded(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(slides, tmp_path / "a", encoder)
    run(slides, tmp_path / "b", encoder, given_mpp={"s0": 0.5})
    assumed, given = (read_bag(tmp_path / name / "s0.h5") for name in ("a", "b"))
    assert (given.meta.mpp_source, given.meta.mpp_x) == ("given", 0.5)
    assert given.meta.span_x_px0 == assumed.meta.span_x_px0 / 2
    assert len(given.features) > 2 * len(assumed.features)


def test_an_implausible_given_resolution_fails_that_slide_only(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    outcomes = {o.slide_id: o for o in run(slides, tmp_path, encoder, given_mpp={"s0": 400.0})}
    assert outcomes["s0"].status == "failed"
    assert "400 µm/px" in outcomes["s0"].message
    assert outcomes["s1"].status == "done"


def test_embeddings_do_not_depend_on_the_batch(encoder: Encoder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    slide = FakeSlide(pixels)
    grid = grid_at(0, 0, 320.0, tile_px=160)
    corners = np.array([[x, y] for y in (0, 200, 400) for x in (0, 100, 480)])
    grid = type(grid)(**{**grid.__dict__, "coords_px0": corners,
                         "tissue_fraction": np.ones(9, np.float32)})  # fmt: skip
    done: list[int] = []
    found = [
        embed_tiles(
            slide, grid, encoder, batch_tiles=n, n_workers=2, judge=keep, on_tiles=done.append
        )
        for n in (1, 4, 64)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.features, found[0].features, rtol=1e-3, atol=1e-4)
    assert sum(done) == 27
    one = encoder.embed(read_tile(slide, grid, 5)[None])
    np.testing.assert_allclose(found[2].features[5], one[0], rtol=1e-3, atol=1e-4)


def test_a_tile_that_cannot_be_read_is_left_out_and_counted(encoder: Encoder) -> None:
    pixels = np.zeros((800, 800, 3), np.uint8)
    slide = FakeSlide(pixels, broken=((0, 0, 10, 10),))
    grid = grid_at(0, 0, 160.0, tile_px=160)
    corners = np.array([[0, 0], [200, 0], [400, 0]])
    grid = type(grid)(**{**grid.__dict__, "coords_px0": corners,
                         "tissue_fraction": np.ones(3, np.float32)})  # fmt: skip
    found = embed_tiles(
        slide, grid, encoder, batch_tiles=2, n_workers=1, judge=keep, on_tiles=lambda n: None
    )
    assert found.kept.tolist() == [1, 2]
    assert found.features.shape == (2, encoder.dim)
    assert len(found.failures) == 1


def test_a_slide_with_many_broken_tiles_fails(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    path = slides / "s0.tif"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - len(data) // 4 : middle + len(data) // 4] = b"\xff" * (len(data) // 4 * 2)
    path.write_bytes(data)
    outcome = {o.slide_id: o for o in run(slides, tmp_path / "bags", encoder)}["s0"]
    assert outcome.status == "failed"
    assert "s0.h5" not in {p.name for p in (tmp_path / "bags").iterdir()}


def test_settings_come_back_from_a_fingerprint(encoder: Encoder) -> None:
    made = fingerprint_of(encoder, SETTINGS)
    again = settings_like(made, batch_tiles=8, n_workers=2)
    assert again == SETTINGS
    assert fingerprint_of(encoder, again) == made


def test_tables_of_slides_and_resolutions_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    table = tmp_path / "t.csv"
    table.write_text("path\na.tif\n")
    assert read_slide_table(table) == [tmp_path / "a.tif"]
    table.write_text("path\ngone.tif\n")
    with pytest.raises(TableError, match="row 2: no file"):
        read_slide_table(table)
    table.write_text("slide_id,mpp\n049194,0.25\nb.tif,0.5\n")
    assert read_mpp_table(table) == {"049194": 0.25, "b": 0.5}
    table.write_text("slide_id,mpp\na,fine\n")
    with pytest.raises(TableError, match="mpp 'fine'"):
        read_mpp_table(table)
