"""Tissue segmentation on an overview of the slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from features.errors import MilError
from features.slides.base import RgbArray
from features.tiling.glass import Glass, find_glass, grey_levels, is_fill, subsample
from features.tiling.window_filters import (
    close_disc,
    open_disc,
    window_max,
    window_mean,
    window_min,
)

__all__ = [
    "MASK_VERSION",
    "NEARLY_ALL",
    "NEARLY_NONE",
    "TissueMask",
    "TissueSettings",
    "mask_downsample",
    "segment_tissue",
]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_NOISE_SIGMAS = 4.0  # of normal noise, three blank pixels in 100,000 exceed it
_TEXTURE_PX = 7
_TEXTURE_WEIGHT = 3.0  # on pale synthetic tissue 8 levels below the glass with a standard deviation
# of 9, 94 % is segmented, without texture 12 %; a lower weight or a smaller window gives less
_TEXTURE_REACH = 18.0  # grey levels below the glass; darker pixels are tissue by their colour
_BAND_ROWS = 32  # of some thousand px, which the cache of a processor holds
_NEAR_PX = 7  # to the darkest pixel of a border: blur takes less
_MEDIAN_PIXELS = 50_000
_MAX_THRESHOLD = 24.0  # grey levels: pale spots in dark tissue are tissue
_MIN_ISLAND_PX = 4
_LITTLE = 0.03  # share of a slide up to which all its islands together may be uneven glass
_DISTINCT = 3.0  # thresholds that a pixel of tissue exceeds, and uneven glass does not
_PALER = 0.6  # of its threshold, what is found beside a border that adjoins paler tissue
_CLOSING_PX = 3  # gaps of up to 6 px, as wide as the border of a dark section on a pale one
_WALL_PX = 2  # half the width of a thick wall of a hole; those of fat cells are 1 px
_WALL_DEPTH = 4.0  # grey levels by which a wall is darker than the cells beside it
_WALL_SIGMAS = 6.0  # of the noise in the smoothed picture
_LEAST_WALL_PX = 20  # connected
_LEAST_CELLS = 4
_LEAST_CELL_PX = 16  # within lines: blocks of JPEG beside ink enclose smaller spots
_THIN_SHARE = 0.4  # of the wall of a fat cell: where three meet it is thick
_BLACK = 16  # of 255, in the brightest channel
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


NEARLY_ALL = 0.98
"""Share of a slide from which on tissue everywhere may be glass that was not recognised."""

NEARLY_NONE = 0.001
"""Share of a slide up to which tissue may have been missed."""

MASK_VERSION = 3
"""Version of the method; bags of other masks are not mixed with those of this one."""

Method = Literal["contrast", "all"]
"""Ways to find tissue; bags made by the way of earlier versions, which had one threshold per slide,
state none."""


@dataclass(frozen=True, kw_only=True)
class TissueSettings:
    """Settings of the tissue segmentation.

    Attributes
    ----------
    method
        ``contrast`` for what is darker than the glass, by a threshold that follows the tissue
        nearby; ``all`` for the whole picture, without looking for glass.
    mask_mpp
        Resolution of the mask, µm/px: about one cell per pixel, so that gaps between cells and the
        scanner's noise average out, and a slide of 5 gigapixels fits in 15 MB.
    floor_distance
        Least distance to the glass at which a pixel may be tissue, grey levels of white glass (0 to
        255). JPEG blocks and uneven light stay below 5; noisier glass raises it.
    least_speck_um2
        Area below which islands are removed, µm²: dust of up to 70 µm across. A tile of 224 px at
        0.5 µm/px has 12,544, so at the default share of 0.3 no smaller island makes a tile.
    least_hole_um2
        Area below which holes are filled, µm²: capillaries and tears of one cell's width belong to
        the tissue, vessels and glands wider than 70 µm do not.
    largest_fat_cell_um2
        Area below which holes with thin walls are filled, µm²: fat cells of up to 140 µm.
    """

    method: Method = "contrast"
    mask_mpp: float = 8.0
    floor_distance: float = 6.0
    least_speck_um2: float = 4000.0
    least_hole_um2: float = 4000.0
    largest_fat_cell_um2: float = 16000.0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise MilError(
                "tissue",
                actual=f"method is {self.method!r}",
                expected=" or ".join(get_args(Method)),
            )
        minima = {"mask_mpp": 0.05, "floor_distance": 1, "least_speck_um2": 0, "least_hole_um2": 0}
        for name, least in minima.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise MilError(
                    "tissue", actual=f"{name} is {value:g}", expected=f"{least:g} or more"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class TissueMask:
    """Tissue of a slide at low resolution: ``mask``, shape (height, width), bool, True on tissue.

    ``downsample`` is in level-0 px per px of the mask, ``background_rgb`` the colour of the glass,
    and ``threshold`` the least distance to it of a tissue pixel, grey levels of white glass.
    ``is_whole`` states that the whole picture was taken, without looking for glass. ``tissue_rgb``
    is the median colour of the tissue, None where there is none or all was taken.
    """

    mask: Bools
    downsample: int
    background_rgb: tuple[int, int, int]
    threshold: float
    is_whole: bool = False
    tissue_rgb: tuple[int, int, int] | None = None

    @property
    def share(self) -> float | None:
        """Share of the mask's pixels that are tissue, 0 to 1; None where all was taken."""
        return None if self.is_whole else float(self.mask.mean())


