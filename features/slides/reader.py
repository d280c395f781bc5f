"""Slides, each opened with the first reader that supports it, and their ids."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from features.errors import (
    MultiImageError,
    SceneError,
    SlideError,
    UnsupportedFormatError,
    one_line,
)
from features.slides.backends.dicom import open_with_openslide
from features.slides.backends.image import ImageSlide
from features.slides.backends.tiff import TiffSlide
from features.slides.base import Slide
from features.slides.dicom_series import group_dicom_files, is_dicom
from features.utils.file_kinds import (
    BFCONVERT,
    START_BYTES,
    find_foreign_kind,
    was_copied_as_text,
)
from features.utils.files import ZARR_METADATA, is_zarr_folder, unzip_hint
from features.utils.paths import parse_url, slide_name

__all__ = ["open_slide", "scene_of", "slide_id_of", "split_scene"]


_SCENE = re.compile(r"(.+)_scene(\d{1,6})")
_MIRAX = ".mrxs"
_ZIP = b"PK"


def _open_zarr(path: Path | str, scene: int | None = None) -> Slide:
    from features.slides.backends.ome_zarr import OmeZarrSlide  # noqa: PLC0415 - takes 0.2 s, seldom needed

    return OmeZarrSlide(path, scene)


_READERS: tuple[tuple[str, Callable[[Path, int | None], Slide]], ...] = (
    ("tiff", TiffSlide),
    ("openslide", open_with_openslide),
    ("image", ImageSlide),
    ("ome-zarr", _open_zarr),
)


def open_slide(path: Path | str, *, scene: int | None = None) -> Slide:
    """Open a slide with the first reader that supports its content, whatever its suffix.

    The order is the direct TIFF reader, which decodes each TIFF tile only once; OpenSlide; plain
    images. URLs, zips and folders named ``*.zarr`` are OME-Zarr.

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
    UnsupportedFormatError
        If its pixels are of a kind that cannot become RGB.
    SceneError
        If it has no scene of that number.
    SlideError
        If no reader supports it; the message gives the reason of each.
    """
    if parse_url(path) is not None:
        return _open_zarr(path, scene)
    path = Path(path)
    if is_zarr_folder(path):
        return _open_zarr(path, scene)
    _check_readable(path)
    _check_data_folder(path)
    if _is_zip(path):
        return _open_zarr(path, scene)
    reasons = []
    for name, reader in _READERS:
        if name == "image" and path.suffix.lower() == _MIRAX:
            continue  # it is a preview of the slide
        try:
            return reader(path, scene)
        except (MultiImageError, UnsupportedFormatError, SceneError):
            # Other readers would silently take the first image, or wrong colours.
            raise
        except SlideError as error:
            reasons.append(f"{name}: {one_line(error.actual, max_chars=200)}")
    if is_dicom(path) and (reason := group_dicom_files([path])[path]):
        raise SlideError(
            path, actual=reason, expected="a slide",
            hint="Name the file of its pixels, or the folder of its series.",
        )  # fmt: skip
    whole = _slide_of_part(path)
    raise SlideError(
        path,
        actual=f"no reader can open it ({'; '.join(reasons)})",
        expected="a whole-slide image",
        hint=f"It is a part of a slide: name {whole}."
        if whole
        else "Copy it again, or export it as tiled TIFF.",
    )


def _slide_of_part(path: Path) -> Path | None:
    """Return the slide of a file in the folder of an OME-Zarr or the data folder of an MRXS."""
    for folder in reversed(path.parents):
        if (mirax := Path(f"{folder}.mrxs")).is_file():
            return mirax
        if is_zarr_folder(folder):
            return folder
    return None


def slide_id_of(path: Path | str, scene: int | None = None) -> str:
    """Return the id of a slide: its file's name without folder and suffix, composed (NFC).

    If a scene was chosen, ``_scene`` and its number follow, so that scenes of a file differ.

    Examples
    --------
    >>> slide_id_of(Path("slides/006388_0.ome.tif"))
    '006388_0'
    >>> slide_id_of("s3://bucket/006388_0.ome.zarr/", scene=2)
    '006388_0_scene2'
    """
    file_name = path.name if isinstance(path, Path) else Path(path).name
    name = slide_name(file_name)
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


def _check_readable(path: Path) -> None:
    """Raise an error for a file that is missing, empty, unreadable or an archive of others."""
    try:
        if not path.is_file():
            raise SlideError(
                path, actual=_missing_file(path), expected="a slide", hint=unzip_hint(path)
            )
        if path.stat().st_size == 0:
            raise SlideError(path, actual="an empty file", expected="a slide",
                             hint="Copy it again.")  # fmt: skip
        with path.open("rb") as file:
            start = file.read(START_BYTES)
            is_text_copy = b"\0" in start and was_copied_as_text(file)
    except OSError as error:
        raise SlideError(path, actual=f"cannot be read ({error.strerror or error})") from error
    kind, hint = find_foreign_kind(start)
    if kind:
        raise SlideError(path, actual=f"{kind}, no slide", expected="a slide", hint=hint)
    if not any(start):
        raise SlideError(path, actual="zeros where its header should be, as after a broken copy",
                         expected="a slide", hint="Copy it again.")  # fmt: skip
    if is_text_copy:
        raise SlideError(
            path, actual="a carriage return before every line feed, as after a copy in text mode, "
            "which shifts and changes its pixels", expected="a slide",
            hint="Copy it again in binary mode.",
        )  # fmt: skip
    if start.startswith(_ZIP):
        _check_zip(path)


def _check_data_folder(path: Path) -> None:
    """Raise an error for a file that holds no more than previews of a slide in a folder beside it.

    Those of Olympus have no reader.
    """
    if path.suffix.lower() == ".vsi":
        raise SlideError(
            path, actual=f"an Olympus slide, whose pixels are in the folder _{path.stem}_",
            expected="a format with a reader",
            hint=f"Convert it to OME-TIFF with bfconvert of Bio-Formats: {BFCONVERT}.",
        )  # fmt: skip
    folder = path.with_suffix("")
    if path.suffix.lower() == _MIRAX and not folder.is_dir():
        raise SlideError(
            path, actual="only the preview of a MIRAX slide: its data folder is missing",
            expected=f"the folder {folder.name} beside it",
            hint="Copy the folder with Slidedat.ini and the .dat files, under that name.",
        )  # fmt: skip


def _missing_file(path: Path) -> str:
    """Why a path is no file that can be read."""
    if path.exists():
        return "a folder, no slide" if path.is_dir() else "a pipe or a device, no file"
    return "a link that leads to no file" if path.is_symlink() else "there is no such file"


def _is_zip(path: Path) -> bool:
    """Whether a file is a zip from its first byte to its list of entries."""
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP and zipfile.is_zipfile(file)


def _check_zip(path: Path) -> None:
    """Raise an error for a zip that holds no zarr."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return  # its reader says what is wrong with it
    if names and not any(name.rpartition("/")[2] in ZARR_METADATA for name in names):
        raise SlideError(
            path, actual=f"a zip archive (first entry {names[0]!r})", expected="a slide",
            hint="Unpack it, and name the folder.",
        )  # fmt: skip
