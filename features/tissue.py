"""Where the tissue is: glass told from tissue on a small picture of the slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from features.slides.protocol import RgbArray

__all__ = ["TissueMask", "TissueSettings", "find_tissue", "overview_downsample"]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_LEAST_ISLAND_PX = 4


@dataclass(frozen=True, kw_only=True)
class TissueSettings:
    """How tissue is told from glass."""

    mask_mpp: float = 8.0
    """Resolution of the picture that is looked at, µm/px: about one cell a pixel."""
    floor_distance: float = 12.0
    """Least distance to the glass's colour (largest channel difference, 0 to 255) that is ever
    taken for tissue. Otsu's threshold always splits, so a blank slide needs an absolute floor; scan
    noise averaged to ``mask_mpp`` stays below 5."""
    least_speck_um2: float = 4000.0
    """Smaller islands are dropped, µm²: dust; a tile of 224 px at 0.5 µm/px has 12,544."""
    least_hole_um2: float = 4000.0
    """Smaller holes in tissue are filled, µm²."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TissueMask:
    """Tissue of a slide at low resolution."""

    mask: Bools
    """Shape (height, width): True on tissue."""
    downsample: int
    """Level-0 px per px of the mask."""
    background_rgb: tuple[int, int, int]
    """Colour of the glass."""
    threshold: float
    """Distance to the glass's colour from which on a pixel was tissue."""


def overview_downsample(mpp: float, settings: TissueSettings) -> int:
    """Level-0 px per px of the mask for a slide of that resolution; at least 1."""
    return max(1, round(settings.mask_mpp / mpp))


def find_tissue(
    overview: RgbArray, *, downsample: int, mpp: float, settings: TissueSettings
) -> TissueMask:
    """Tissue of a slide, whatever the colour of its glass.

    The glass's colour is the commonest bright, smooth colour; slow changes of it over the slide are
    followed. A pixel is tissue where its distance to the glass (largest difference over the
    channels) is beyond Otsu's threshold (Otsu, 1979), but never below an absolute floor. Specks and
    small holes go by their area.

    Parameters
    ----------
    overview
        The whole slide, shape (height, width, 3), uint8.
    downsample
        Level-0 px per px of ``overview``.
    mpp
        µm per level-0 px.
    settings
        Numbers of the rule.

    Returns
    -------
    TissueMask
        With ``mask`` of the shape of ``overview``; all False on a blank slide.
    """
    glass = _glass_colour(overview)
    distance = _distance(overview, glass, settings.floor_distance)
    threshold = max(settings.floor_distance, _otsu(distance[distance > settings.floor_distance / 2]))
    # Otsu between dark and pale tissue would lose the pale one: the floor's double is enough.
    threshold = min(threshold, 2 * settings.floor_distance)
    px_um2 = (downsample * mpp) ** 2
    mask = _without_specks(distance, threshold, settings.least_speck_um2 / px_um2)
    mask = ~_without_small(~mask, settings.least_hole_um2 / px_um2)
    red, green, blue = np.rint(glass).astype(int).tolist()
    return TissueMask(
        mask=mask,
        downsample=downsample,
        background_rgb=(red, green, blue),
        threshold=float(threshold),
    )


def _glass_colour(overview: RgbArray) -> Floats:
    """The commonest colour among smooth and rather bright pixels, shape (3,)."""
    grey = overview.astype(np.float32).mean(axis=2)
    spread = ndimage.maximum_filter(grey, 3) - ndimage.minimum_filter(grey, 3)
    smooth = spread <= max(6.0, float(np.percentile(spread, 30)))
    bright = grey >= max(100.0, float(np.percentile(grey, 40)))
    pixels = overview[smooth & bright]
    if not len(pixels):
        pixels = overview[grey >= np.percentile(grey, 90)]
    coarse = (pixels >> 3).astype(np.int64)  # bins of 8 grey levels a channel
    keys = (coarse[:, 0] << 10) | (coarse[:, 1] << 5) | coarse[:, 2]
    commonest = np.bincount(keys).argmax()
    centre = np.array([commonest >> 10, (commonest >> 5) & 31, commonest & 31]) * 8 + 3.5
    near = np.abs(pixels - centre).max(axis=1) <= 12
    return np.asarray(np.median(pixels[near], axis=0), np.float32)


def _distance(overview: RgbArray, glass: Floats, floor: float) -> Floats:
    """Largest channel difference to the local glass, shape (height, width), lightly smoothed."""
    pixels = overview.astype(np.float32)
    first = np.abs(pixels - glass).max(axis=2)
    # Uneven light: the glass is measured again in the neighbourhood, from what is surely glass.
    sure = first <= floor
    size = max(15, min(overview.shape[:2]) // 4)
    share = ndimage.uniform_filter(sure.astype(np.float32), size)
    local = np.empty_like(pixels)
    for channel in range(3):
        sums = ndimage.uniform_filter(
            np.where(sure, pixels[..., channel] - glass[channel], 0), size
        )
        local[..., channel] = glass[channel] + sums / np.maximum(share, 0.05)
    difference = np.stack(
        [ndimage.uniform_filter(pixels[..., i] - local[..., i], 3) for i in range(3)], axis=-1
    )
    return np.asarray(np.abs(difference).max(axis=2), np.float32)


def _otsu(values: Floats) -> float:
    """Threshold that best splits values into two groups (Otsu, 1979); 0 where there are none."""
    if not len(values):
        return 0.0
    counts, edges = np.histogram(values, bins=128, range=(0, 256))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * middles)
    mean_below = sum_below / np.maximum(below, 1)
    mean_above = (sum_below[-1] - sum_below) / np.maximum(above, 1)
    between = below * above * (mean_below - mean_above) ** 2
    return float(edges[1:][between.argmax()])


def _without_specks(distance: Floats, threshold: float, least_px: float) -> Bools:
    """Islands of at least ``least_px`` pixels; where there is none, the largest distinct one.

    On a slide whose true resolution is unknown the area in µm² may be wrong by far; a single
    clearly coloured island is then more likely a small biopsy than dust.
    """
    mask = _without_small(distance > threshold, least_px)
    if mask.any():
        return mask
    labels, n_islands = ndimage.label(distance > threshold, structure=np.ones((3, 3)))
    if not n_islands:
        return mask
    sizes = np.bincount(labels.ravel())[1:]
    island = labels == sizes.argmax() + 1
    distinct = sizes.max() >= _LEAST_ISLAND_PX and float(distance[island].mean()) > 2 * threshold
    return island if distinct else mask


def _without_small(mask: Bools, least_px: float) -> Bools:
    """Connected areas of at least ``least_px`` pixels."""
    labels, n_areas = ndimage.label(mask, structure=np.ones((3, 3)))
    if not n_areas:
        return mask
    large = np.bincount(labels.ravel()) >= least_px
    large[0] = False
    return np.asarray(large[labels])