def mask_downsample(mpp: float, settings: TissueSettings) -> int:
    """Return the level-0 px per px of the mask, shape (height, width), at ``mpp`` µm per px.

    Examples
    --------
    >>> mask_downsample(0.25, TissueSettings())
    32
    """
    return max(1, round(settings.mask_mpp / mpp))


def segment_tissue(
    overview: RgbArray, *, downsample: int, mpp: float, settings: TissueSettings
) -> TissueMask:
    """Segment the tissue of a slide on glass of any colour, from shape (height, width, 3), uint8.

    1. The colour of the glass is the brightest of which there is enough, and of which most pixels
       are as smooth as glass (:func:`features.tiling.glass.find_glass`). Where there is none (a
       picture of tissue alone), it is white.
    2. Uneven light is modelled by a polynomial of second degree in x and y, fitted iteratively to
       pixels of the glass.
    3. The distance of a pixel is how much light it absorbs, in the channel with the largest
       difference, combined with its excess texture, so that pale but structured tissue is
       included. White fill is brighter than glass and no tissue; flat black fill is excluded.
    4. Tissue exceeds half the largest distance nearby, clipped to ``floor_distance`` and 24: the
       border of a dark section is where its contrast has fallen by half, and a pale section is
       found whatever is beside it. The floor rises with the noise of the glass.
    5. Specks are removed and small holes filled by area. Where there are only specks, the largest
       is kept if it is distinct (a small biopsy).

    ``downsample`` is in level-0 px per px of ``overview``, ``mpp`` in µm per level-0 px. The mask
    has shape (height, width), and is all False on a blank slide. With the method ``all`` it is all
    True.
    """
    smooth = _median_of_nine(overview)
    glass = find_glass(smooth)
    floor = settings.floor_distance
    if settings.method == "all":
        mask = np.ones(overview.shape[:2], bool)
    else:
        darker, is_glass, noise = glass.compare(smooth)
        floor = max(floor, _NOISE_SIGMAS * noise)
        grey = grey_levels(overview)
        texture = _texture(grey, glass, is_glass, reach=max(_TEXTURE_REACH, 1.5 * floor))
        distance = np.hypot(darker, _TEXTURE_WEIGHT * texture)
        distance[is_fill(smooth, _BLACK)] = 0
        is_faint = distance > floor
        threshold = _local_threshold(distance, floor)
        distance[distance <= threshold] = 0
        is_faint &= distance == 0
        is_faint &= _least_nearby(distance) <= _PALER * threshold  # pale tissue beside dark tissue
        px_um2 = (downsample * mpp) ** 2
        mask = _remove_small(distance, floor, settings.least_speck_um2 / px_um2)
        mask |= is_faint & close_disc(mask, _CLOSING_PX)
        lines = _thin_walls(grey, glass, noise)
        mask |= _fat_cells(mask, lines, settings.largest_fat_cell_um2 / px_um2)
        mask = _fill_small_holes(mask, settings.least_hole_um2 / px_um2)
    red, green, blue = np.rint(glass.rgb).astype(int).tolist()
    return TissueMask(
        mask=mask,
        downsample=downsample,
        background_rgb=(red, green, blue),
        threshold=floor,
        is_whole=settings.method == "all",
        tissue_rgb=_median_rgb(overview, mask) if settings.method != "all" else None,
    )


