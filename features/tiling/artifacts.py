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
_REACH_PX = 4  # of the sums of 9 by 9 pixels
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
    bool, is where the tile is darker than glass, in ``n_foreground`` pixels. ``image`` is the tile
    as Pillow's.
    """

    def __init__(self, tile: RgbArray, glass_rgb: tuple[int, int, int]) -> None:
        self.glass_rgb = glass_rgb
        self.image = Image.fromarray(tile)
        # Channel by channel: numpy is several times slower along an axis of three.
        some = np.ascontiguousarray(tile[::_STRIDE, ::_STRIDE].transpose(2, 0, 1))
        shares = some.astype(np.float32)
        shares /= np.maximum(np.array(glass_rgb, np.float32), 1)[:, None, None]
        self.red, self.green, self.blue = shares
        self.highest, self.lowest = shares.max(axis=0), shares.min(axis=0)
        self.foreground = self.lowest < 1 - _MIN_ABSORPTION
        self.n_foreground = int(np.count_nonzero(self.foreground))


def _share(mask: npt.NDArray[np.bool_]) -> float:
    """Share of a mask that is True: ten times as fast as its mean."""
    return int(np.count_nonzero(mask)) / mask.size


def _is_inked(light: _Transmission) -> bool:
    inked = light.green - light.red > 0.12
    if np.count_nonzero(inked):
        inked &= light.lowest < 0.75
    # Ink over tissue, and dense blue ink, let hardly any red and green light through.
    side_px = min(_BLOCK_PX, *light.image.size)
    blocks = np.asarray(light.image.reduce(side_px), np.float32)
    red, green, blue = (blocks[..., i] / max(light.glass_rgb[i], 1) for i in range(3))
    dense = (red < 0.45) & (green > 0.95 * red) & (blue > 1.6 * red)
    if dense.any():
        for axis in range(2):
            dense = np.repeat(dense, -(-side_px // _STRIDE), axis=axis)
        inked |= dense[: inked.shape[0], : inked.shape[1]]
    return _share(inked) > 0.1


def _is_grey(light: _Transmission) -> bool:
    if light.n_foreground <= 0.02 * light.foreground.size:
        return False
    colourless = light.highest - light.lowest < 0.06
    if np.count_nonzero(colourless) <= 0.8 * light.n_foreground:
        return False  # even if all of it is foreground
    colourless &= light.foreground
    return int(np.count_nonzero(colourless)) > 0.8 * light.n_foreground


def _is_blurred(light: _Transmission) -> bool:
    if light.n_foreground / light.foreground.size < 0.1:
        return False
    grey = np.asarray(light.image.convert("L"), np.int16)
    height, width = grey.shape
    around = np.pad(grey, _REACH_PX, mode="symmetric")
    row_px = around.shape[1]
    levels, smooth, smoother = _sums_of_9_and_81(around)
    mask = np.zeros((height, row_px), np.int16)  # all bits of a pixel inside
    twice = np.where(light.foreground, np.int32(-1), np.int32(0)).view(np.int16)[:, :width]
    for row in range(_STRIDE):
        mask[row::_STRIDE, :width] = twice[: len(range(row, height, _STRIDE))]
    inside = mask.ravel()[: len(smoother)]
    n_inside = int(np.count_nonzero(inside))
    # Rounding to whole grey levels is as fine as detail can be; it hides what heavy blur leaves.
    variance = _variance(9 * levels - smooth, inside, n_inside)
    detail = math.sqrt(max(variance / 81 - _ROUNDING_VARIANCE, 0.0))
    coarse = math.sqrt(max(_variance(9 * smooth - smoother, inside, n_inside), 0.0)) / 81
    return coarse > _LEAST_COARSE and detail < _BLUR_RATIO * coarse


def _sums_of_9_and_81(around: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int16], ...]:
    """Each pixel, and the sums of 3 by 3 and of 9 by 9 around it, from a padded tile.

    Rows follow one another without a gap, and sums that span their ends are of no use. numpy adds
    up whole numbers in one long row four times as fast as row by row, and floats slower still.
    """
    row, flat = around.shape[1], around.ravel()
    three = flat[: -2 * row] + flat[row:-row]
    three += flat[2 * row :]
    nine = three[:-2] + three[1:-1]
    nine += three[2:]
    rows = nine[: -6 * row] + nine[3 * row : -3 * row]
    rows += nine[6 * row :]
    sums = rows[:-6] + rows[3:-3]
    sums += rows[6:]
    centre = _REACH_PX * (row + 1)
    return flat[centre:-centre], nine[3 * (row + 1) : -3 * (row + 1)], sums


def _variance(values: npt.NDArray[np.int16], inside: npt.NDArray[np.int16], n_inside: int) -> float:
    """Variance of the values where ``inside`` has all bits; it has none elsewhere."""
    values &= inside
    floats = values.astype(np.float32)
    mean = float(floats.sum()) / n_inside
    return float(np.square(floats, out=floats).sum()) / n_inside - mean * mean


RULES: dict[str, ArtifactRule] = {
    rule.name: rule
    for rule in (
        ArtifactRule(
            name="dark",
            meaning="black fill, black ink, borders of the scan: more than half of the tile lets "
            "less than 25 % of the glass's light through in every channel",
            applies=lambda light: _share(light.highest < 0.25) > 0.5,
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
            applies=lambda light: _share(light.red < 0.35) > 0.5,
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
