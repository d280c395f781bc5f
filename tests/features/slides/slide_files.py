"""Pixels of the slides that tests of the readers write."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from features.slides.base import Slide
from features.slides.reader import open_slide


def whole(slide: Slide | Path, level: int = 0) -> np.ndarray:
    """Return all pixels of a level of an open slide, or of the slide of a file."""
    if isinstance(slide, Path):
        with closing(open_slide(slide)) as opened:
            return whole(opened, level)
    size = slide.levels[level]
    return slide.read(level=level, x_px=0, y_px=0, width_px=size.width_px, height_px=size.height_px)
