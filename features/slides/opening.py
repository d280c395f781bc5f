"""Find slides, and open each with the first reader that can serve it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from features.errors import SlideError
from features.slides.image_reader import ImageSlide
from features.slides.openslide_reader import OpenSlideSlide
from features.slides.protocol import Slide
from features.slides.tiff_reader import TiffSlide

__all__ = ["find_slides", "open_slide", "slide_id_of"]

_SUFFIX = re.compile(
    r"\.(ome\.tiff?|tiff?|svs|ndpi|mrxs|scn|bif|vms|vmu|dcm|png|jpe?g)$", re.IGNORECASE
)
_READERS: tuple[tuple[str, Callable[[Path], Slide]], ...] = (
    ("tiff", TiffSlide),
    ("openslide", OpenSlideSlide),
    ("image", ImageSlide),
)


def open_slide(path: Path) -> Slide:
    """Open a slide, whatever its suffix says.

    The direct TIFF reader comes first where it can serve, since it decodes each TIFF tile once;
    then OpenSlide, then plain images.

    Parameters
    ----------
    path
        The slide.

    Raises
    ------
    SlideError
        If no reader can serve; the message gives the reason of each.
    """
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


def slide_id_of(path: Path) -> str:
    """Name of a slide: its file's name without folder and suffix.

    Examples
    --------
    >>> slide_id_of(Path("slides/006388_0.ome.tif"))
    '006388_0'
    """
    return _SUFFIX.sub("", path.name)


def find_slides(paths: Sequence[Path]) -> list[Path]:
    """Slides among files and folders, sorted.

    A file named outright is taken whatever its suffix; folders are searched for known suffixes
    through all subfolders, except hidden ones and the data folders of MRXS slides. Of the many
    ``.dcm`` files of a DICOM slide the first stands for the slide.

    Raises
    ------
    SlideError
        If a path does not exist, or no slide is found at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += _search(path)
        elif path.exists():
            found.append(path)
        else:
            raise SlideError(path, found="there is no such file or folder", expected="slides")
    if paths and not found:
        raise SlideError(
            ", ".join(map(str, paths)),
            found="no slide in it",
            expected="files such as .tif, .svs, .ndpi, .mrxs, .dcm, .png",
        )
    return sorted(dict.fromkeys(found))


def _search(folder: Path) -> list[Path]:
    """Slides below a folder; links to folders are not followed, so loops cannot trap us."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            data_of_mrxs = path.with_name(f"{path.name}.mrxs").exists()
            if not path.is_symlink() and not data_of_mrxs:
                found += _search(path)
        elif _SUFFIX.search(path.name):
            found.append(path)
    dicom = [path for path in found if path.suffix.lower() == ".dcm" and path.parent == folder]
    return [path for path in found if path not in dicom[1:]]
