from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from features.embedding import slide_sample
from features.embedding.config import EmbedConfig
from features.embedding.slide_sample import SlideSample, sample_slides
from features.embedding.sources import SlideSource, slide_sources
from features.slides.synthetic import write_slide
from features.tiling.grid import TileSettings
from features.tiling.slide_tiles import SlideTiles

CONFIG = EmbedConfig(tiles=TileSettings(tile_px=64))


def sample_of(paths: list[Path], seen: list[SlideTiles] | None = None) -> SlideSample:
    sources = slide_sources(paths, CONFIG, given_mpp={}, scene=None)
    on_tiles = [].append if seen is None else seen.append
    return sample_slides(sources, on_tiles=on_tiles, on_warning=pytest.fail)


def test_a_slide_at_which_reading_stands_still_is_named(
    slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = Event()
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        warned.set()

    class Hanging(SlideSource):
        def open(self) -> AbstractContextManager[SlideTiles]:
            assert warned.wait(60)
            return super().open()

    monkeypatch.setattr("features.embedding.sources.SILENT_S", 0.05)
    source = Hanging(path=slides[0], config=CONFIG, given_mpp=None)
    assert sample_slides([source], on_warning=warn).n_sampled == 1
    assert len(warnings) == 1
    assert f"in work: {slides[0]}. Storage" in warnings[0]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine slides, the later ones with more tissue, and a file that is none."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(9):
        pixels = np.full((1024, 1024, 3), 240, np.uint8)
        side = 200 + 80 * number
        pixels[100 : 100 + side, 100 : 100 + side] = rng.integers(90, 190, (side, side, 3))
        paths.append(folder / f"s{number}.tif")
        write_slide(paths[-1], pixels)
    return paths


def test_few_slides_are_all_opened_and_counted_exactly(slides: list[Path]) -> None:
    each = [sample_of([path]).n_tiles for path in slides]
    assert len(set(each)) > 3
    whole = sample_of(slides)
    assert (whole.n_slides, whole.n_sampled) == (9, 9)
    assert whole.n_tiles == sum(each)
    assert whole.open_s > 0


def test_of_more_slides_some_of_all_sizes_are_opened(
    slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample_of(slides).n_tiles
    monkeypatch.setattr(slide_sample, "_MOST_SAMPLED", 3)
    seen: list[SlideTiles] = []
    some = sample_of(slides, seen)
    assert (some.n_slides, some.n_sampled, len(seen)) == (9, 3, 1)
    assert some.n_tiles == pytest.approx(whole, rel=0.3)


def test_slides_compressed_in_another_way_do_not_count_twenty_times(
    slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample_of(slides).n_tiles
    n_bytes = {path: path.stat().st_size * (1, 20)[n % 2] for n, path in enumerate(slides)}
    monkeypatch.setattr(SlideSource, "n_bytes", lambda source: n_bytes[source.path])
    monkeypatch.setattr(slide_sample, "_MOST_SAMPLED", 4)
    assert sample_of(slides).n_tiles == pytest.approx(whole, rel=0.3)


def test_slides_of_equal_size_count_as_the_mean_of_those_that_are_opened(
    slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlideSource, "n_bytes", lambda _: 0)  # as behind URLs
    monkeypatch.setattr(slide_sample, "_MOST_SAMPLED", 3)
    middle = [sample_of([slides[number]]).n_tiles for number in (4, 2, 6)]  # spread by name
    assert sample_of(slides).n_tiles == round(sum(middle) / 3 * len(slides))


def test_slides_count_with_all_their_files_and_those_of_unknown_size_as_a_middle_one(
    slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[float] = []
    interpolate = slide_sample._interpolate

    def spy(*arguments: Any) -> Any:
        sizes.extend(arguments[0])
        return interpolate(*arguments)

    monkeypatch.setattr(slide_sample, "_interpolate", spy)
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "chunk").write_bytes(bytes(5_000))
    (tmp_path / "m.mrxs").write_bytes(bytes(100))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "Data0000.dat").write_bytes(bytes(900))
    assert slides[0].stat().st_size > 5_000
    missing = tmp_path / "missing.svs"
    sample_of([slides[0], tmp_path / "m.mrxs", missing, tmp_path / "s.zarr"])
    assert sizes == [slides[0].stat().st_size, 1_000, 5_000, 5_000]


def test_slides_that_cannot_be_read_do_not_take_the_place_of_others(
    slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_sample, "_MOST_SAMPLED", 2)
    bad = [tmp_path / f"{number}.svs" for number in range(40)]
    for path in bad:
        path.touch()
    sample = sample_of([*bad, slides[4]])
    assert len(sample.failures) == 40
    assert sample.n_tiles == sample_of([slides[4]]).n_tiles


def test_time_is_limited_but_one_slide_is_always_opened(
    slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_sample, "_MOST_SECONDS", 0.0)
    assert sample_of(slides).n_sampled == 1


def test_a_file_that_is_no_slide_is_named_and_has_no_tiles(
    slides: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.tif").write_bytes(b"no slide")
    result = sample_of([slides[0], tmp_path / "broken.tif"])
    assert list(result.failures) == ["broken"]
    assert result.n_tiles == sample_of(slides[:1]).n_tiles
