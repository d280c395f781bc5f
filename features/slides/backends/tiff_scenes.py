"""Pictures of a TIFF file, and the pyramid of the one that is the slide."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from features.errors import UnsupportedFormatError
from features.slides.backends.scenes import (
    Picture,
    SceneChoice,
    choose_scene,
    companion_name,
    largest_picture,
)
from features.slides.backends.tiff_mpp import mpp_in_tiff
from features.slides.backends.tiff_tags import unsupported_samples
from features.slides.resolution import PLAUSIBLE_MPP
from features.utils.file_kinds import BFCONVERT

__all__ = ["choose_tiff_scene", "is_reduced", "slide_size_px"]

_MAX_NAME = 80
"""Longest description that is a name; longer ones are a scanner's report."""
_PARTLY_LISTED = {"svs", "qpi"}
"""Kinds of files of which tifffile lists only the pages that it expects."""
_SUBFILE_TYPE, _SUBFILE_TYPE_REDUCED = 255, 2
_IMAGE_TYPE = re.compile(r"<ImageType>\s*(\w+)\s*</ImageType>")
_SAME_MPP = 1.05
_ROUNDED_PX = 1.5
"""Difference of a side of a reduced picture from that which the other side lets expect, px."""
_MOST_COMPARED_PX = 1 << 24
_CELLS_ACROSS = 12
_LEAST_CONTRAST, _MOST_DIFFERENCE, _LEAST_CORRELATION = 3.0, 24.0, 0.8
"""Standard deviation of these cells, grey levels, from which on they show structure, and mean
difference and correlation of those that show the same, as for levels of a pyramid."""
_FACTORS = (2, 3, 4)
"""Those by which tifffile takes the levels of a pyramid to differ."""


def choose_tiff_scene(
    file: tifffile.TiffFile, *, scene: int | None, where: object
) -> tuple[list[tifffile.TiffPageSeries], SceneChoice]:
    """Return the levels of a scene of an open file, most pixels first, and how it was chosen.

    Without a number, it is the largest scene. Raises as
    :func:`features.slides.backends.scenes.choose_scene`.
    """
    pyramids = [levels for levels in _pyramids(file) if levels[0].keyframe.parent is file]
    if not pyramids:
        raise _in_other_files(file, where)
    ome = file.ome_metadata
    pyramids = _joined(pyramids, pyramids[largest_picture(_pictures_of(pyramids, ome))])
    pictures = _pictures_of(pyramids, ome)
    choice = choose_scene(pictures, scene=scene, where=where)
    levels = [*pyramids[choice.index]]
    if any(page is not None and page.parent is not file for page in levels[0].pages):
        raise _in_other_files(file, where)
    set_aside = list(choice.associated_images)
    for index, others in enumerate(pyramids):
        if index != choice.index and (is_reduced(others[0].keyframe) or _is_misnamed(others[0])):
            more = [level for level in others if _is_level_of(level, levels[0])]
            levels += more
            if more and str(pictures[index]) in set_aside:
                set_aside.remove(str(pictures[index]))
    choice = replace(choice, associated_images=tuple(set_aside))
    levels.sort(key=lambda level: -_size_of(level)[0])
    distinct = [
        level for finer, level in pairwise([None, *levels]) if _size_of(finer) != _size_of(level)
    ]
    return [level for level in distinct if level is not None], choice


def _in_other_files(file: tifffile.TiffFile, where: object) -> UnsupportedFormatError:
    """Return the error for a slide that the OME-XML of several files describes together."""
    names = sorted({
        page.parent.filename for series in file.series for page in series.pages
        if page is not None and page.parent is not file
    })  # fmt: skip
    return UnsupportedFormatError(
        where, actual=f"a part of a slide, whose other channels are in {', '.join(names)}",
        expected="the whole slide in one file",
        hint=f"Convert it with bfconvert of Bio-Formats, which joins the files: {BFCONVERT}.",
    )  # fmt: skip


def slide_size_px(path: Path) -> tuple[int, int] | None:
    """Return width and height, px, of the largest picture that is no companion; None if unknown."""
    try:
        with tifffile.TiffFile(path, is_ndpi=False) as file:
            levels, _choice = choose_tiff_scene(file, scene=None, where=path)
            return _size_of(levels[0])
    except Exception:  # noqa: BLE001 - tifffile raises errors of many kinds on damaged files
        return None


