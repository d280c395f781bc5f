"""Choice of the slide among the pictures of a file: scenes and associated images.

Files hold more than the slide: a label, a photograph of the whole glass, a thumbnail, sometimes a
second section that was scanned on its own. Their order means nothing.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from features.errors import MultiImageError, SceneError
from features.slides.base import Scene
from features.slides.companion_words import COMPANION

__all__ = [
    "Picture",
    "SceneChoice",
    "choose_scene",
    "companion_name",
    "largest_picture",
    "require_single_scene",
]

_COMPANION = re.compile(
    rf"(?<![a-z])({COMPANION}|map|locali[sz]er|barcode|slide ?image)(?![a-z])",
    re.IGNORECASE,
)
"""Names of pictures that accompany a slide; an underscore or a digit may follow, no letter."""

_SMALL_UNTILED_PX = 1 << 22
"""Area up to which an untiled picture beside a tiled one is no slide: 4 Mpx, the largest cameras
for the label and the whole glass."""
_SMALL_TILED_PX = 1 << 20
_SMALL_SHARE = 1 / 16
_UNTILED_SHARE = 1 / 4
_LEAST_REDUCTION = 1.5
_COARSE_FACTOR = 8.0
"""A picture this many times as coarse as the finest, µm per px, is a photograph of the glass."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of a file with its pyramid.

    ``name`` is what the file calls it, empty if nothing. ``is_companion`` is true where the file
    itself says that it is reduced, a mask, a label or the like. ``mpp`` is in µm per px, the
    geometric mean of both axes; None if the file states none for it.
    """

    name: str
    width_px: int
    height_px: int
    is_tiled: bool = True
    is_companion: bool = False
    is_colour: bool = True
    mpp: float | None = None

    @property
    def area_px(self) -> int:
        """Number of pixels."""
        return self.width_px * self.height_px

    def __str__(self) -> str:
        """Return name and size in one line."""
        size = f"{self.width_px:,} × {self.height_px:,} px"
        return f"{self.name}, {size}" if self.name else size


@dataclass(frozen=True, kw_only=True)
class SceneChoice:
    """The picture that is shown, by index, its number among the scenes, and all others.

    ``associated_images`` are name and size, px, of each picture that was set aside.
    """

    index: int
    scene: int
    other_scenes: tuple[Scene, ...]
    associated_images: tuple[str, ...]


def companion_name(text: str) -> bool:
    """Return whether a name is that of a picture that accompanies a slide.

    Examples
    --------
    >>> companion_name("macro image"), companion_name("Label_1"), companion_name("macrophages")
    (True, True, False)
    """
    return _COMPANION.search(unicodedata.normalize("NFC", text)) is not None


def choose_scene(pictures: Sequence[Picture], *, scene: int | None, where: object) -> SceneChoice:
    """Return the scene of a number, or without one the largest tiled one.

    Pictures are set aside that are companions by flag or name, photographs of the glass or reduced
    copies by their resolution in µm per px, or small; if that leaves none, nothing is set aside.
    Scenes are what remains, numbered from 1 in the file's order. An untiled picture beside tiled
    ones is the slide only if it has more than four times as many px.

    Raises
    ------
    MultiImageError
        If several of the largest have one size in px, and no number was given.
    SceneError
        If there is no scene of that number.
    """
    kept = _candidates(pictures)
    scenes = [
        Scene(
            number=number, name=pictures[index].name, width_px=pictures[index].width_px,
            height_px=pictures[index].height_px,
        )
        for number, index in enumerate(kept, start=1)
    ]  # fmt: skip
    if scene is None:
        largest = largest_picture(pictures)
        equal = [number for number, index in enumerate(kept, start=1)
                 if _size(pictures[index]) == _size(pictures[largest])]  # fmt: skip
        if len(equal) > 1:
            raise MultiImageError(
                where,
                actual=f"{len(equal)} images of one size, one after another",
                expected="one image, or three channels of an OME-TIFF: red, green and blue",
                hint="Export the slide in colours, as one image, or choose one of them with "
                f"--scene {equal[0]} to --scene {equal[-1]}.",
            )
        (scene,) = equal
    if not 1 <= scene <= len(scenes):
        found = "; ".join(map(str, scenes))
        raise SceneError(
            where,
            actual=f"no scene {scene}",
            expected=f"1 to {len(scenes)} ({found})" if len(scenes) > 1 else "1, the only one",
            hint="Choose another with --scene, or leave it out for the largest.",
        )
    return SceneChoice(
        index=kept[scene - 1],
        scene=scene,
        other_scenes=tuple(each for each in scenes if each.number != scene),
        associated_images=tuple(
            str(picture) for index, picture in enumerate(pictures) if index not in kept
        ),
    )


def largest_picture(pictures: Sequence[Picture]) -> int:
    """Return the index of the largest picture that is no companion, the first of several."""
    return max(_candidates(pictures), key=lambda index: _weight(pictures[index]))


def require_single_scene(scene: int | None, *, where: object) -> None:
    """Raise SceneError for a scene other than 1 of a file that holds one picture."""
    if scene not in (None, 1):
        raise SceneError(
            where, actual=f"no scene {scene}", expected="1, the only one",
            hint="Leave --scene out.",
        )  # fmt: skip


def _candidates(pictures: Sequence[Picture]) -> list[int]:
    """Indices of the pictures that may be the slide; at least one."""
    everything = list(range(len(pictures)))
    kept = [
        index
        for index in everything
        if not pictures[index].is_companion and not companion_name(pictures[index].name)
    ] or everything
    for rule in (_is_mask, _is_coarse, _is_reduced_copy, _is_small_untiled, _is_small):
        among = [pictures[index] for index in kept]
        kept = [index for index in kept if not rule(pictures[index], among)] or kept
    return kept


def _is_mask(picture: Picture, among: Sequence[Picture]) -> bool:
    """Return whether it is grey beside a picture in colours of its size."""
    return not picture.is_colour and any(
        other.is_colour and _size(other) == _size(picture) for other in among
    )


def _weight(picture: Picture) -> float:
    """Return the area that makes a picture the slide; untiled ones need more, px."""
    return picture.area_px * (1.0 if picture.is_tiled else _UNTILED_SHARE)


def _size(picture: Picture) -> tuple[int, int]:
    return picture.width_px, picture.height_px


def _is_coarse(picture: Picture, among: Sequence[Picture]) -> bool:
    """Return whether it is far coarser than the finest, and no larger than it in px."""
    known = [other for other in among if other.mpp]
    if not picture.mpp or not known:
        return False
    finest = min(known, key=lambda other: other.mpp or math.inf)
    assert finest.mpp is not None  # noqa: S101 - only known ones are among them
    return picture.mpp > _COARSE_FACTOR * finest.mpp and picture.area_px <= finest.area_px


def _is_reduced_copy(picture: Picture, among: Sequence[Picture]) -> bool:
    """Return whether another picture shows the same area in µm, with more px."""
    return picture.mpp is not None and any(
        other.mpp is not None
        and _LEAST_REDUCTION * picture.width_px < other.width_px
        and all(
            abs(side * picture.mpp - whole * other.mpp)
            <= max(2 * picture.mpp, 0.01 * whole * other.mpp)
            for side, whole in zip(_size(picture), _size(other), strict=True)
        )
        for other in among
    )


def _is_small_untiled(picture: Picture, among: Sequence[Picture]) -> bool:
    tiled = [other for other in among if other.is_tiled]
    if picture.is_tiled or not tiled:
        return False
    largest = max(tiled, key=lambda other: other.area_px)
    is_small = picture.area_px < max(_SMALL_UNTILED_PX, _UNTILED_SHARE * largest.area_px)
    return is_small and _size(picture) != _size(largest)


def _is_small(picture: Picture, among: Sequence[Picture]) -> bool:
    largest = max(other.area_px for other in among)
    return picture.area_px < min(_SMALL_TILED_PX, _SMALL_SHARE * largest)
