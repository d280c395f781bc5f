"""Find slides, and open each with the first reader that can serve it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from features.errors import MultiImageError, SlideError
from features.slides.backends.image import ImageSlide
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.tiff import TiffSlide
from features.slides.base import Slide
from features.utils.files import path_exists
from features.utils.paths import has_slide_suffix, parse_url, strip_slide_suffix

__all__ = ["find_slides", "open_slide", "slide_id_of"]


def _open_zarr(path: Path | str) -> Slide:
    from features.slides.backends.ome_zarr import OmeZarrSlide  # noqa: PLC0415 - takes 0.2 s, seldom needed

    return OmeZarrSlide(path)


_READERS: tuple[tuple[str, Callable[[Path], Slide]], ...] = (
    ("tiff", TiffSlide),
    ("openslide", OpenSlideSlide),
    ("image", ImageSlide),
    ("ome-zarr", _open_zarr),
)


def open_slide(path: Path | str) -> Slide:
    """Open a slide, whatever its suffix says.

    The direct TIFF reader comes first where it can serve, since it decodes each TIFF tile once;
    then OpenSlide, then plain images, then zipped OME-Zarr. URLs and folders named ``*.zarr`` are
    OME-Zarr.

    Parameters
    ----------
    path
        The slide; a URL may come as text or as ``Path``, see
        :func:`features.utils.paths.parse_url`.

    Raises
    ------
    MultiImageError
        If it holds several pictures of one size.
    SlideError
        If no reader can serve; the message gives the reason of each.
    """
    if parse_url(path) is not None:
        return _open_zarr(path)
    path = Path(path)
    if _is_zarr_folder(path):
        return _open_zarr(path)
    _check_readable(path)
    reasons = []
    for name, reader in _READERS:
        try:
            return reader(path)
        except MultiImageError:  # of which other readers would take the first
            raise
        except SlideError as error:
            reasons.append(f"{name}: {error.actual}")
    raise SlideError(
        path,
        actual=f"no reader can open it ({'; '.join(reasons)})",
        expected="a whole-slide image",
        hint="Copy it again, or export it as tiled TIFF.",
    )


def slide_id_of(path: Path | str) -> str:
    """Name of a slide: its file's name without folder and suffix.

    Examples
    --------
    >>> slide_id_of(Path("slides/006388_0.ome.tif"))
    '006388_0'
    >>> slide_id_of("s3://bucket/006388_0.ome.zarr/")
    '006388_0'
    """
    return strip_slide_suffix(path.name if isinstance(path, Path) else Path(path).name)


def find_slides(paths: Sequence[Path | str]) -> list[Path]:
    """Slides among files, folders and URLs, sorted.

    A file named outright is taken whatever its suffix, and so is a URL, which comes back as a
    ``Path``; folders are searched for known suffixes through all subfolders, except hidden ones
    and the data folders of MRXS slides. A folder named ``*.zarr`` is a slide and not searched. Of
    the many ``.dcm`` files of a DICOM slide the first stands for the slide.

    Raises
    ------
    SlideError
        If a path does not exist, or no slide is found at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if parse_url(path) is not None:
            found.append(path)
        elif not path_exists(path):
            raise SlideError(path, actual="there is no such file or folder", expected="slides")
        else:
            found += _search(path) if path.is_dir() and not _is_zarr_folder(path) else [path]
    if paths and not found:
        raise SlideError(
            ", ".join(map(str, paths)),
            actual="no slide in it",
            expected="files such as .tif, .svs, .ndpi, .mrxs, .dcm, .zarr, .png",
        )
    return sorted(dict.fromkeys(found))


def _search(folder: Path) -> list[Path]:
    """Slides below a folder; links to folders are not followed, so loops cannot trap us.

    The listing itself says what is a folder: to ask each of 50,000 files takes a second.
    """
    entries = _listed(folder)
    found: list[Path] = []
    has_dicom = False
    for name in sorted(entries):
        suffix = name[name.rfind(".") :].lower()
        if _is_folder(entries[name]):
            if suffix == ".zarr":
                found.append(folder / name)
            elif not entries[name].is_symlink() and f"{name}.mrxs" not in entries:
                found += _search(folder / name)
        elif has_slide_suffix(name) and not (suffix == ".dcm" and has_dicom):
            found.append(folder / name)
            has_dicom = has_dicom or suffix == ".dcm"
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def _listed(folder: Path) -> dict[str, os.DirEntry[str]]:
    """What a folder holds, by name; hidden ones left out."""
    try:
        with os.scandir(folder) as listing:
            return {entry.name: entry for entry in listing if not entry.name.startswith(".")}
    except OSError as error:
        raise SlideError(
            folder, actual=f"cannot be listed ({error.strerror or error})",
            hint="Make it readable, or name the folders beside it one by one.",
        ) from error  # fmt: skip


def _is_zarr_folder(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" and path.is_dir()


def _check_readable(path: Path) -> None:
    """Say what is wrong with a file before any reader looks into it."""
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
