"""Headers, duplicates and thumbnails of a folder of slides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

from PIL import Image

from features.errors import MilError, SlideError
from features.slides.file_info import compression_of, content_hash, file_size, slide_size
from features.slides.reader import open_slide, scene_of, slide_id_of, split_scene
from features.slides.resolution import resolve_mpp
from features.slides.search import find_slides
from mil.reporting.cohort_report import SlideFiles, SlideHeader, SlideTable
from mil.reporting.cohort_report.page import THUMBNAIL_PX, choose_for_gallery

__all__ = ["read_slide_files"]

OnStep = Callable[[str, int, int], None]


def read_slide_files(
    folder: Path, table: SlideTable, *, n_thumbnails: int, on_step: OnStep
) -> SlideFiles:
    """Read the headers of all slides of a folder, and at most ``n_thumbnails`` images per label.

    Slides that cannot be opened are among the result's ``failures``. The long side of a thumbnail
    is 352 px or more. ``on_step`` is called with the activity, the steps done and the steps in all.
    Raises ``SlideError`` if there is no such folder, or no slide in it.
    """
    paths: dict[str, Path] = {}
    repeated: dict[Path, Path] = {}
    for path in find_slides([folder]):
        first = paths.setdefault(slide_id_of(path), path)
        if first != path:
            repeated[path] = first
    paths = _with_scenes(paths, table)
    content_ids = _hash_files_of_equal_size(paths, on_step)
    headers: dict[str, SlideHeader] = {}
    failures: dict[str, str] = {}
    for done, (slide_id, path) in enumerate(paths.items(), start=1):
        try:
            headers[slide_id] = _read_header(slide_id, path, content_ids.get(slide_id, ""))
        except MilError as error:
            failures[slide_id] = str(error)
        on_step("reading headers", done, len(paths))
    thumbnails: dict[str, Image.Image] = {}
    chosen = choose_for_gallery(table, headers, n_per_label=n_thumbnails)
    for done, slide_id in enumerate(chosen, start=1):
        try:
            thumbnails[slide_id] = _read_thumbnail(slide_id, paths[slide_id])
        except MilError as error:
            failures[slide_id] = str(error)
        on_step("reading overviews", done, len(chosen))
    return SlideFiles(headers=headers, failures=failures, thumbnails=thumbnails, repeated=repeated)


def _with_scenes(paths: Mapping[str, Path], table: SlideTable) -> dict[str, Path]:
    """Add the scenes that the table names, and drop files of which it names scenes only."""
    listed = table.slides["slide"].tolist()
    scenes = {
        slide_id: paths[split_scene(slide_id)[0]]
        for slide_id in listed
        if slide_id not in paths and split_scene(slide_id)[0] in paths
    }
    of_scenes = {slide_id_of(path) for path in scenes.values()}.difference(listed)
    return {name: path for name, path in paths.items() if name not in of_scenes} | scenes


def _hash_files_of_equal_size(paths: Mapping[str, Path], on_step: OnStep) -> dict[str, str]:
    """Return content hashes by slide id; only files of equal size can be copies.

    The hash of a scene ends with its number, as two scenes of a file are no copies.
    """
    sizes = {slide_id: file_size(path) for slide_id, path in paths.items()}
    counts = Counter(sizes.values())
    candidates = [s for s, size in sizes.items() if size is not None and counts[size] > 1]
    content_ids = {}
    for done, slide_id in enumerate(candidates, start=1):
        with suppress(SlideError):  # the same error occurs again when the header is read
            path = paths[slide_id]
            scene = scene_of(slide_id, path)
            content_ids[slide_id] = content_hash(path) + (f" {scene}" if scene else "")
        on_step("comparing files of equal size", done, len(candidates))
    return content_ids


def _read_header(slide_id: str, path: Path, content_id: str) -> SlideHeader:
    with closing(open_slide(path, scene=scene_of(slide_id, path))) as slide:
        resolution = resolve_mpp(slide.stated_mpp, given_mpp=None, where=path)
        return SlideHeader(
            slide_id=slide_id,
            width_px0=slide.levels[0].width_px,
            height_px0=slide.levels[0].height_px,
            n_levels=len(slide.levels),
            file_bytes=slide_size(path),
            mpp=resolution.mpp if resolution.source in {"file", "derived"} else math.nan,
            reader=slide.reader,
            compression=compression_of(path),
            content_id=content_id,
        )


def _read_thumbnail(slide_id: str, path: Path) -> Image.Image:
    """Read the whole slide at low resolution; no level is held in memory as a whole."""
    with closing(open_slide(path, scene=scene_of(slide_id, path))) as slide:
        long_side_px = max(slide.levels[0].width_px, slide.levels[0].height_px)
        return Image.fromarray(slide.overview(downsample=max(1, long_side_px // THUMBNAIL_PX)))
