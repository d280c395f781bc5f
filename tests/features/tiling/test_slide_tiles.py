"""What there is to embed on a slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