def _median_rgb(overview: RgbArray, mask: Bools) -> tuple[int, int, int] | None:
    """Return the median colour of the pixels of a mask, shape (height, width); None of none."""
    places = np.flatnonzero(mask)
    if not len(places):
        return None
    some = places[:: max(1, len(places) // _MEDIAN_PIXELS)]
    pixels = overview.reshape(-1, 3)[some]
    red, green, blue = np.rint(np.median(pixels, axis=0)).astype(int).tolist()
    return red, green, blue


def _median_of_nine(overview: RgbArray) -> RgbArray:
    """Median of 3 by 3 pixels, which removes noise and keeps straight borders.

    It is the median of the largest low, the middle and the least high value of three sorted
    columns (Smith, 1996), a band of rows at a time: ten times as fast as Pillow's filter.
    """
    around = np.pad(overview, ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth = np.empty_like(overview)
    for start in range(0, len(overview), _BAND_ROWS):
        band = around[start : start + _BAND_ROWS + 2]
        top, middle, bottom = band[:-2], band[1:-1], band[2:]
        low, high = np.minimum(top, middle), np.maximum(top, middle)
        columns = (
            np.minimum(low, bottom),
            np.maximum(low, np.minimum(high, bottom)),
            np.maximum(high, bottom),
        )
        lows, middles, highs = ((c[:, :-2], c[:, 1:-1], c[:, 2:]) for c in columns)
        smooth[start : start + _BAND_ROWS] = _median_of_three(
            np.maximum(np.maximum(lows[0], lows[1]), lows[2]),
            _median_of_three(*middles),
            np.minimum(np.minimum(highs[0], highs[1]), highs[2]),
        )
    return smooth


def _median_of_three(one: RgbArray, other: RgbArray, third: RgbArray) -> RgbArray:
    low, high = np.minimum(one, other), np.maximum(one, other)
    return np.asarray(np.maximum(low, np.minimum(high, third)))


def _variance(grey: Floats, window_px: int) -> Floats:
    """Local variance, shape (height, width).

    It is the minimum over the windows that contain a pixel (as in Kuwahara's filter, 1976), so
    that glass next to a border has the variance of glass.
    """
    mean = window_mean(grey, window_px)
    variance = window_mean(grey * grey, window_px) - mean * mean
    return np.asarray(np.maximum(window_min(variance, window_px), 0))


def _texture(grey: Floats, glass: Glass, is_glass: Bools, reach: float) -> Floats:
    """Local standard deviation of the grey value in excess of that of glass, (height, width).

    Grey values are clipped at ``reach`` levels below the glass: darker pixels are tissue by their
    colour, and a small hole must not count by the contrast of its border.
    """
    variance = _variance(np.maximum(grey, glass.rgb.mean() - reach), _TEXTURE_PX)
    calm = np.percentile(subsample(variance[is_glass]), 99) if is_glass.any() else 0.0
    return np.asarray(np.sqrt(np.maximum(variance - calm, 0)))


def _local_threshold(distance: Floats, floor: float) -> Floats:
    """Half the largest distance nearby, from ``floor`` to the maximum, shape (height, width)."""
    nearby = window_max(window_mean(distance, 3), _NEAR_PX)
    return np.asarray(np.clip(nearby / 2, floor, max(floor, _MAX_THRESHOLD)))


def _remove_small(distance: Floats, threshold: float, least_px: float) -> Bools:
    """Islands of at least ``least_px`` pixels; where there is none, the largest distinct one.

    ``distance`` is 0 outside of islands.

    On a slide of unknown resolution the area in µm² may be far off; a single clearly coloured
    island is then more likely a small biopsy than dust.
    """
    candidates = distance > 0
    labels, n_islands = ndimage.label(candidates, structure=_EIGHT_NEIGHBOURS)
    if not n_islands:
        return candidates
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    is_kept = (sizes >= least_px) & (sizes > 0)
    if sizes[is_kept].sum() < _LITTLE * labels.size:
        peaks = ndimage.maximum(distance, labels, np.arange(n_islands + 1))
        is_kept &= peaks > _DISTINCT * threshold
    if not is_kept.any():
        largest = sizes.argmax()
        colour = float(distance[labels == largest].mean())
        is_kept[largest] = sizes[largest] >= _MIN_ISLAND_PX and colour > 2 * threshold
    return np.asarray(is_kept[labels])


def _least_nearby(distance: Floats) -> Floats:
    """Least distance above 0 nearby, shape (height, width)."""
    positive = np.where(distance > 0, distance, np.float32(np.inf))
    return np.asarray(window_min(positive, _NEAR_PX))


def _thin_walls(grey: Floats, glass: Glass, noise: float) -> Bools:
    """Dark lines of up to 4 px, as of fat cells, which a median of nine pixels would remove.

    They are where closing the grey value, shape (height, width), makes it brighter.
    """
    depth = window_min(window_max(grey, 5), 5)
    depth -= grey
    least = max(_WALL_DEPTH, _WALL_SIGMAS * noise) * glass.relative_brightness
    labels, _ = ndimage.label(depth > least, _EIGHT_NEIGHBOURS)
    is_long = np.bincount(labels.ravel()) >= _LEAST_WALL_PX
    is_long[0] = False
    return np.asarray(is_long[labels])


def _fat_cells(mask: Bools, lines: Bools, largest_px: float) -> Bools:
    """Holes of up to ``largest_px`` pixels whose walls are thin, together with these.

    Walls are in the mask or lines. Lumina of vessels and glands have thick walls. The border of the
    picture counts as a wall.
    """
    walls = mask | lines
    labels, n_holes = ndimage.label(~walls)
    sizes = np.bincount(labels.ravel())
    is_small = sizes <= largest_px
    is_small[0] = False
    if not is_small.any():
        return np.zeros_like(walls)
    thick = open_disc(walls, _WALL_PX)
    nearest = window_max(labels * is_small[labels], 3)
    wall = walls & (nearest > 0)
    n_wall = np.bincount(nearest[wall], minlength=n_holes + 1)
    n_thin = np.bincount(nearest[wall & ~thick], minlength=n_holes + 1)
    is_cell = is_small & (n_thin > _THIN_SHARE * n_wall)
    n_line = np.bincount(nearest[wall & ~mask], minlength=n_holes + 1)
    # Fat cells come in sheets; a hole or two are where a shred is curled.
    in_lines = _number_in_island(walls, labels, is_cell & (sizes >= _LEAST_CELL_PX))
    in_mask = _number_in_island(mask, labels, is_cell & (n_line == 0))
    is_cell &= np.maximum(in_lines, in_mask) >= _LEAST_CELLS
    cells = is_cell[labels]
    return np.asarray(cells | (walls & window_max(cells, 3)))


def _number_in_island(
    walls: Bools, holes: npt.NDArray[Any], is_counted: Bools
) -> npt.NDArray[np.intp]:
    """Number of counted holes in the island of each hole, 0 for those not counted."""
    islands, n_islands = ndimage.label(walls | is_counted[holes], _EIGHT_NEIGHBOURS)
    island_of = np.zeros(len(is_counted), np.intp)
    island_of[holes] = islands
    n_holes = np.bincount(island_of[is_counted], minlength=n_islands + 1)
    return np.asarray(np.where(is_counted, n_holes[island_of], 0))


def _fill_small_holes(mask: Bools, least_px: float) -> Bools:
    """Fill holes of fewer than ``least_px`` pixels that are not open to the border."""
    glass = np.pad(~mask, 1, constant_values=True)
    labels, _ = ndimage.label(glass, structure=_EIGHT_NEIGHBOURS)
    is_open = np.bincount(labels.ravel()) >= least_px
    is_open[0], is_open[labels[0, 0]] = False, True
    return np.asarray(~is_open[labels[1:-1, 1:-1]])
