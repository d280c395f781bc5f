"""Tiles to leave out: ink, black fill, grey edges, folds and blur, each by a rule of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

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
"""Names the reason why a tile, shape (tile_px, tile_px, 3), is left out; empty if it is kept."""

_STRIDE = 2  # colours are judged on every second pixel of every second row
_BLUR_RATIO = 0.18
_SEEN = 0.12  # share of the glass's light that something in a tile takes away, at least


@dataclass(frozen=True, kw_only=True)
class ArtifactRule:
    """One reason to leave a tile out."""

    name: str
    """Its name on the command line and in the tables."""
    meaning: str
    """What it finds and how, for people."""
    applies: Callable[[_View], bool]
    """Whether it speaks against a tile."""


class _View:
    """What the rules look at, computed once a tile.

    ``red``, ``green`` and ``blue`` are the shares of the glass's light that come through, each of
    shape (rows, columns); ``most`` and ``least`` the largest and smallest of the three; ``seen`` is
    where something lies on the glass.
    """

    def __init__(self, tile: RgbArray, glass_rgb: tuple[int, int, int]) -> None:
        self.tile = tile
        some = tile[::_STRIDE, ::_STRIDE].astype(np.float32)
        self.red, self.green, self.blue = (some[..., i] / max(glass_rgb[i], 1) for i in range(3))
        # Channel by channel: a reduction over an axis of three is five times slower in NumPy.
        self.most = np.maximum(np.maximum(self.red, self.green), self.blue)
        self.least = np.minimum(np.minimum(self.red, self.green), self.blue)
        self.seen = self.least < 1 - _SEEN


def _is_dark(view: _View) -> bool:
    return float((view.most < 0.25).mean()) > 0.5


def _is_ink(view: _View) -> bool:
    return float(((view.green - view.red > 0.12) & (view.least < 0.75)).mean()) > 0.2


def _is_grey(view: _View) -> bool:
    colourless = view.seen & (view.most - view.least < 0.06)
    n_seen = int(view.seen.sum())
    return n_seen > 0.02 * view.seen.size and float(colourless.sum()) > 0.8 * n_seen


def _is_fold(view: _View) -> bool:
    return float((view.red < 0.35).mean()) > 0.5


def _is_blurred(view: _View) -> bool:
    if view.seen.mean() < 0.1:
        return False
    grey = np.asarray(Image.fromarray(view.tile).convert("L"), np.float32)
    seen = np.repeat(np.repeat(view.seen, _STRIDE, axis=0), _STRIDE, axis=1)
    seen = seen[: grey.shape[0], : grey.shape[1]]
    near = ndimage.uniform_filter(grey, 3)
    fine, coarse = (grey - near)[seen], (near - ndimage.uniform_filter(grey, 9))[seen]
    return float(fine.std()) < _BLUR_RATIO * float(coarse.std())


RULES: dict[str, ArtifactRule] = {
    rule.name: rule
    for rule in (
        ArtifactRule(
            name="dark",
            meaning="black fill, black ink, borders of the scan: more than half of the tile lets "
            "less than 25 % of the glass's light through in every channel",
            applies=_is_dark,
        ),
        ArtifactRule(
            name="ink",
            meaning="green or blue pen: over 20 % of the tile lets clearly more green than red "
            "light through (by 12 % of the glass's), which no red or purple stain does. Red "
            "ink has the colour of red cells and is not told from them",
            applies=_is_ink,
        ),
        ArtifactRule(
            name="grey",
            meaning="edges of coverslips, bubbles, dust, scratches: 80 % of what is darker than "
            "the glass by 12 % has no colour (channels within 6 %)",
            applies=_is_grey,
        ),
        ArtifactRule(
            name="fold",
            meaning="tissue folded until nothing is seen in it: over half of the tile lets less "
            "than 35 % of the red light through, where stains are clearest",
            applies=_is_fold,
        ),
        ArtifactRule(
            name="blur",
            meaning="out of focus: in tissue, detail finer than 3 px is less than 0.18 of that of "
            "3 to 9 px (standard deviations of the grey value)",
            applies=_is_blurred,
        ),
    )
}
"""All rules by name, in the order in which they are asked; the first that applies names the tile.

The ideas are those of quality control for slides: ink and coverslip edges by colour (HistoQC,
Janowczyk et al., 2019), folds by their darkness (Bautista and Yagi, 2009), focus by the share of
fine detail (Pech-Pacheco et al., 2000). Their numbers were set on real tiles; see the reference.
"""


def parse_rules(text: str) -> tuple[str, ...]:
    """Rules named in a text: ``all``, ``none``, or names with commas between them.

    Raises
    ------
    MilError
        If there is no rule of a name.

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
    """Refuse a name that is no rule.

    Raises
    ------
    MilError
        If there is no rule of a name.
    """
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise MilError(
            "tile rules", actual=f"{unknown[0]!r}", expected=f"any of {', '.join(RULES)}"
        )


def artifact_detector(names: Sequence[str], *, glass_rgb: tuple[int, int, int]) -> ArtifactDetector:
    """Judge of the tiles of one slide by these rules.

    Parameters
    ----------
    names
        Which rules of :data:`RULES` to ask; none keeps every tile.
    glass_rgb
        Colour of the slide's glass, so that coloured glass is no reason.
    """
    rules = [rule for name, rule in RULES.items() if name in names]

    def judge(tile: RgbArray) -> str:
        view = _View(tile, glass_rgb)
        return next((rule.name for rule in rules if rule.applies(view)), "")

    return judge
