"""Stain normalisation after Macenko et al. (2009)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import as_json
from features.errors import MilError, SlideError
from features.slides.base import RgbArray
from features.tiling.slide_tiles import SlideTiles

__all__ = [
    "STAIN_NORMS",
    "MacenkoNormalizer",
    "StainNormalizer",
    "build_stain_normalizer",
    "require_stain_norm",
]

StainNormalizer = Callable[[RgbArray], RgbArray]
"""Function that changes the colours of pixels, shape (height, width, 3), uint8."""

_N_TILES = 16
_PERCENTILE = 99

STAIN_NORMS: Mapping[str, str] = MappingProxyType({
    "none": "",
    "macenko": as_json(
        method="macenko", library="macenko-pca", n_tiles=_N_TILES, percentile=_PERCENTILE
    ),
})  # fmt: skip
"""Methods of stain normalisation by name, and their record in the fingerprint of a bag."""

_TARGET_DENSITIES = (2.0, 1.0)  # optical densities of strong first and second stain, natural log
_DENSITY_UNIT = 255 / np.log(255)  # the library's own unit, over a white of 255
_MIN_ANGLE_DEG = 10.0  # one stain and noise measured 5, haematoxylin and eosin 40
_MIN_STAINED_PX = 1000
_PACKAGE = "macenko_pca"


def require_stain_norm(name: str) -> None:
    """Raise MilError for a method that is unknown, or whose package is missing."""
    if name not in STAIN_NORMS:
        raise MilError("stain normalisation", actual=f"{name!r}", expected=" or ".join(STAIN_NORMS))
    if name != "none" and importlib.util.find_spec(_PACKAGE) is None:
        raise MilError(
            "stain normalisation",
            actual="the package macenko-pca is not installed",
            hint="Install it: pip install 'mil-slides[stain]'",
        )


def build_stain_normalizer(name: str, slide_tiles: SlideTiles) -> StainNormalizer | None:
    """Return the stain normaliser of a slide, fitted on 16 of its tiles; None for ``none``.

    It maps pixels of shape (height, width, 3), uint8, to the same shape. The tiles are always the
    same ones. Raises SlideError if two stains cannot be separated on the slide.
    """
    if name == "none":
        return None
    tiles: list[RgbArray] = []
    for index in np.random.default_rng(0).permutation(slide_tiles.n_tiles).tolist():
        tile = slide_tiles.read(index)
        if isinstance(tile, np.ndarray):
            tiles.append(tile)
        if len(tiles) == _N_TILES:
            break
    if not tiles:
        return None  # there is nothing to embed
    return MacenkoNormalizer(
        np.concatenate(tiles),
        glass_rgb=slide_tiles.tissue.background_rgb,
        where=slide_tiles.slide.path,
    )


class MacenkoNormalizer:
    """Map of the two stains of one slide to those of a fixed reference (Macenko et al., 2009).

    The stain vectors are estimated once per slide, from tissue ``pixels`` of shape (height, width,
    3), uint8, as the outermost directions of their optical densities over the slide's own glass;
    the residual stays as it is. The reference has haematoxylin and eosin (Ruifrok and Johnston,
    2001) over white, the 99th percentile of the first at an optical density of 2, of the second
    at 1 (natural logarithm). Raises SlideError, which names ``where``, if two stains cannot be
    separated.
    """

    def __init__(self, pixels: RgbArray, *, glass_rgb: tuple[int, int, int], where: object) -> None:
        import macenko_pca  # noqa: PLC0415 - an extra

        self._library: Any = macenko_pca
        self._glass = [float(value) for value in glass_rgb]
        reference = macenko_pca.stain_color_map
        haematoxylin, eosin = (np.array(reference[name]) for name in ("hematoxylin", "eosin"))
        stains = self._separate(pixels, where)
        first = macenko_pca.find_stain_index(haematoxylin, stains[:, :2])
        self._stains = _basis(stains[:, first], stains[:, 1 - first])
        self._reference = _basis(haematoxylin, eosin)
        cosine = float(self._stains[:, 0] @ self._stains[:, 1])
        if not np.isfinite(self._stains).all() or cosine > np.cos(np.radians(_MIN_ANGLE_DEG)):
            raise _one_stain(where)
        concentrations = self._concentrations(pixels).reshape(-1, 3)[:, :2]
        strong = np.percentile(concentrations, _PERCENTILE, axis=0)
        if not (strong > 0).all():
            raise _one_stain(where)
        target = np.array(_TARGET_DENSITIES) * _DENSITY_UNIT
        self._gain = np.append(target / strong, 1.0).astype(np.float32)

    def __call__(self, pixels: RgbArray) -> RgbArray:
        """Return pixels with the reference's stains; both have shape (height, width, 3), uint8."""
        concentrations = self._concentrations(pixels) * self._gain
        rgb = self._library.reconstruct_rgb(concentrations, self._reference, bg_int=255.0)
        return np.asarray(np.rint(np.clip(rgb, 0, 255)), np.uint8)

    def _separate(self, pixels: RgbArray, where: object) -> npt.NDArray[np.float32]:
        """Directions of two stains and of the residual, as columns, shape (3, 3)."""
        intensities = _as_intensities(pixels)
        if (intensities < 0.85 * np.array(self._glass)).any(axis=2).sum() < _MIN_STAINED_PX:
            raise _one_stain(where)
        try:
            stains: npt.NDArray[np.float32] = self._library.rgb_separate_stains_macenko_pca(
                intensities, bg_int=self._glass
            )
        except BaseException as error:
            # A panic of Rust is not derived from Exception.
            if type(error).__name__ != "PanicException":
                raise
            raise _one_stain(where) from error
        return stains

    def _concentrations(self, pixels: RgbArray) -> npt.NDArray[np.float32]:
        """Concentrations of the stains and the residual, shape (height, width, 3) in px."""
        concentrations: npt.NDArray[np.float32] = self._library.rgb_color_deconvolution(
            _as_intensities(pixels), self._stains, bg_int=self._glass
        )
        return concentrations


def _as_intensities(pixels: RgbArray) -> npt.NDArray[np.float32]:
    return np.maximum(pixels, 1).astype(np.float32)


def _basis(
    first: npt.NDArray[np.floating[Any]], second: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Two stains that darken, and the residual, as unit columns, shape (3, 3)."""
    columns = [column * np.sign(column.sum()) for column in (first, second)]
    columns = [column / np.linalg.norm(column) for column in columns]
    other = np.cross(*columns)
    return np.stack([*columns, other / max(float(np.linalg.norm(other)), 1e-12)], axis=1).astype(
        np.float32
    )


def _one_stain(where: object) -> SlideError:
    return SlideError(
        where,
        actual="two stains cannot be separated",
        expected="a slide with two stains",
        hint="Embed these slides without --stain-norm.",
    )
