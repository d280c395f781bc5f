"""Areas of a slide that cannot be read, filled with what borders on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from features.slides.base import RgbArray

__all__ = ["fill_lost_areas"]


def fill_lost_areas(
    overview: RgbArray, boxes_px0: Sequence[tuple[int, int, int, int]], *, downsample: int
) -> RgbArray:
    """Return an overview, shape (height, width, 3) in px, uint8, with the nearest pixels in boxes.

    ``boxes_px0`` are left, top, width and height in level-0 px, ``downsample`` is level-0 px
    per px. A hole in tissue thus looks like tissue, and one in glass like glass: the tiles in the
    former are tried, cannot be read and are counted as failed, instead of passing for glass.
    """
    if not boxes_px0:
        return overview
    is_lost = np.zeros(overview.shape[:2], bool)
    for left, top, width, height in boxes_px0:
        rows = slice(top // downsample, -(-(top + height) // downsample))
        columns = slice(left // downsample, -(-(left + width) // downsample))
        is_lost[rows, columns] = True
    if is_lost.all():
        return overview
    nearest = ndimage.distance_transform_edt(
        is_lost, return_distances=False, return_indices=True
    )  # fmt: skip
    return np.ascontiguousarray(overview[tuple(nearest)])
