"""Pictures whose tag says that they are to be shown turned."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.ExifTags import Base

from features.slides.reader import open_slide

PIXELS = (
    np.add.outer(np.arange(256) // 2, np.arange(512) // 4)[..., None].repeat(3, 2).astype(np.uint8)
)
"""A picture that no turn leaves alike, shape (256, 512, 3)."""


@pytest.mark.parametrize("value", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_an_orientation_is_warned_of_and_pixels_are_those_stored(
    tmp_path: Path, kind: str, value: int
) -> None:
    path = tmp_path / f"s.{kind}"
    if kind == "tif":
        tifffile.imwrite(path, PIXELS, tile=(128, 128), photometric="rgb", metadata=None,
                         extratags=[(274, 3, 1, value, True)])  # fmt: skip
    else:
        exif = Image.Exif()
        exif[Base.Orientation] = value
        Image.fromarray(PIXELS).save(path, exif=exif, quality=100)
    with closing(open_slide(path)) as slide:
        assert (slide.levels[0].width_px, slide.levels[0].height_px) == (512, 256)
        region = slide.read(level=0, x_px=0, y_px=0, width_px=512, height_px=256)
        assert np.abs(region.astype(int) - PIXELS).max() < 9
        told = [text for text in slide.warnings if "Orientation" in text]
    assert [f"Orientation is {value} (to be shown" in text for text in told] == [True] * (value > 1)
