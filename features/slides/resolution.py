"""Resolution of a slide in µm per px, and its source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from features.errors import ResolutionError
from features.slides.base import StatedMpp

__all__ = [
    "ASSUMED_MPP",
    "OUTLIER_FACTOR",
    "PLAUSIBLE_MPP",
    "SQUARE_FACTOR",
    "MppSource",
    "Resolution",
    "choose_mpp",
    "is_plausible_mpp",
    "mpp_of_magnification",
    "mpp_outliers",
    "resolve_mpp",
]

OUTLIER_FACTOR = 1.5
"""Deviation from the median that is an outlier; usual objectives differ by a factor of 2."""

ASSUMED_MPP = 0.25
"""µm per px of a slide without a plausible resolution (a 40x scan)."""

PLAUSIBLE_MPP = (0.05, 20.0)
"""Range of µm per px: finer is beyond light microscopy, coarser is not a scan."""

MppSource = Literal["file", "derived", "given", "assumed"]
"""Source of a resolution: the file, a magnification in it, the user, or :data:`ASSUMED_MPP`."""

SQUARE_FACTOR = 1.1
"""Ratio of the resolutions along x and y; those of scanners differ by 2 % at most."""
_UM_AT_1X = 10.0
"""µm per px times magnification: scanners have 0.5 at 20x and 0.25 at 40x, within some 10 %."""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Resolution of a slide's level 0, µm per px along x and y, and its source."""

    mpp_x: float
    mpp_y: float
    source: MppSource

    @property
    def mpp(self) -> float:
        """Geometric mean of both axes, µm per pixel."""
        return math.sqrt(self.mpp_x * self.mpp_y)


def resolve_mpp(stated: StatedMpp | None, *, given_mpp: float | None, where: object) -> Resolution:
    """Return the given resolution, else the file's if plausible, else :data:`ASSUMED_MPP`.

    All are in µm per level-0 px, the file's along x and y; None where there is none. Raises
    ResolutionError, which names ``where``, if ``given_mpp`` is outside :data:`PLAUSIBLE_MPP`.
    """
    if given_mpp is not None:
        if not is_plausible_mpp(given_mpp):
            low, high = PLAUSIBLE_MPP
            raise ResolutionError(
                where,
                actual=f"a given resolution of {given_mpp:g} µm/px",
                expected=f"{low:g} to {high:g} µm/px",
                hint="Give micrometres per level-0 pixel, e.g. 0.25 for a 40x scan.",
            )
        return Resolution(mpp_x=given_mpp, mpp_y=given_mpp, source="given")
    if stated is not None and is_plausible_mpp(stated.x) and is_plausible_mpp(stated.y):
        source: MppSource = "derived" if stated.kind == "derived" else "file"
        return Resolution(mpp_x=stated.x, mpp_y=stated.y, source=source)
    return Resolution(mpp_x=ASSUMED_MPP, mpp_y=ASSUMED_MPP, source="assumed")


def choose_mpp(candidates: Iterable[StatedMpp]) -> tuple[StatedMpp | None, tuple[str, ...]]:
    """Return the resolution to use, and warnings of implausible ones, from the best place on.

    The first plausible one is chosen; without any, the first, so that it can be shown; None if
    there is none at all. All are in µm per px. Tags coarser than :data:`PLAUSIBLE_MPP` are defaults
    of printing and not warned of; a resolution that does not fit the magnification is.
    """
    found = sorted(candidates, key=lambda stated: stated.kind == "derived")
    used = next((s for s in found if is_plausible_mpp(s.x) and is_plausible_mpp(s.y)), None)
    low, high = PLAUSIBLE_MPP
    warnings = [
        f"{stated.x:.4g} x {stated.y:.4g} µm/px in {stated.field} is not used: "
        f"expected {low:g} to {high:g}"
        for stated in (found if used is None else found[: found.index(used)])
        if stated.kind != "tags" or min(stated.x, stated.y) < low
    ]
    if used and not 1 / SQUARE_FACTOR < used.x / used.y < SQUARE_FACTOR:
        warnings.append(
            f"{used.x:.4g} x {used.y:.4g} µm/px in {used.field} are no squares, as scanners have"
        )
    expected = next((stated for stated in found if stated.kind == "derived"), None)
    if used and expected and not 1 / OUTLIER_FACTOR < used.x / expected.x < OUTLIER_FACTOR:
        warnings.append(
            f"{used.x:.4g} µm/px in {used.field} does not fit {expected.field}: "
            f"expected about {expected.x:.4g}"
        )
    return used or next(iter(found), None), tuple(warnings)


def mpp_of_magnification(magnification: float, field: str) -> StatedMpp:
    """Return the usual resolution at an objective's magnification: 0.5 µm per px at 20x.

    Scanners differ from it by some 10 %. A magnification of 0 gives infinity, which is not used.
    """
    mpp = _UM_AT_1X / magnification if magnification else math.inf
    return StatedMpp(x=mpp, y=mpp, field=f"{field}, {magnification:g}x", kind="derived")


def mpp_outliers(mpp_by_slide: Mapping[str, float]) -> list[str]:
    """Return ids of slides whose µm per px differs by :data:`OUTLIER_FACTOR` from the median.

    They were scanned with another objective, or have a wrong header.

    Examples
    --------
    >>> mpp_outliers({"a": 0.25, "b": 0.252, "c": 0.5})
    ['c']
    """
    if not mpp_by_slide:
        return []
    typical = median(mpp_by_slide.values())
    return [
        slide_id
        for slide_id, mpp in mpp_by_slide.items()
        if not 1 / OUTLIER_FACTOR < mpp / typical < OUTLIER_FACTOR
    ]


def is_plausible_mpp(mpp: float) -> bool:
    """Return whether µm per px are in :data:`PLAUSIBLE_MPP`."""
    low, high = PLAUSIBLE_MPP
    return low <= mpp <= high  # False for NaN too
