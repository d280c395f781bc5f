"""Find slides, and open each with the first reader that can serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from features.errors import SlideError
from features.files import is_there
from features.names import has_slide_suffix, url_of, without_slide_suffix
from features.slides.image_reader import ImageSlide
from features.slides.openslide_reader import OpenSlideSlide
from features.slides.protocol import Slide
from features.slides.tiff_reader import TiffSlide
from features.slides.zarr_reader import ZarrSlide

__all__ = ["find_slides", "open_slide", "slide_id_of"]

_READERS: tuple[tuple[str, Callable[[Path], Slide]], ...] = (
    ("tiff", TiffSlide),
    ("openslide", OpenSlideSlide),
    ("image", ImageSlide),
    ("ome-zarr", ZarrSlide),
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
        :func:`features.names.url_of`.

    Raises
    ------
    SlideError
        If no reader can serve; the message gives the reason of each.
    """
    if url_of(path) is not None:
        return ZarrSlide(path)
    path = Path(path)
    if _is_zarr_folder(path):
        return ZarrSlide(path)
    _refuse_unreadable(path)
    reasons = []
    for name, reader in _READERS:
        try:
            return reader(path)
        except SlideError as error:
            reasons.append(f"{name}: {error.found}")
    raise SlideError(
        path,
        found=f"no reader can open it ({'; '.join(reasons)})",
        expected="a whole-slide image",
        advice="Copy it again, or export it as tiled TIFF.",
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
    return without_slide_suffix(Path(path).name)


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
        if url_of(path) is not None:
            found.append(path)
        elif not is_there(path):
            raise SlideError(path, found="there is no such file or folder", expected="slides")
        else:
            found += _search(path) if path.is_dir() and not _is_zarr_folder(path) else [path]
    if paths and not found:
        raise SlideError(
            ", ".join(map(str, paths)),
            found="no slide in it",
            expected="files such as .tif, .svs, .ndpi, .mrxs, .dcm, .zarr, .png",
        )
    return sorted(dict.fromkeys(found))


def _search(folder: Path) -> list[Path]:
    """Slides below a folder; links to folders are not followed, so loops cannot trap us."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if _is_zarr_folder(path):
            found.append(path)
        elif path.is_dir():
            data_of_mrxs = path.with_name(f"{path.name}.mrxs").exists()
            if not path.is_symlink() and not data_of_mrxs:
                found += _search(path)
        elif has_slide_suffix(path.name):
            found.append(path)
    dicom = [path for path in found if path.suffix.lower() == ".dcm" and path.parent == folder]
    others = set(dicom[1:])
    return [path for path in found if path not in others]


def _is_zarr_folder(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" and path.is_dir()


def _refuse_unreadable(path: Path) -> None:
    """Say what is wrong with a file before any reader looks into it."""
    try:
        if not path.is_file():
            raise SlideError(path, found="there is no such file", expected="a slide")
        if path.stat().st_size == 0:
            raise SlideError(path, found="an empty file", expected="a slide",
                             advice="Copy it again.")  # fmt: skip
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise SlideError(path, found=f"cannot be read ({error.strerror or error})") from error
