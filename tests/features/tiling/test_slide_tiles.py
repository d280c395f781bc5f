"""What there is to embed on a slide."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile

from features.slides.base import RgbArray
from features.slides.search import find_slides
from features.tiling.grid import TileSettings
from features.tiling.slide_tiles import open_slide_tiles
from features.tiling.tissue import TissueSettings
from tests.fakes import real_data


def corners(path: Path) -> np.ndarray:
    with open_slide_tiles(
        path, tiles=TileSettings(), tissue=TissueSettings(), given_mpp=None
    ) as slide_tiles:
        return slide_tiles.grid.coords_px0


def test_tiles_are_scaled_and_judged_by_one_thread_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128))
    n_judging, most = 0, 0

    def judge(tile: RgbArray) -> str:
        nonlocal n_judging, most
        n_judging += 1
        most = max(most, n_judging)
        time.sleep(0.005)  # lets others begin
        n_judging -= 1
        return ""

    with (
        open_slide_tiles(
            path,
            tiles=TileSettings(tile_px=32),
            tissue=TissueSettings(method="all"),
            given_mpp=None,
        ) as tiles,
        ThreadPoolExecutor(4) as pool,
    ):
        judged = replace(tiles, detect_artifact=judge)
        n_read = sum(1 for _ in judged.read_all(pool, n_ahead=8))
    assert n_read >= 8
    assert most == 1


@real_data
def test_a_slide_has_the_same_tiles_as_svs_as_pyramid_and_as_dicom(mil_data: Path) -> None:
    folder = mil_data / "slides"
    result = [
        corners(path)
        for path in (
            folder / "cmu-1-small-region.svs",
            folder / "cmu-1-small-region.pyramid.tiff",
            *find_slides([folder / "cmu-1-small-region.dicom"]),
        )
    ]
    assert len(result) == 3
    assert len(result[0]) == 53
    np.testing.assert_array_equal(result[0], result[1])
    np.testing.assert_array_equal(result[0], result[2])
