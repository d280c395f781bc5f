"""Tissue segmentation on an overview of the slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from scipy import ndimage

from features.errors import MilError
from features.slides.base import RgbArray

__all__ = ["TissueMask", "TissueSettings", "mask_downsample", "segment_tissue"]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_GLASS_TOLERANCE = 12.0  # distance to the colour of the glass up to which a pixel is glass, levels
_NOISE_SIGMAS = 4.0  # of normal noise, three blank pixels in 100,000 exceed it
_TEXTURE_PX = 7
_TEXTURE_WEIGHT = 3.0  # on pale synthetic tissue 8 levels below the glass with a standard deviation
# of 9, 94 % is segmented, without texture 12 %; a lower weight or a smaller window gives less
_MIN_GLASS_SHARE = 0.02  # of the image: a smaller area is a pale spot and not glass
_MIN_ISLAND_PX = 4
_BLACK = 16  # of 255, in the brightest channel
_NORMAL_MAD = 0.6745  # median absolute deviation of a normal variable of standard deviation 1
_FIT_PIXELS = 20_000
_MAX_VALUES = 1_000_000
_FIT_ROUNDS = 8
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True, kw_only=True)
class TissueSettings:
    """Settings of the tissue segmentation.

    Attributes
    ----------
    mask_mpp
        Resolution of the mask, µm/px: about one cell per pixel, so that gaps between cells and the
        scanner's noise average out, and a slide of 5 gigapixels fits in 15 MB.
    floor_distance
        Least distance to the glass at which a pixel may be tissue, grey levels (0 to 255). Otsu's
        threshold always splits, so a blank slide needs an absolute floor; JPEG blocks, dust and the
        tints of a glass stay below 10, pale fibrin begins at 15. Noisier glass raises it.
    least_speck_um2
        Area below which islands are removed, µm²: dust of up to 70 µm across. A tile of 224 px at
        0.5 µm/px has 12,544, so at the default share of 0.3 no smaller island makes a tile.
    least_hole_um2
        Area below which holes are filled, µm²: capillaries, fat cells and tears of one cell's width
        belong to the tissue, vessels and glands wider than 70 µm do not.
    """

    mask_mpp: float = 8.0
    floor_distance: float = 12.0
    least_speck_um2: float = 4000.0
    least_hole_um2: float = 4000.0

    def __post_init__(self) -> None:
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
    and ``threshold`` the distance to it above which a pixel is tissue, grey levels.
    """

    mask: Bools
    downsample: int
    background_rgb: tuple[int, int, int]
    threshold: float


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

    1. The colour of the glass is the mode of bright, smooth pixels that are not redder than glass
       can be. Where there is no glass (an image of tissue alone), it is white.
    2. Uneven light is modelled by a polynomial of second degree in x and y, fitted iteratively to
       pixels near the colour of the glass.
    3. The distance of a pixel is how much darker it is than the glass, in the channel with the
       largest difference, combined with its excess texture, so that pale but structured tissue is
       included. White fill is brighter than glass and no tissue; flat black fill is excluded.
    4. Tissue exceeds Otsu's threshold of that distance (Otsu, 1979), clipped to once to twice
       ``floor_distance``: on a blank slide Otsu would split the noise, on a slide of dark and pale
       tissue the tissue. The floor rises with the noise of the glass.
    5. Specks are removed and small holes filled by area. Where there are only specks, the largest
       is kept if it is distinct (a small biopsy).

    ``downsample`` is in level-0 px per px of ``overview``, ``mpp`` in µm per level-0 px. The mask
    has shape (height, width), and is all False on a blank slide.
    """
    smooth = _median_of_nine(overview)
    roughness = _variance(smooth.mean(axis=2, dtype=np.float32), 3)
    glass, is_glass = _find_glass(smooth, roughness)
    darker, noise = _darker_than_glass(smooth, _fit_light(smooth, glass), is_glass)
    floor = max(settings.floor_distance, _NOISE_SIGMAS * noise)
    texture = _texture(overview, glass, is_glass, reach=1.5 * floor)
    distance = np.hypot(darker, _TEXTURE_WEIGHT * texture)
    distance[_black_fill(smooth, roughness)] = 0
    threshold = float(np.clip(_otsu(distance), floor, floor + settings.floor_distance))
    px_um2 = (downsample * mpp) ** 2
    mask = _remove_small(distance, threshold, settings.least_speck_um2 / px_um2)
    red, green, blue = np.rint(glass).astype(int).tolist()
    return TissueMask(
        mask=_fill_small_holes(mask, settings.least_hole_um2 / px_um2),
        downsample=downsample,
        background_rgb=(red, green, blue),
        threshold=threshold,
    )


def _median_of_nine(overview: RgbArray) -> RgbArray:
    """Median of 3 by 3 pixels, which removes noise and keeps straight borders."""
    return np.asarray(Image.fromarray(overview).filter(ImageFilter.MedianFilter(3)))


def _variance(grey: Floats, window_px: int) -> Floats:
    """Local variance, shape (height, width).

    It is the minimum over the windows that contain a pixel (as in Kuwahara's filter, 1976), so
    that glass next to a border has the variance of glass.
    """
    mean = ndimage.uniform_filter(grey, window_px)
    variance = ndimage.uniform_filter(grey * grey, window_px) - mean * mean
    return np.maximum(ndimage.minimum_filter(variance, window_px), 0)


def _texture(overview: RgbArray, glass: Floats, is_glass: Bools, reach: float) -> Floats:
    """Local standard deviation of the grey value in excess of that of glass, (height, width).

    Grey values are clipped at ``reach`` levels below the glass: darker pixels are tissue by their
    colour, and a small hole must not count by the contrast of its border.
    """
    grey = np.maximum(overview.mean(axis=2, dtype=np.float32), glass.mean() - reach)
    variance = _variance(grey, _TEXTURE_PX)
    calm = np.percentile(_subsample(variance[is_glass]), 99) if is_glass.any() else 0.0
    return np.asarray(np.sqrt(np.maximum(variance - calm, 0)))


def _find_glass(pixels: RgbArray, roughness: Floats) -> tuple[Floats, Bools]:
    """Colour of the glass, shape (3,), and mask of that colour, shape (height, width) in px."""
    red, green = pixels[..., 0].astype(np.int16), pixels[..., 1].astype(np.int16)
    brightest = float(np.percentile(_subsample(green.ravel()), 99))
    # Glass transmits most light, and unlike stained tissue is hardly redder than green.
    candidate = (green >= max(120.0, 0.7 * brightest)) & (red - green <= 26)
    if candidate.any():
        candidate &= roughness <= np.percentile(_subsample(roughness[candidate]), 80)
    # Flat pure white is often not glass but the fill around the scanned area.
    fill = (pixels.min(axis=2) == 255) & (roughness == 0)
    for pool in (candidate & ~fill, candidate):
        if pool.mean() < _MIN_GLASS_SHARE:
            continue
        glass = _mode(_subsample(pixels[pool]))
        is_glass = candidate & _is_like(pixels, glass)
        if is_glass.mean() >= _MIN_GLASS_SHARE:
            return glass, is_glass
    return np.full(3, 255, np.float32), np.zeros(roughness.shape, bool)


def _subsample(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Evenly spaced subset of values, large enough for a mode or a percentile."""
    return values[:: -(-len(values) // _MAX_VALUES) or 1]


def _is_like(pixels: RgbArray, glass: Floats) -> Bools:
    """Mask of pixels near the colour of the glass, channel by channel to save memory."""
    like = np.ones(pixels.shape[:2], bool)
    for channel in range(3):
        like &= np.abs(pixels[..., channel] - glass[channel]) <= _GLASS_TOLERANCE
    return like


def _mode(colours: RgbArray) -> Floats:
    """Mode of colours of shape (n, 3): the fullest bin of 8 grey levels, refined by medians."""
    coarse = (colours >> 3).astype(np.int64)
    keys = (coarse[:, 0] << 10) | (coarse[:, 1] << 5) | coarse[:, 2]
    counts = np.bincount(keys, minlength=1 << 15).reshape(32, 32, 32)
    # Adjacent bins are summed, so that a narrow peak on their border is not split.
    counts = ndimage.convolve(counts, np.ones((2, 2, 2), np.int64), mode="constant", origin=-1)
    fullest = np.array(np.unravel_index(counts.argmax(), counts.shape))
    centre = 8.0 * fullest + 7.5
    for _ in range(3):
        near = np.abs(colours - centre).max(axis=1) <= _GLASS_TOLERANCE
        centre = np.median(colours[near], axis=0)
    return np.asarray(centre, np.float32)


def _fit_light(pixels: RgbArray, glass: Floats) -> Floats:
    """Coefficients of the glass's colour as a polynomial of the coordinates, shape (6, 3)."""
    height, width = pixels.shape[:2]
    step = max(1, math.isqrt(height * width // _FIT_PIXELS))
    colours = pixels[::step, ::step].reshape(-1, 3) - glass
    y, x = (axis[::step] for axis in _axes(height, width))
    terms = np.stack([term.ravel() for term in np.broadcast_arrays(*_terms(y[:, None], x))], 1)
    # A ridge penalty avoids extrapolation where there is glass on one side only.
    ridge = np.diag([0.0, *[2e-4 * len(terms)] * 5])
    coefficients = np.zeros((6, 3))
    for _ in range(_FIT_ROUNDS):
        fitted = np.einsum("nk,kc->nc", terms, coefficients)
        is_glass = np.abs(colours - fitted).max(axis=1) <= _GLASS_TOLERANCE
        if is_glass.mean() < _MIN_GLASS_SHARE / 2:
            break
        # Matrix products would start threads of BLAS, which keep cores from the decoders and
        # make sums depend on their number.
        normal = np.einsum("nk,nl->kl", terms[is_glass], terms[is_glass]) + ridge
        moments = np.einsum("nk,nc->kc", terms[is_glass], colours[is_glass])
        coefficients = np.linalg.solve(normal, moments)
    coefficients[0] += glass
    return coefficients.astype(np.float32)


def _axes(height: int, width: int) -> tuple[Floats, Floats]:
    """Relative coordinates of rows and columns, -0.5 to 0.5."""
    return (
        ((np.arange(height) + 0.5) / height - 0.5).astype(np.float32),
        ((np.arange(width) + 0.5) / width - 0.5).astype(np.float32),
    )


def _terms(y: Floats, x: Floats) -> tuple[Floats, ...]:
    """Terms of a polynomial of second degree."""
    return np.ones_like(y), y, x, y * y, y * x, x * x


def _darker_than_glass(pixels: RgbArray, light: Floats, is_glass: Bools) -> tuple[Floats, float]:
    """Return the grey levels of each pixel below the local glass, and the noise of the glass.

    The first is at least 0, in the channel that differs most, of shape (height, width), float32;
    the second the standard deviation of bare glass in the noisiest channel, estimated by the
    median absolute deviation.
    """
    y, x = _axes(*is_glass.shape)
    darker = np.zeros(is_glass.shape, np.float32)
    noise = 0.0
    for channel in range(3):
        local = sum(
            c * term for c, term in zip(light[:, channel], _terms(y[:, None], x), strict=True)
        )
        difference = local - pixels[..., channel]
        if is_glass.any():
            deviation = float(np.median(np.abs(_subsample(difference[is_glass]))))
            noise = max(noise, deviation / _NORMAL_MAD)
        np.maximum(darker, difference, out=darker)
    return darker, noise


def _black_fill(pixels: RgbArray, roughness: Floats) -> Bools:
    """Mask of flat and nearly black pixels, which were not scanned; tissue transmits more light."""
    return np.asarray((pixels.max(axis=2) <= _BLACK) & (roughness < 1))


def _otsu(distance: Floats) -> float:
    """Threshold of the largest variance between two groups, grey levels (Otsu, 1979)."""
    counts, edges = np.histogram(distance, bins=256, range=(0, 256))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * middles)
    mean_below = sum_below / np.maximum(below, 1)
    mean_above = (sum_below[-1] - sum_below) / np.maximum(above, 1)
    between = below * above * (mean_below - mean_above) ** 2
    return float(edges[1:][between.argmax()])


def _remove_small(distance: Floats, threshold: float, least_px: float) -> Bools:
    """Islands of at least ``least_px`` pixels; where there is none, the largest distinct one.

    On a slide of unknown resolution the area in µm² may be far off; a single clearly coloured
    island is then more likely a small biopsy than dust.
    """
    candidates = distance > threshold
    labels, n_islands = ndimage.label(candidates, structure=_EIGHT_NEIGHBOURS)
    if not n_islands:
        return candidates
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    is_kept = (sizes >= least_px) & (sizes > 0)
    if not is_kept.any():
        largest = sizes.argmax()
        colour = float(distance[labels == largest].mean())
        is_kept[largest] = sizes[largest] >= _MIN_ISLAND_PX and colour > 2 * threshold
    return np.asarray(is_kept[labels])


def _fill_small_holes(mask: Bools, least_px: float) -> Bools:
    """Fill holes of fewer than ``least_px`` pixels that are not open to the border."""
    glass = np.pad(~mask, 1, constant_values=True)
    labels, _ = ndimage.label(glass, structure=_EIGHT_NEIGHBOURS)
    is_open = np.bincount(labels.ravel()) >= least_px
    is_open[0], is_open[labels[0, 0]] = False, True
    return np.asarray(~is_open[labels[1:-1, 1:-1]])
