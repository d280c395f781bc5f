"""Artefact rules that reject tiles: ink, black fill, grey edges, folds and blur."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from features.errors import MilError
from features.slides.base import RgbArray

__all__ = [
    "RULES",
    "ArtifactDetector",
    "ArtifactRule",
    "artifact_detector",
    "parse_rules",
    "require_rules",
]

ArtifactDetector = Callable[[RgbArray], str]
"""Function from a tile, shape (tile_px, tile_px, 3), uint8, to the name of the rejecting rule;
empty if the tile is kept."""

_STRIDE = 2  # every second pixel of every second row is enough to measure colours
_BLOCK_PX = 16  # wider than nuclei, which may be as blue as ink, and narrower than a pen's stroke
_BLUR_RATIO = 0.18
_ROUNDING_VARIANCE = 0.11  # of 3 channels and their grey, 1/12 each, less the mean of 9 pixels
_LEAST_COARSE = 0.4  # grey levels; what is flatter has no structure that could be blurred
_MIN_ABSORPTION = 0.12  # share of the glass's light, from which on a pixel counts as foreground


@dataclass(frozen=True, kw_only=True)
class ArtifactRule:
    """One reason to reject a tile, shape (side, side, 3) in px, uint8.

    ``name`` is used on the command line and in tables, ``meaning`` explains the thresholds to
    users; ``applies`` returns True for an artefact.
    """

    name: str
    meaning: str
    applies: Callable[[_Transmission], bool]


class _Transmission:
    """Light transmitted through a tile, relative to the glass; computed once per tile.

    ``red``, ``green`` and ``blue`` are the shares of the glass's light, ``highest`` and ``lowest``
    the largest and smallest of the three, each of shape (rows, columns), float32; ``foreground``,
    bool, is where the tile is darker than glass.
    """

    def __init__(self, tile: RgbArray, glass_rgb: tuple[int, int, int]) -> None:
        self.tile, self.glass_rgb = tile, glass_rgb
        some = tile[::_STRIDE, ::_STRIDE].astype(np.float32)
        self.red, self.green, self.blue = (some[..., i] / max(glass_rgb[i], 1) for i in range(3))
        # Channel by channel: a reduction over an axis of three is five times slower in NumPy.
        self.highest = np.maximum(np.maximum(self.red, self.green), self.blue)
        self.lowest = np.minimum(np.minimum(self.red, self.green), self.blue)
        self.foreground = self.lowest < 1 - _MIN_ABSORPTION


def _is_inked(light: _Transmission) -> bool:
    clear = (light.green - light.red > 0.12) & (light.lowest < 0.75)
    # Ink over tissue, and dense blue ink, let hardly any red and green light through.
    side_px = min(_BLOCK_PX, *light.tile.shape[:2])
    blocks = np.asarray(Image.fromarray(light.tile).reduce(side_px), np.float32)
    red, green, blue = (blocks[..., i] / max(light.glass_rgb[i], 1) for i in range(3))
    dense = (red < 0.45) & (green > 0.95 * red) & (blue > 1.6 * red)
    for axis in range(2):
        dense = np.repeat(dense, -(-side_px // _STRIDE), axis=axis)
    rows, columns = clear.shape
    return float((clear | dense[:rows, :columns]).mean()) > 0.1


def _is_grey(light: _Transmission) -> bool:
    colourless = light.foreground & (light.highest - light.lowest < 0.06)
    n_foreground = int(light.foreground.sum())
    is_enough = n_foreground > 0.02 * light.foreground.size
    return is_enough and float(colourless.sum()) > 0.8 * n_foreground


def _is_blurred(light: _Transmission) -> bool:
    if light.foreground.mean() < 0.1:
        return False
    grey = np.asarray(Image.fromarray(light.tile).convert("L"), np.int16)
    mask = np.repeat(np.repeat(light.foreground, _STRIDE, axis=0), _STRIDE, axis=1)
    mask = mask[: grey.shape[0], : grey.shape[1]]
    smooth, smoother = _sums_of_9_and_81(grey)
    # Rounding to whole grey levels is as fine as detail can be; it hides what heavy blur leaves.
    detail = math.sqrt(max(_variance(9 * grey - smooth, mask) / 81 - _ROUNDING_VARIANCE, 0.0))
    coarse = math.sqrt(max(_variance(9 * smooth - smoother, mask), 0.0)) / 81
    return coarse > _LEAST_COARSE and detail < _BLUR_RATIO * coarse


def _sums_of_9_and_81(grey: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int16], ...]:
    """Sums of 3 by 3 and of 9 by 9 pixels around each; whole numbers add up five times as fast."""
    around = np.pad(grey, 4, mode="symmetric")
    rows = around[:-2] + around[1:-1] + around[2:]
    nine = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    rows = nine[:-6] + nine[3:-3] + nine[6:]
    return nine[3:-3, 3:-3], rows[:, :-6] + rows[:, 3:-3] + rows[:, 6:]


def _variance(values: npt.NDArray[np.int16], mask: npt.NDArray[np.bool_]) -> float:
    """Variance of the values where the mask is True."""
    inside = (values * mask).astype(np.float32)
    n_inside = int(np.count_nonzero(mask))
    mean = float(inside.sum()) / n_inside
    return float(np.square(inside, out=inside).sum()) / n_inside - mean * mean


RULES: dict[str, ArtifactRule] = {
    rule.name: rule
    for rule in (
        ArtifactRule(
            name="dark",
            meaning="black fill, black ink, borders of the scan: more than half of the tile lets "
            "less than 25 % of the glass's light through in every channel",
            applies=lambda light: float((light.highest < 0.25).mean()) > 0.5,
        ),
        ArtifactRule(
            name="ink",
            meaning="green or blue pen: over 10 % of the tile lets clearly more green than red "
            "light through (by 12 % of the glass's), which no red or purple stain does, or, on "
            "average over 16 px, less than 45 % of the red and 1.6 times as much blue light. "
            "Red ink has the colour of red cells and is not recognised",
            applies=_is_inked,
        ),
        ArtifactRule(
            name="grey",
            meaning="edges of coverslips, bubbles, dust, scratches: 80 % of what is darker than "
            "the glass by 12 % has no colour (channels within 6 %)",
            applies=_is_grey,
        ),
        ArtifactRule(
            name="fold",
            meaning="tissue folded until it hides all detail: over half of the tile lets less "
            "than 35 % of the red light through, where stains are clearest",
            applies=lambda light: float((light.red < 0.35).mean()) > 0.5,
        ),
        ArtifactRule(
            name="blur",
            meaning="out of focus: in tissue, detail finer than 3 px is less than 0.18 of that of "
            "3 to 9 px (standard deviations of the grey value)",
            applies=_is_blurred,
        ),
    )
}
"""All rules by name, in the order of application; the first that applies rejects the tile.