def _pyramids(file: tifffile.TiffFile) -> Iterator[list[tifffile.TiffPageSeries]]:
    """Yield the levels of each picture: tifffile's series, and what it leaves out or mixes up."""
    listed: set[int] = set()
    every = file.series
    is_partial = bool(every) and every[0].kind in _PARTLY_LISTED
    for series in every:
        if is_partial:
            listed.update(page.offset for level in series.levels for page in level.pages if page)
        levels = list(series.levels)
        if series.kind == "generic":
            yield from _sections(levels)
        elif series.kind == "uniform" and series.axes[:1] == "I" and len(series.pages) > 1:
            yield from ([tifffile.TiffPageSeries([page])] for page in series.pages if page)
        else:
            yield levels
    unlisted = [page for page in file.pages if page.offset not in listed] if is_partial else []
    yield from ([tifffile.TiffPageSeries([page])] for page in unlisted)


def _sections(levels: Sequence[tifffile.TiffPageSeries]) -> Iterator[list[tifffile.TiffPageSeries]]:
    """Yield the pictures in what tifffile takes for one pyramid by the sizes of the pages.

    Pages of one size are pictures of their own, and so are pages that are named as companions,
    untiled ones above tiled ones, and a half as large page that is not marked as reduced and has
    the same resolution: another section, not a coarser level.
    """
    tiled = [number for number, level in enumerate(levels) if level.keyframe.is_tiled]
    first_tiled = tiled[0] if tiled else 0
    alone = [
        level
        for number, level in enumerate(levels)
        if number < first_tiled or companion_name(_name_of(level))
    ]
    if alone and len(levels) > 1:
        yield from ([level] for level in alone)
        rest = [level for level in levels if level not in alone]
        if rest:
            yield from _sections(rest)
        return
    if len(levels[0].pages) > 1:
        for level in levels:
            yield from ([tifffile.TiffPageSeries([page])] for page in level.pages if page)
        return
    others = [level for level in levels[1:] if _is_section_beside(level, levels[0])]
    yield [level for level in levels if level not in others]
    yield from ([level] for level in others)


def _is_section_beside(level: tifffile.TiffPageSeries, slide: tifffile.TiffPageSeries) -> bool:
    """Return whether a page is not marked as reduced and has the resolution of another."""
    if is_reduced(level.keyframe):
        return False
    mpp, other = (_mpp_of(series, None, kinds=("tags",)) for series in (level, slide))
    return bool(mpp and other and max(mpp, other) < _SAME_MPP * min(mpp, other))


def _joined(
    pyramids: Sequence[list[tifffile.TiffPageSeries]], slide: list[tifffile.TiffPageSeries]
) -> list[list[tifffile.TiffPageSeries]]:
    """Join to the slide its levels that tifffile lists apart because coarser ones come first.

    Only those that it would have joined had they come in order: by one factor, each is smaller than
    the next finer one. Others of the slide's proportions are sections.
    """
    coarser = [
        levels
        for levels in pyramids
        if levels is not slide
        and all(
            level.kind == slide[0].kind == "generic"
            and _is_level_of(level, slide[0])
            and not is_reduced(level.keyframe)
            and not _is_section_beside(level, slide[0])
            for level in levels
        )
    ]
    every = [level for levels in (slide, *coarser) for level in levels]
    every.sort(key=lambda level: -_size_of(level)[0])
    for factor in _FACTORS:
        chain = slide[:1]
        for level in every:
            width_px = _size_of(chain[-1])[0] / factor
            if abs(width_px - _size_of(level)[0]) <= 1 and _is_level_of(level, chain[-1]):
                chain.append(level)
        joined = [levels for levels in (slide, *coarser) if all(each in chain for each in levels)]
        if slide in joined and len(joined) > 1:
            whole = [level for levels in joined for level in levels]
            return [
                whole if levels is slide else levels
                for levels in pyramids
                if levels is slide or levels not in joined
            ]
    return list(pyramids)


def _pictures_of(
    pyramids: Sequence[list[tifffile.TiffPageSeries]], ome: str | None
) -> list[Picture]:
    pictures = [_picture_of(levels[0], ome, is_single=len(pyramids) == 1) for levels in pyramids]
    untiled = [
        levels[0]
        for levels, picture in zip(pyramids, pictures, strict=True)
        if not picture.is_tiled and not picture.is_companion
    ]
    return [
        replace(picture, is_companion=True)
        if picture.is_tiled and any(_is_thumbnail(levels[0], other) for other in untiled)
        else picture
        for levels, picture in zip(pyramids, pictures, strict=True)
    ]


