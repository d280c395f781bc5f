"""Stains made alike: the two stains of every slide brought to one colour and one strength."""

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
from features.tiling.slide_tiles import SlideTiles, load_tile

__all__ = [
    "STAIN_NORMS",
    "MacenkoNormalizer",
    "Recolour",
    "build_stain_normalizer",
    "require_stain_norm",
]

Recolour = Callable[[RgbArray], RgbArray]
"""Gives pixels, shape (height, width, 3), uint8, other colours."""

_TILES_LOOKED_AT = 16
_PERCENTILE = 99

STAIN_NORMS: Mapping[str, str] = MappingProxyType({
    "none": "",
    "macenko": as_json(
        method="macenko", library="macenko-pca", n_tiles=_TILES_LOOKED_AT, percentile=_PERCENTILE
    ),
})  # fmt: skip
"""How stains may be made alike, by name, and how the fingerprint of a bag tells it."""

_DENSITIES = (2.0, 1.0)  # of the first and the second stain where they are strong, natural log
_UNITS_OF_DENSITY = 255 / np.log(255)  # the library's own, over a white of 255
_LEAST_ANGLE_DEG = 10.0  # one stain and noise came to 5, haematoxylin and eosin to 40
_LEAST_STAINED = 1000  # pixels
_PACKAGE = "macenko_pca"


def require_stain_norm(name: str) -> None:
    """Refuse what is not known or not installed.

    Raises
    ------
    MilError
        If there is no such way, or its package is missing.
    """
    if name not in STAIN_NORMS:
        raise MilError("stain normalisation", actual=f"{name!r}", expected=" or ".join(STAIN_NORMS))
    if name != "none" and importlib.util.find_spec(_PACKAGE) is None:
        raise MilError(
            "stain normalisation",
            actual="the package macenko-pca is not installed",
            hint="Install it: pip install 'mil-slides[stain]'",
        )


def build_stain_normalizer(name: str, survey: SlideTiles) -> Recolour | None:
    """What is done to the colours of a slide's tiles; None for nothing.

    Looks at 16 tiles of the slide, always the same ones.

    Parameters
    ----------
    name
        One of :data:`STAIN_NORMS`.
    survey
        The open slide and its tiles.

    Raises
    ------
    SlideError
        If two stains cannot be told apart on it.
    """
    if name == "none":
        return None
    tiles: list[RgbArray] = []
    for index in np.random.default_rng(0).permutation(survey.n_tiles).tolist():
        found = load_tile(survey.slide, survey.grid, survey.judge, index)
        if isinstance(found, np.ndarray):
            tiles.append(found)
        if len(tiles) == _TILES_LOOKED_AT:
            break
    if not tiles:
        return None  # there is nothing to embed
    return MacenkoNormalizer(
        np.concatenate(tiles),
        glass_rgb=survey.tissue.background_rgb,
        where=survey.slide.path,
    )


class MacenkoNormalizer:
    """Brings the stains of one slide to those of a fixed reference (Macenko et al., 2009).

    The two stains are found once for the slide, as the outermost directions of its optical
    densities over its own glass; what is neither of them stays as it is. The reference has
    haematoxylin and eosin (Ruifrok and Johnston, 2001) over white, the 99th percentile of the
    first at an optical density of 2, of the second at 1 (natural logarithm).

    Parameters
    ----------
    pixels
        Tissue of the slide, shape (height, width, 3), uint8.
    glass_rgb
        Colour of its glass.
    where
        The slide, for messages.

    Raises
    ------
    SlideError
        If two stains cannot be told apart.
    """

    def __init__(self, pixels: RgbArray, *, glass_rgb: tuple[int, int, int], where: object) -> None:
        import macenko_pca  # noqa: PLC0415 - an extra

        self._library: Any = macenko_pca
        self._glass = [float(value) for value in glass_rgb]
        reference = macenko_pca.stain_color_map
        haematoxylin, eosin = (np.array(reference[name]) for name in ("hematoxylin", "eosin"))
        found = self._separate(pixels, where)
        first = macenko_pca.find_stain_index(haematoxylin, found[:, :2])
        self._stains = _basis(found[:, first], found[:, 1 - first])
        self._reference = _basis(haematoxylin, eosin)
        _require_two(self._stains, where)
        amounts = self._concentrations(pixels).reshape(-1, 3)[:, :2]
        strong = np.percentile(amounts, _PERCENTILE, axis=0)
        if not (strong > 0).all():
            raise _one_stain(where)
        wanted = np.array(_DENSITIES) * _UNITS_OF_DENSITY
        self._gain = np.append(wanted / strong, 1.0).astype(np.float32)

    def __call__(self, pixels: RgbArray) -> RgbArray:
        """The pixels as if they were stained like the reference.

        Parameters
        ----------
        pixels
            Shape (height, width, 3), uint8.
        """
        amounts = self._concentrations(pixels) * self._gain
        light = self._library.reconstruct_rgb(amounts, self._reference, bg_int=255.0)
        return np.asarray(np.rint(np.clip(light, 0, 255)), np.uint8)

    def _separate(self, pixels: RgbArray, where: object) -> npt.NDArray[np.float32]:
        """Directions of two stains and of what is neither, as columns, shape (3, 3)."""
        light = _as_light(pixels)
        if (light < 0.85 * np.array(self._glass)).any(axis=2).sum() < _LEAST_STAINED:
            raise _one_stain(where)
        try:
            found: npt.NDArray[np.float32] = self._library.rgb_separate_stains_macenko_pca(
                light, bg_int=self._glass
            )
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust, and no Exception in Python
                raise
            raise _one_stain(where) from error
        return found

    def _concentrations(self, pixels: RgbArray) -> npt.NDArray[np.float32]:
        """Amounts of the stains and of what is neither, shape (height, width, 3)."""
        amounts: npt.NDArray[np.float32] = self._library.rgb_color_deconvolution(
            _as_light(pixels), self._stains, bg_int=self._glass
        )
        return amounts


def _as_light(pixels: RgbArray) -> npt.NDArray[np.float32]:
    return np.maximum(pixels, 1).astype(np.float32)


def _basis(
    first: npt.NDArray[np.floating[Any]], second: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Two stains that darken, and what is neither, as unit columns, shape (3, 3)."""
    columns = [column * np.sign(column.sum()) for column in (first, second)]
    columns = [column / np.linalg.norm(column) for column in columns]
    other = np.cross(*columns)
    return np.stack([*columns, other / max(float(np.linalg.norm(other)), 1e-12)], axis=1).astype(
        np.float32
    )


def _require_two(stains: npt.NDArray[np.float32], where: object) -> None:
    """Refuse stains that are one, or not numbers."""
    cosine = float(stains[:, 0] @ stains[:, 1])
    if not np.isfinite(stains).all() or cosine > np.cos(np.radians(_LEAST_ANGLE_DEG)):
        raise _one_stain(where)


def _one_stain(where: object) -> SlideError:
    return SlideError(
        where,
        actual="two stains cannot be told apart",
        expected="a slide with two stains",
        hint="Embed these slides without --stain-norm.",
    )
