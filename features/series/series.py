"""Images of one series, opened and put in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from features.errors import SlideError, TileError
from features.series.dicom import SliceHeader, is_dicom, read_hu, read_slice_headers
from features.series.images import IMAGE_SUFFIXES, letterbox, read_image
from features.series.manifest import SeriesEntry, SeriesSpec
from features.series.windowing import Window
from features.slides.base import RgbArray
from features.slides.search import SYSTEM_FILES, PassedOver
from features.utils.text import natural_key

__all__ = ["ImageSeries", "SeriesImage", "files_passed_over", "open_series"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_SAME_POSITION_MM = 0.01
"""Largest distance of slices that count as being at one position."""


@dataclass(frozen=True, kw_only=True)
class SeriesImage:
    """One file of a series, or one frame of a file that holds several.

    ``source`` is its name in the bag; that of a frame ends in ``#`` and its number, from 1.
    ``order`` comes from the table, ``header`` from a DICOM file; either may be None. ``rejection``
    is the reason for leaving the image out, or its error; None if it is to be embedded.
    """

    path: Path
    source: str
    order: float | None = None
    header: SliceHeader | None = None
    rejection: str | TileError | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSeries:
    """All images of one bag, those to be embedded first and in order.

    Each window makes one colour channel of a CT slice, and each image is scaled to a square of
    ``side_px`` px: shape (side_px, side_px, 3), uint8.
    """

    images: tuple[SeriesImage, ...]
    windows: tuple[Window, Window, Window]
    side_px: int

    @property
    def n_tiles(self) -> int:
        """Number of images, including rejected ones."""
        return len(self.images)

    def read(self, index: int) -> RgbArray | str | TileError:
        """Return an image, uint8 of shape (side, side, 3) in px, or its rejection or error."""
        image = self.images[index]
        if image.rejection is not None:
            return image.rejection
        try:
            return letterbox(self._pixels(image), side_px=self.side_px)
        except TileError as error:
            return error

    def end_reading(self) -> None:
        """Do nothing: each image is read once, and nothing of it is kept."""

    def _pixels(self, image: SeriesImage) -> RgbArray:
        if image.header is None:
            return read_image(image.path)
        values_hu = read_hu(image.path, frame=image.header.frame)
        return np.stack([window(values_hu) for window in self.windows], axis=-1)


def open_series(
    spec: SeriesSpec, *, windows: tuple[Window, Window, Window], side_px: int
) -> ImageSeries:
    """List the images of a bag and put them in order, each to become a square of ``side_px`` px.

    Files of a table with an ``order`` are sorted by it. Otherwise, slices of a scan are sorted by
    their position along the normal of their plane if all state it, else by the scanner's number if
    all have one; other images of a table keep its order, and those of a folder are sorted by name.
    Frames of a file are slices like others, and keep its order where nothing else differs.

    If a folder holds several series of a study, the largest is used. Scout views, copies of a slice
    and files without an image are rejected.

    Raises
    ------
    SlideError
        If there is no image at all, or slices belong to several studies.
    """
    files = (image for entry in spec.entries for image in _files_of(entry))
    images = [image for file in files for image in _inspect(file)]
    if not images:
        raise SlideError(
            f"series {spec.bag_id!r}", actual="no image in it", expected="DICOM, PNG, JPEG files"
        )
    _check_one_study(spec, images)
    if any(entry.path.is_dir() for entry in spec.entries):
        images = _reject_smaller_series(images)
    ordered = _reject_copies(_in_order([image for image in images if image.rejection is None]))
    rejected = [image for image in images if image.rejection is not None]
    # Copies move behind the other ordered images, so that the order in the bag has no gaps.
    images = sorted([*ordered, *rejected], key=lambda image: image.rejection is not None)
    return ImageSeries(images=tuple(images), windows=windows, side_px=side_px)


def files_passed_over(source: Path, specs: Iterable[SeriesSpec]) -> dict[Path, PassedOver]:
    """Return the files below the folders of series that are no images, and why, by path.

    Of a ``source`` that is a folder of folders, so are files beside these. Hidden files and those
    of the system are not counted.
    """
    folders = [entry.path for spec in specs for entry in spec.entries if entry.path.is_dir()]
    passed: dict[Path, PassedOver] = {}
    if source.is_dir() and source not in folders:
        for path in sorted(source.iterdir()):
            if path.is_file() and not _is_system_file(path, source):
                reason = "beside the folders of the series, not in one of them"
                passed[path] = PassedOver(reason=reason, is_slide=_is_image(path))
    for folder in folders:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if not any(_is_image(path) and not _is_system_file(path, folder) for path in files):
            passed[folder] = PassedOver(reason="a folder without images", is_slide=True)
        for path in files:
            if not _is_system_file(path, folder) and not _is_image(path):
                kind = path.suffix.lower() or "no suffix"
                passed[path] = PassedOver(reason=f"no image by its name ({kind})")
    return passed


def _is_system_file(path: Path, folder: Path) -> bool:
    """Return whether a file is hidden, an index of DICOM, or one that an operating system makes."""
    parts = path.relative_to(folder).parts
    is_hidden = any(part.startswith(".") for part in parts)
    return is_hidden or path.name.upper() == "DICOMDIR" or path.name.lower() in SYSTEM_FILES


def _files_of(entry: SeriesEntry) -> Iterator[SeriesImage]:
    """Yield the file itself, or all visible images below the folder, sorted by name."""
    if not entry.path.is_dir():
        yield SeriesImage(path=entry.path, source=entry.source, order=entry.order)
        return
    names = (p.relative_to(entry.path).as_posix() for p in entry.path.rglob("*") if p.is_file())
    for name in sorted(names, key=natural_key):
        path = entry.path / name
        if not any(part.startswith(".") for part in Path(name).parts) and _is_image(path):
            yield SeriesImage(path=path, source=f"{entry.source}/{name}")


def _is_image(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR":
        return False
    return path.suffix.lower() in (*IMAGE_SUFFIXES, *_DICOM_SUFFIXES) or is_dicom(path)


def _inspect(image: SeriesImage) -> list[SeriesImage]:
    """Return the image, or each frame of it, with its header or the reason for rejecting it."""
    if image.path.suffix.lower() not in _DICOM_SUFFIXES and not is_dicom(image.path):
        return [image]
    try:
        headers = read_slice_headers(image.path)
    except TileError as error:
        return [replace(image, rejection=error)]
    if not headers:
        return [replace(image, rejection="no picture")]
    return [
        replace(
            image,
            source=image.source if header.frame is None else f"{image.source}#{header.frame + 1}",
            header=header,
            rejection="scout view" if header.is_localizer else None,
        )
        for header in headers
    ]


def _check_one_study(spec: SeriesSpec, images: Sequence[SeriesImage]) -> None:
    studies = {image.header.study_uid for image in images if image.header} - {None}
    if len(studies) > 1:
        raise SlideError(
            f"series {spec.bag_id!r}",
            actual=f"slices of {len(studies)} studies in one bag",
            expected="one study per bag",
            hint="Give each study its own bag id or folder.",
        )


def _reject_smaller_series(images: Sequence[SeriesImage]) -> list[SeriesImage]:
    """Reject all slices but those of the largest series."""
    uids = [
        image.header.series_uid or "" if image.header and image.rejection is None else None
        for image in images
    ]
    counts = Counter(uid for uid in uids if uid is not None)
    largest = min(counts, key=lambda uid: (-counts[uid], uid), default=None)
    return [
        image if uid in (None, largest) else replace(image, rejection="another series")
        for image, uid in zip(images, uids, strict=True)
    ]


def _in_order(images: Sequence[SeriesImage]) -> list[SeriesImage]:
    if images and all(image.order is not None for image in images):
        return sorted(images, key=lambda image: image.order or 0.0)
    positions = _positions_mm(images)
    if positions is not None:
        # Slices at one position, as in a scan that was repeated, stay in the scanner's order.
        pairs = sorted(
            zip(positions, images, strict=True),
            key=lambda pair: (round(pair[0] / _SAME_POSITION_MM), *_number_of(pair[1])),
        )
        return [image for _, image in pairs]
    if all(image.header and image.header.instance_number is not None for image in images):
        return sorted(images, key=_number_of)
    return list(images)


def _positions_mm(images: Sequence[SeriesImage]) -> list[float] | None:
    """Return each slice's position along the first one's normal; None unless all state theirs."""
    headers = [image.header for image in images]
    if not headers or headers[0] is None or headers[0].normal is None:
        return None
    normal = np.array(headers[0].normal)
    positions = [None if header is None else header.position_mm for header in headers]
    if any(position is None for position in positions):
        return None
    return [float(normal @ np.array(position)) for position in positions]


def _number_of(image: SeriesImage) -> tuple[int, int]:
    """Return the scanner's number of the file, and the frame in it."""
    header = image.header
    return (0, 0) if header is None else (header.instance_number or 0, header.frame or 0)


def _reject_copies(images: Iterable[SeriesImage]) -> list[SeriesImage]:
    """Reject all but the first of the files that hold the same slice."""
    seen: set[tuple[str, int | None]] = set()
    result = []
    for image in images:
        uid = image.header.instance_uid if image.header else None
        name = (uid, image.header.frame) if image.header and uid else None
        result.append(replace(image, rejection="copy") if name in seen else image)
        seen.update([name] if name else [])
    return result