def _is_thumbnail(small: tifffile.TiffPageSeries, large: tifffile.TiffPageSeries) -> bool:
    """Return whether a picture shows what a larger one in strips does, by sizes in px and pixels.

    A photograph of the glass, which is in strips as well, shows something else.
    """
    (width_px, height_px), (whole_px, other_px) = _size_of(small), _size_of(large)
    factor = whole_px / width_px
    if factor <= 1 or abs(other_px / factor - height_px) > _ROUNDED_PX:
        return False
    if whole_px * other_px > _MOST_COMPARED_PX:
        return False
    with suppress(Exception):  # a damaged picture is reported where it is read
        pages: list[Any] = [small.keyframe, large.keyframe]
        coarse, fine = (
            np.asarray(
                Image.fromarray(page.asarray())
                .convert("L")
                .resize((_CELLS_ACROSS, _CELLS_ACROSS), Image.Resampling.BOX),
                np.float64,
            )
            for page in pages
        )
        return bool(
            min(coarse.std(), fine.std()) > _LEAST_CONTRAST
            and np.abs(coarse - fine).mean() < _MOST_DIFFERENCE
            and np.corrcoef(coarse.ravel(), fine.ravel())[0, 1] > _LEAST_CORRELATION
        )
    return False


def _picture_of(series: tifffile.TiffPageSeries, ome: str | None, *, is_single: bool) -> Picture:
    page: Any = series.keyframe
    name = _name_of(series)
    width_px, height_px = _size_of(series)
    return Picture(
        name=name,
        width_px=width_px,
        height_px=height_px,
        is_tiled=page.is_tiled,
        is_companion=is_reduced(page) or page.is_mask or _is_misnamed(series),
        is_colour=page.samplesperpixel >= 3
        or page.photometric == tifffile.PHOTOMETRIC.PALETTE
        or len(series.pages) == 3,
        mpp=None if is_single else _mpp_of(series, ome),
    )


def _size_of(series: tifffile.TiffPageSeries | None) -> tuple[int, int]:
    page: Any = None if series is None else series.keyframe
    return (0, 0) if page is None else (page.imagewidth, page.imagelength)


def is_reduced(page: Any) -> bool:
    """Return whether NewSubfileType, or SubfileType of old files, marks a page as reduced."""
    tag = page.tags.get(_SUBFILE_TYPE)
    return bool(page.is_reduced) or (tag is not None and tag.value == _SUBFILE_TYPE_REDUCED)


def _is_misnamed(series: tifffile.TiffPageSeries) -> bool:
    """Return whether tifffile calls a level of an Aperio slide a companion, by its place.

    Programs that take the companions out leave the levels, which alone are tiled.
    """
    page: Any = series.keyframe
    return bool(series.kind == "svs" and series.name != "Baseline" and page.is_tiled)


def _name_of(series: tifffile.TiffPageSeries) -> str:
    """Name of a picture: of the series, the page, or in its description; empty without any."""
    page: Any = series.keyframe
    image_type = _IMAGE_TYPE.search(page.description)
    if image_type is not None:
        return "" if image_type[1] in {"FullResolution", "ReducedResolution"} else image_type[1]
    tag = page.tags.get("PageName")
    names = ["" if _is_misnamed(series) else series.name, str(tag.value) if tag is not None else ""]
    lines = [line.strip() for line in page.description.splitlines()]
    if 0 < len(page.description) <= _MAX_NAME:
        names.append(" ".join(lines))
    # Aperio and Philips begin a line with the kind of a companion: "label 387x463".
    names += [line.partition(" ")[0].strip(":;,") for line in lines]
    named = [name for name in names if companion_name(name)]
    return next(iter([*named, series.name if series.kind == "ome" else ""]))[:_MAX_NAME]


def _mpp_of(
    series: tifffile.TiffPageSeries, ome: str | None, *, kinds: Collection[str] = ("stated", "tags")
) -> float | None:
    """µm per px, the mean of both axes, where plausible for a scan, from places of these kinds."""
    low, high = PLAUSIBLE_MPP
    with suppress(Exception):  # a damaged tag may hold anything
        for stated in mpp_in_tiff(series, ome):
            mean = math.sqrt(max(0.0, stated.x * stated.y))
            if low <= mean <= high and stated.kind in kinds:
                return mean
    return None


def _is_level_of(level: tifffile.TiffPageSeries, slide: tifffile.TiffPageSeries) -> bool:
    """Return whether a reduced picture shows the whole slide, as its sizes in px say."""
    page: Any = level.keyframe
    whole: Any = slide.keyframe
    (width, height), (width_0, height_0) = _size_of(level), _size_of(slide)
    factor = width_0 / width
    is_like = (
        page.is_tiled >= whole.is_tiled
        and page.dtype == whole.dtype
        and page.samplesperpixel == whole.samplesperpixel
        and len(level.pages) == len(slide.pages)
    )
    return (
        is_like
        and factor > 1
        and abs(height_0 / factor - height) <= _ROUNDED_PX
        and not companion_name(_name_of(level))
        and not unsupported_samples(page)
    )