The ideas are those of quality control for slides: ink and coverslip edges by colour (HistoQC,
Janowczyk et al., 2019), folds by their darkness (Bautista and Yagi, 2009), focus by the share of
fine detail (Pech-Pacheco et al., 2000). The thresholds were set on real tiles; see the reference.
"""


def parse_rules(text: str) -> tuple[str, ...]:
    """Return the rules named in a text: ``all``, ``none``, or names separated by commas.

    Raises MilError if a name is not that of a rule.

    Examples
    --------
    >>> parse_rules("blur, ink")
    ('blur', 'ink')
    """
    if text in {"all", "none"}:
        return tuple(RULES) if text == "all" else ()
    names = tuple(name.strip() for name in text.split(","))
    require_rules(names)
    return names


def require_rules(names: Sequence[str]) -> None:
    """Raise MilError for a name that is not that of a rule."""
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise MilError(
            "tile rules", actual=f"{unknown[0]!r}", expected=f"any of {', '.join(RULES)}"
        )


def artifact_detector(names: Sequence[str], *, glass_rgb: tuple[int, int, int]) -> ArtifactDetector:
    """Return the artefact detector of one slide, for tiles of shape (tile_px, tile_px, 3), uint8.

    It applies the rules of :data:`RULES` that ``names`` lists; without any, every tile is kept.
    Colours of pixels are measured relative to that of the slide's glass.
    """
    rules = [rule for name, rule in RULES.items() if name in names]

    def detect(tile: RgbArray) -> str:
        light = _Transmission(tile, glass_rgb)
        return next((rule.name for rule in rules if rule.applies(light)), "")

    return detect
