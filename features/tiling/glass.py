"""Colour and light of the glass on an overview of a slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from features.slides.base import RgbArray
from features.tiling.window_filters import window_mean, window_min

__all__ = ["NORMAL_MAD", "Glass", "find_glass", "grey_levels", "is_fill", "subsample"]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

NORMAL_MAD = 0.6745
"""Median absolute deviation of a normal variable of standard deviation 1."""

_WHITE = 245.0  # distances are given as if every glass were as bright as common white glass

_FLAT = 1.0  # covariance of channels up to which a pixel may be white glass, levels squared
_FLAT_PX = 9  # wider than the grain of tissue, of one to three pixels
_FLAT_NEAR_PX = 5  # to the centre of the flattest window
_MIN_GREEN = 50  # glass lets a fifth of the light through
_LEAST_OF_BRIGHTEST = 0.4  # in each channel: aged, yellow glass has a half, ink and stains less
_MAX_REDNESS = 72  # red minus green: rose glass has up to 50, stained tissue more
_MIN_SHARE = 0.01  # of the picture: a smaller area is a pale spot and not glass
_PINK = 26  # red minus green, from which on pale tissue is likelier than glass,
_MIN_PINK_SHARE = 0.015  # unless there is more of it
_MIN_SHARE_OF_PEAK = 0.04  # of the commonest flat colour
_MIN_FLAT_SHARE = 0.4  # of the pixels of one colour: pale spots in textured tissue are rarely flat
_FILL = 254  # of 255, in the darkest channel
_STRAIGHT_PX = 15
_STRAIGHT_VARIANCE = 0.4  # px² across the border: a line of pixels has 0.1, a ragged edge over 1
_SIMILAR = 12.0  # grey levels
_TOLERANCE = 4.0  # grey levels below the local glass up to which a pixel is glass
_TOLERANCE_SIGMAS = 3.0
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601, 2011), as in JPEG
_MOST_OF_LUMA = 3.0  # stains absorb up to 2 times as much in one channel as in luma
_FEW_BRIGHTER = 0.25  # of the glass: half of it is brighter where the noise is normal
_FIT_PIXELS = 20_000
_FIT_ROUNDS = 12
_FIT_REACH = (12.0, 8.0)  # grey levels, in the first rounds where light has steps
_SMOOTHEST = 0.05  # grey levels, up to which strong compression made blocks of the noise
_MIN_FITTED = 50
_MAX_VALUES = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Glass:
    """Glass of a slide; where a picture holds none, it is white and ``is_flat`` all False.

    ``rgb`` is its commonest colour, shape (3,), float32; ``light`` the polynomial of second degree
    in y and x that its colour follows, shape (6, 3). ``is_flat``, shape (height, width), bool, is
    where a pixel is as smooth as glass, and ``tolerance`` how far below the local glass such a
    pixel still is glass, grey levels.
    """

    rgb: Floats
    light: Floats
    is_flat: Bools
    tolerance: float

    @property
    def relative_brightness(self) -> float:
        """Mean of ``rgb`` as a share of that of common white glass."""
        return max(_MIN_GREEN, float(self.rgb.mean())) / _WHITE

    def compare(self, pixels: RgbArray) -> tuple[Floats, Bools, float]:
        """Return how much darker than the glass pixels are, where the glass is, and its noise.

        The first, shape (height, width), float32, is at least 0, in the channel that differs most,
        in grey levels of a white glass: the same tissue has the same on glass of any brightness.
        It is at most three times the difference in luma, since JPEG shifts the colour of whole
        blocks and hardly their luma. The second is bool of the same shape; the noise is its
        standard deviation in the noisiest channel, from the brighter half, which holds no tissue.
        """
        y, x = _axes(*self.is_flat.shape)
        terms = _terms(y[:, None], x)
        is_glass = self.is_flat.copy()
        darker = np.zeros(is_glass.shape, np.float32)
        locals_ = [
            sum(c * term for c, term in zip(self.light[:, channel], terms, strict=True))
            for channel in range(3)
        ]
        for channel, local in enumerate(locals_):
            difference = local - pixels[..., channel]
            is_glass &= (difference <= self.tolerance) & (difference >= -_SIMILAR)
        noise = 0.0
        luma = np.zeros(is_glass.shape, np.float32)
        for channel, (local, weight) in enumerate(zip(locals_, _LUMA, strict=True)):
            difference = local - pixels[..., channel]
            difference *= _WHITE / np.maximum(local, _MIN_GREEN)
            noise = max(noise, _noise_of(subsample(difference[is_glass])))
            np.maximum(darker, difference, out=darker)
            difference *= _MOST_OF_LUMA * weight
            luma += difference
        np.minimum(darker, np.maximum(luma, 0, out=luma), out=darker)
        return darker, is_glass, noise


def _noise_of(differences: Floats) -> float:
    """Standard deviation of normal noise in pixels of glass, of which some may hold pale tissue.

    Where few are brighter than the glass, as after strong compression, they are its extremes.
    """
    brighter = differences[differences < 0]
    if not brighter.size:
        return 0.0
    share = brighter.size / differences.size
    sigmas = NORMAL_MAD if share >= _FEW_BRIGHTER else -NormalDist().inv_cdf(share / 2)
    return -float(np.median(brighter)) / sigmas


def find_glass(smooth: RgbArray) -> Glass:
    """Return the glass of a smoothed picture, shape (height, width, 3), uint8.

    Stains only absorb light, so the glass is the brightest colour of which there is enough and of
    which most pixels are flat: their channels do not vary together, as they do in tissue. Its tint
    does not matter. Pure white with straight borders is the fill around a scanned area.
    """
    red, green = smooth[..., 0].astype(np.int16), smooth[..., 1].astype(np.int16)
    is_flat = (green >= _MIN_GREEN) & (red - green <= _MAX_REDNESS) & _is_flat(smooth)
    is_flat &= lowest(smooth) >= _LEAST_OF_BRIGHTEST * highest(smooth)
    rgb = _brightest_flat_colour(smooth, is_flat)
    if rgb is None:
        nothing = np.zeros(is_flat.shape, bool)
        white = np.full(3, 255, np.float32)
        return Glass(rgb=white, light=_constant(white), is_flat=nothing, tolerance=_TOLERANCE)
    fill = lowest(smooth) >= _FILL
    if rgb.min() >= _FILL and fill.mean() >= _MIN_SHARE:
        beside = is_flat & ~ndimage.binary_dilation(fill, iterations=2)
        other = _brightest_flat_colour(smooth, beside)
        if other is not None and _has_straight_border(fill, _is_like(smooth, other)):
            rgb, is_flat = other, is_flat & ~fill
    roughness = _roughness(smooth, is_flat)
    tolerance = max(_TOLERANCE, _TOLERANCE_SIGMAS * roughness)
    reaches = _FIT_REACH if roughness < _SMOOTHEST else ()
    light = _fit_light(smooth, rgb, is_flat, tolerance, reaches)
    return Glass(rgb=rgb, light=light, is_flat=is_flat, tolerance=tolerance)


def is_fill(smooth: RgbArray, black: int) -> Bools:
    """Return where flat and nearly black pixels were not scanned, shape (height, width)."""
    grey = grey_levels(smooth)
    mean = window_mean(grey, 3)
    variance = window_mean(grey * grey, 3) - mean * mean
    return np.asarray((highest(smooth) <= black) & (window_min(variance, 3) < 1))


def highest(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the largest channel of pixels, shape (..., 3), seven times as fast as ``max``."""
    return np.asarray(np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]))


