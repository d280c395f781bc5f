"""Search for slides, and open each with the first reader that supports it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from features.errors import (
    MultiImageError,
    SampleFormatError,
    SceneError,
    SlideError,
    one_line,
)
from features.slides.backends.image import ImageSlide
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.tiff import TiffSlide
from features.slides.base import Slide
from features.utils.files import path_exists
from features.utils.paths import has_slide_suffix, parse_url, strip_slide_suffix

__all__ = ["find_slides", "open_slide", "scene_of", "slide_id_of", "split_scene"]


_SCENE = re.compile(r"(.+)_scene(\d{1,6})")


def _open_zarr(path: Path | str, scene: int | None = None) -> Slide:
    from features.slides.backends.ome_zarr import OmeZarrSlide  # noqa: PLC0415 - takes 0.2 s, seldom needed

    return OmeZarrSlide(path, scene)


_READERS: tuple[tuple[str, Callable[[Path, int | None], Slide]], ...] = (
    ("tiff", TiffSlide),
    ("openslide", OpenSlideSlide),
    ("image", ImageSlide),
    ("ome-zarr", _open_zarr),
)


def open_slide(path: Path | str, *, scene: int | None = None) -> Slide:
    """Open a slide with the first reader that supports its content, whatever its suffix.

    The order is the direct TIFF reader, which decodes each TIFF tile only once; OpenSlide; plain
    images; zipped OME-Zarr. URLs and folders named ``*.zarr`` are OME-Zarr.

    Parameters
    ----------
    path
        The slide; a URL may come as text or as ``Path``, see
        :func:`features.utils.paths.parse_url`.
    scene
        Which of several pictures of the file is the slide, from 1 in the file's order; None for
        the largest. Labels, macro pictures, thumbnails and other companions are not counted.

    Returns
    -------
    Slide
        Reader of pixels of shape (height, width, 3), uint8; the caller closes it.

    Raises
    ------
    MultiImageError
        If the largest of its images are of one size, and no scene was given.
    SampleFormatError
        If its pixels are of a kind that cannot become RGB.
    SceneError
        If it has no scene of that number.
    SlideError
        If no reader supports it; the message gives the reason of each.
    """
    if parse_url(path) is not None:
        return _open_zarr(path, scene)
    path = Path(path)
    if _is_zarr_folder(path):
        return _open_zarr(path, scene)
    _check_readable(path)
    reasons = []
    for name, reader in _READERS:
        try:
            return reader(path, scene)
        except (MultiImageError, SampleFormatError, SceneError):
            # Other readers would silently take the first image, or wrong colours.
            raise
        except SlideError as error:
            reasons.append(f"{name}: {one_line(error.actual, max_chars=200)}")
    raise SlideError(
        path,
        actual=f"no reader can open it ({'; '.join(reasons)})",
        expected="a whole-slide image",
        hint="Copy it again, or export it as tiled TIFF.",
    )


def slide_id_of(path: Path | str, scene: int | None = None) -> str:
    """Return the id of a slide: its file's name without folder and suffix.

    If a scene was chosen, ``_scene`` and its number follow, so that scenes of a file differ.

    Examples
    --------
    >>> slide_id_of(Path("slides/006388_0.ome.tif"))
    '006388_0'
    >>> slide_id_of("s3://bucket/006388_0.ome.zarr/", scene=2)
    '006388_0_scene2'
    """
    name = strip_slide_suffix(path.name if isinstance(path, Path) else Path(path).name)
    return name if scene is None else f"{name}_scene{scene}"


def split_scene(slide_id: str) -> tuple[str, int | None]:
    """Return the id of a slide's file, and the scene that the slide's id names; None if none.

    Examples
    --------
    >>> split_scene("006388_0_scene2"), split_scene("006388_0")
    (('006388_0', 2), ('006388_0', None))
    """
    match = _SCENE.fullmatch(slide_id)
    return (match[1], int(match[2])) if match else (slide_id, None)


def scene_of(slide_id: str, path: Path) -> int | None:
    """Return the scene of a file that a slide's id names; None if it names the file alone."""
    return None if slide_id_of(path) == slide_id else split_scene(slide_id)[1]


def find_slides(paths: Sequence[Path | str]) -> list[Path]:
    """Return the slides among files, folders and URLs, sorted.

    Files and URLs given by name are taken whatever their suffix (URLs as ``Path``). Folders are
    searched for known suffixes through all subfolders, except hidden ones and the data folders of
    MRXS slides. A folder named ``*.zarr`` is one slide. The many ``.dcm`` files of a DICOM slide
    are represented by the first.

    Raises
    ------
    SlideError
        If a path does not exist, or no slide is found at all.
    """
    slides: list[Path] = []
    for path in map(Path, paths):
        if parse_url(path) is not None:
            slides.append(path)
        elif not path_exists(path):
            raise SlideError(path, actual="there is no such file or folder", expected="slides")
        else:
            slides += _search(path) if path.is_dir() and not _is_zarr_folder(path) else [path]
    if paths and not slides:
        raise SlideError(
            ", ".join(map(str, paths)),
            actual="no slide in it",
            expected="files such as .tif, .svs, .ndpi, .mrxs, .dcm, .zarr, .png",
        )
    return sorted(dict.fromkeys(slides))


def _search(folder: Path) -> list[Path]:
    """Slides below a folder; links to folders are not followed, because they may form loops."""
    entries = _list_entries(folder)
    slides: list[Path] = []
    has_dicom = False
    for name in sorted(entries):
        suffix = name[name.rfind(".") :].lower()
        if _is_folder(entries[name]):
            if suffix == ".zarr":
                slides.append(folder / name)
            elif not entries[name].is_symlink() and f"{name}.mrxs" not in entries:
                slides += _search(folder / name)
        elif has_slide_suffix(name) and not (suffix == ".dcm" and has_dicom):
            slides.append(folder / name)
            has_dicom = has_dicom or suffix == ".dcm"
    return slides


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _list_entries(folder: Path) -> dict[str, os.DirEntry[str]]:
    """Entries of a folder by name, without hidden ones; they know their type without a stat."""
    try:
        with os.scandir(folder) as listing:
            return {entry.name: entry for entry in listing if not entry.name.startswith(".")}
    except OSError as error:
        raise SlideError(
            folder, actual=f"cannot be listed ({error.strerror or error})",
            hint="Make it readable, or name the other folders one by one.",
        ) from error  # fmt: skip


def _is_zarr_folder(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" and path.is_dir()


def _check_readable(path: Path) -> None:
    """Raise an error for a missing, empty or unreadable file before any reader opens it."""
    try:
        if not path.is_file():
            raise SlideError(path, actual="there is no such file", expected="a slide")
        if path.stat().st_size == 0:
            raise SlideError(path, actual="an empty file", expected="a slide",
                             hint="Copy it again.")  # fmt: skip
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise SlideError(path, actual=f"cannot be read ({error.strerror or error})") from error