def lowest(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the smallest channel of pixels, shape (..., 3)."""
    return np.asarray(np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]))


def grey_levels(pixels: RgbArray) -> Floats:
    """Return the mean of the channels of pixels, shape (height, width, 3), float32."""
    grey = pixels[..., 0].astype(np.float32)
    grey += pixels[..., 1]
    grey += pixels[..., 2]
    grey /= 3
    return grey


def subsample(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return evenly spaced pixels, enough for a mode or a percentile, shape (n, ...)."""
    return values[:: -(-len(values) // _MAX_VALUES) or 1]


def _is_flat(smooth: RgbArray) -> Bools:
    """Mask of pixels whose channels hardly vary together.

    The covariance of green with the other two is that of light and tissue; the sensor's noise is
    independent in each channel, and smoothing leaves little of it. The minimum over the windows
    around a pixel (as in Kuwahara's filter, 1976) gives glass next to a border that of glass.
    """
    green = smooth[..., 1].astype(np.float32)
    limit = np.maximum(green, _MIN_GREEN) * (_FLAT / _WHITE)
    others = smooth[..., 0].astype(np.float32)
    others += smooth[..., 2]
    others /= 2
    green -= green.mean()  # small numbers, of which float32 keeps the squares exactly enough
    others -= others.mean()
    covariance = window_mean(green * others, _FLAT_PX)
    covariance -= window_mean(green, _FLAT_PX) * window_mean(others, _FLAT_PX)
    return np.asarray(window_min(covariance, _FLAT_NEAR_PX) <= limit)


def _brightest_flat_colour(pixels: RgbArray, is_flat: Bools) -> Floats | None:
    """Colour of the brightest peak among flat pixels, shape (3,); None if there is none.

    Colours are counted in bins of 8 grey levels, adjacent ones together, so that a narrow peak on
    their border is not split.
    """
    colours = pixels.reshape(-1, 3)
    step = -(-len(colours) // _MAX_VALUES)
    colours = colours[::step]
    flat = colours[np.flatnonzero(is_flat.ravel()[::step])]
    n_flat = _count_colours(flat)
    least = max(_MIN_SHARE * len(colours), _MIN_SHARE_OF_PEAK * n_flat.max())
    bins = 8.0 * np.arange(32)
    is_pink = bins[:, None, None] - bins[:, None] > _PINK  # by red and green
    enough = np.where(is_pink, max(least, _MIN_PINK_SHARE * len(colours)), least)
    peaks = np.argwhere((n_flat >= enough) & (n_flat >= _MIN_FLAT_SHARE * _count_colours(colours)))
    if not len(peaks):
        return None
    at = peaks[peaks.sum(axis=1).argmax()]
    for _ in range(len(n_flat)):  # climbs to the top of the peak
        low = np.maximum(at - 1, 0)
        around = n_flat[tuple(slice(start, stop) for start, stop in zip(low, at + 2, strict=True))]
        top = low + np.array(np.unravel_index(around.argmax(), around.shape))
        if (top == at).all():
            break
        at = top
    centre = 8.0 * at + 7.5
    channels = np.ascontiguousarray(flat.T)
    for reach in (12, 8, 6, 6):
        near = np.ones(len(flat), bool)
        for levels, middle in zip(channels, centre.tolist(), strict=True):
            near &= levels >= math.ceil(middle - reach)
            near &= levels <= math.floor(middle + reach)
        if near.any():
            centre = np.array([np.median(levels[near]) for levels in channels])
    return np.asarray(centre, np.float32)


def _count_colours(colours: RgbArray) -> npt.NDArray[np.int64]:
    red, green, blue = ((colours[:, channel] >> 3).astype(np.uint16) for channel in range(3))
    keys = (red << 10) | (green << 5) | blue
    counts = np.bincount(keys, minlength=1 << 15).reshape(32, 32, 32)
    return np.asarray(
        ndimage.convolve(counts, np.ones((2, 2, 2), np.int64), mode="constant", origin=-1)
    )


def _has_straight_border(fill: Bools, glass: Bools) -> bool:
    """Whether the border between fill and glass consists of lines, as that of a scanned area."""
    edge = ndimage.binary_dilation(fill) & ~fill & ndimage.binary_dilation(glass, iterations=3)
    edge[:4], edge[-4:], edge[:, :4], edge[:, -4:] = False, False, False, False
    if edge.sum() < _STRAIGHT_PX:
        return False
    y, x = (axis[:, None] if is_row else axis for is_row, axis in
            ((1, np.arange(edge.shape[0], dtype=np.float64)),
             (0, np.arange(edge.shape[1], dtype=np.float64))))  # fmt: skip

    def local_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(
            ndimage.uniform_filter(values * edge, _STRAIGHT_PX, mode="constant")[edge]
        )

    n = local_mean(np.ones((1, 1)))
    mean_y, mean_x = local_mean(y) / n, local_mean(x) / n
    yy, xx = local_mean(y * y) / n - mean_y**2, local_mean(x * x) / n - mean_x**2
    xy = local_mean(y * x) / n - mean_y * mean_x
    across = (yy + xx) / 2 - np.hypot((yy - xx) / 2, xy)  # the smaller principal variance
    return float((across < _STRAIGHT_VARIANCE).mean()) > 0.7


def _is_like(pixels: RgbArray, rgb: Floats) -> Bools:
    """Mask of pixels near a colour, channel by channel to save memory."""
    like = np.ones(pixels.shape[:2], bool)
    for channel in range(3):
        like &= np.abs(pixels[..., channel] - rgb[channel]) <= _SIMILAR
    return like


def _roughness(pixels: RgbArray, is_flat: Bools) -> float:
    """Standard deviation of flat pixels around their neighbourhood, noisiest channel."""
    worst = 0.0
    for channel in range(3):
        values = pixels[..., channel].astype(np.float32)
        values -= window_mean(values, 7)
        worst = max(worst, float(np.median(np.abs(subsample(values[is_flat])))) / NORMAL_MAD)
    return worst


def _fit_light(
    pixels: RgbArray,
    rgb: Floats,
    is_flat: Bools,
    tolerance: float,
    reaches: tuple[float, ...],
) -> Floats:
    """Coefficients of the glass's colour as a polynomial of the coordinates, shape (6, 3).

    Each round takes the flat pixels that the last one explains; pixels may be much brighter than
    the glass, but hardly darker, since those are tissue. The first rounds may allow more, by
    ``reaches``, so that the fit gets over steps in the light of compressed pictures.
    """
    height, width = is_flat.shape
    step = max(1, math.isqrt(height * width // _FIT_PIXELS))
    chosen = is_flat[::step, ::step].ravel()
    colours = np.ascontiguousarray((pixels[::step, ::step].reshape(-1, 3)[chosen] - rgb).T)
    y, x = (axis[::step] for axis in _axes(height, width))
    terms = np.stack([term.ravel() for term in np.broadcast_arrays(*_terms(y[:, None], x))])
    # A ridge penalty avoids extrapolation where there is glass on one side only.
    ridge = np.diag([0.0, *[2e-4 * terms.shape[1]] * 5])
    terms = np.ascontiguousarray(terms[:, chosen], np.float64)
    coefficients = np.zeros((6, 3))
    before = None
    for fit_round in range(_FIT_ROUNDS):
        is_narrow = fit_round >= len(reaches)
        reach = tolerance if is_narrow else max(tolerance, reaches[fit_round])
        darker = np.einsum("kn,kc->cn", terms, coefficients) - colours
        is_glass = (darker.max(axis=0) <= reach) & (darker.min(axis=0) >= -_SIMILAR)
        is_same = is_narrow and before is not None and bool((is_glass == before).all())
        if is_same or is_glass.sum() < _MIN_FITTED:
            break  # the same pixels have the same fit
        before = is_glass
        # Matrix products would start threads of BLAS, which keep cores from the decoders and
        # make sums depend on their number.
        used = terms * is_glass
        normal = np.einsum("kn,ln->kl", used, terms) + ridge
        moments = np.einsum("kn,cn->kc", used, colours)
        coefficients = np.linalg.solve(normal, moments)
    coefficients += _constant(rgb)
    return coefficients.astype(np.float32)


def _constant(rgb: Floats) -> Floats:
    """Coefficients of even light, shape (6, 3)."""
    coefficients = np.zeros((6, 3), np.float32)
    coefficients[0] = rgb
    return coefficients


def _axes(height: int, width: int) -> tuple[Floats, Floats]:
    """Relative coordinates of rows and columns, -0.5 to 0.5."""
    return (
        ((np.arange(height) + 0.5) / height - 0.5).astype(np.float32),
        ((np.arange(width) + 0.5) / width - 0.5).astype(np.float32),
    )


def _terms(y: Floats, x: Floats) -> tuple[Floats, ...]:
    """Terms of a polynomial of second degree."""
    return np.ones_like(y), y, x, y * y, y * x, x * x
