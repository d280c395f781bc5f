"""A series ready to be read: its images in order, and what is wrong with the others."""

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
from features.utils.text import natural_key

__all__ = ["ImageSeries", "SeriesImage", "open_series"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_ALIKE_MM = 0.01
"""Slices nearer to each other than this lie at one place."""


@dataclass(frozen=True, kw_only=True)
class SeriesImage:
    """One file of a series, or one frame of a file that holds several."""

    path: Path
    """Where it lies."""
    source: str
    """What the bag calls it; a frame has its number, from 1, behind a ``#``."""
    order: float | None = None
    """Place that the table gives it."""
    header: SliceHeader | None = None
    """What a DICOM file says of its place; None for other images."""
    verdict: str | TileError | None = None
    """Why it is left out, or what is wrong with it; None where it is to be embedded."""


@dataclass(frozen=True, kw_only=True)
class ImageSeries:
    """Images of one bag, those to be embedded first and in order."""

    images: tuple[SeriesImage, ...]
    """All files."""
    windows: tuple[Window, Window, Window]
    """What a slice is looked at through, one a channel."""
    side_px: int
    """Side of the square that an image is scaled to."""

    @property
    def n_tiles(self) -> int:
        """Files, also those that are left out."""
        return len(self.images)

    def read(self, index: int) -> RgbArray | str | TileError:
        """Pixels of an image as a square, or why it is left out, or why it cannot be read."""
        image = self.images[index]
        if image.verdict is not None:
            return image.verdict
        try:
            return letterbox(self._pixels(image), side_px=self.side_px)
        except TileError as error:
            return error

    def _pixels(self, image: SeriesImage) -> RgbArray:
        if image.header is None:
            return read_image(image.path)
        values_hu = read_hu(image.path, frame=image.header.frame)
        return np.stack([window(values_hu) for window in self.windows], axis=-1)


def open_series(
    spec: SeriesSpec, *, windows: tuple[Window, Window, Window], side_px: int
) -> ImageSeries:
    """Find the images of a bag and put them in order.

    Files that the table lists are sorted by its ``order`` where it has one. Else slices of a scan
    are sorted by their position along the normal of their plane where all tell it, then by the
    scanner's number where all have one; other listed images keep the order of the table, and those
    of a folder are sorted by name. Frames of a file are slices like others; where nothing else
    tells them apart they stay in its order.

    Of a folder that holds several series of a study the largest is taken. Scout views, copies of a
    slice and files without a picture are left out.

    Parameters
    ----------
    spec
        The bag's files and folders.
    windows
        What slices are looked at through, one a channel.
    side_px
        Side of the square that an image is scaled to.

    Raises
    ------
    SlideError
        If there is no image at all, or slices belong to several studies.
    """
    files = (image for listed in spec.listed for image in _files_of(listed))
    found = [image for file in files for image in _inspect(file)]
    if not found:
        raise SlideError(
            f"series {spec.bag_id!r}", actual="no image in it", expected="DICOM, PNG, JPEG files"
        )
    _refuse_several_studies(spec, found)
    if any(listed.path.is_dir() for listed in spec.listed):
        found = _largest_series(found)
    ordered = _without_copies(_in_order([each for each in found if each.verdict is None]))
    others = [each for each in found if each.verdict is not None]
    # What is left out among the ordered ones moves behind them, so that their places have no gaps.
    images = sorted([*ordered, *others], key=lambda each: each.verdict is not None)
    return ImageSeries(images=tuple(images), windows=windows, side_px=side_px)


def _files_of(listed: SeriesEntry) -> Iterator[SeriesImage]:
    """The file itself, or all images below the folder, hidden ones left out."""
    if not listed.path.is_dir():
        yield SeriesImage(path=listed.path, source=listed.source, order=listed.order)
        return
    names = sorted(
        (p.relative_to(listed.path).as_posix() for p in listed.path.rglob("*") if p.is_file()),
        key=natural_key,
    )
    for name in names:
        path = listed.path / name
        if any(part.startswith(".") for part in Path(name).parts) or not _is_image(path):
            continue
        yield SeriesImage(path=path, source=f"{listed.source}/{name}")


def _is_image(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR":
        return False
    return path.suffix.lower() in (*IMAGE_SUFFIXES, *_DICOM_SUFFIXES) or is_dicom(path)


def _inspect(image: SeriesImage) -> list[SeriesImage]:
    """The image, or each frame of it, with its place in the scan or what speaks against it."""
    if image.path.suffix.lower() not in _DICOM_SUFFIXES and not is_dicom(image.path):
        return [image]
    try:
        headers = read_slice_headers(image.path)
    except TileError as error:
        return [replace(image, verdict=error)]
    if not headers:
        return [replace(image, verdict="no picture")]
    return [
        replace(
            image,
            source=image.source if header.frame is None else f"{image.source}#{header.frame + 1}",
            header=header,
            verdict="scout view" if header.is_localizer else None,
        )
        for header in headers
    ]


def _refuse_several_studies(spec: SeriesSpec, images: Sequence[SeriesImage]) -> None:
    studies = {header.study_uid for header in _headers(images)} - {None}
    if len(studies) > 1:
        raise SlideError(
            f"series {spec.bag_id!r}",
            actual=f"slices of {len(studies)} studies in one bag",
            expected="one study a bag",
            hint="Give each study a bag id, or a folder, of its own.",
        )


def _largest_series(images: Sequence[SeriesImage]) -> list[SeriesImage]:
    """Images of the series with most slices; of equally large ones the first by its id."""
    wanted = [image for image in images if image.verdict is None]
    counts = Counter(header.series_uid or "" for header in _headers(wanted))
    if len(counts) < 2:
        return list(images)
    taken = min(counts, key=lambda uid: (-counts[uid], uid))
    return [
        replace(image, verdict="another series")
        if image.verdict is None and image.header and (image.header.series_uid or "") != taken
        else image
        for image in images
    ]


def _in_order(images: Sequence[SeriesImage]) -> list[SeriesImage]:
    if images and all(image.order is not None for image in images):
        return sorted(images, key=lambda image: image.order or 0.0)
    places = _positions_mm(images)
    if places is not None:
        # Slices at one place, as in a scan that was repeated, stay in the scanner's order.
        keys = [(round(p / _ALIKE_MM), *_number_of(i)) for p, i in zip(places, images, strict=True)]
        return [images[i] for i in sorted(range(len(images)), key=lambda i: keys[i])]
    if all(image.header and image.header.instance_number is not None for image in images):
        return sorted(images, key=_number_of)
    return list(images)


def _positions_mm(images: Sequence[SeriesImage]) -> list[float] | None:
    """Position of each slice along the first one's normal; None unless all tell theirs."""
    headers = [image.header for image in images]
    if not headers or headers[0] is None or headers[0].normal is None:
        return None
    normal = np.array(headers[0].normal)
    positions = [None if header is None else header.position_mm for header in headers]
    if any(position is None for position in positions):
        return None
    return [float(normal @ np.array(position)) for position in positions]


def _number_of(image: SeriesImage) -> tuple[int, int]:
    """The scanner's number of the file, and the frame in it."""
    header = image.header
    return (0, 0) if header is None else (header.instance_number or 0, header.frame or 0)


def _without_copies(images: Iterable[SeriesImage]) -> list[SeriesImage]:
    """Mark all but the first of the files that hold the same slice."""
    seen: set[tuple[str, int | None]] = set()
    kept = []
    for image in images:
        uid = image.header.instance_uid if image.header else None
        name = (uid, image.header.frame) if image.header and uid else None
        kept.append(replace(image, verdict="copy") if name in seen else image)
        seen.update([name] if name else [])
    return kept


def _headers(images: Iterable[SeriesImage]) -> list[SliceHeader]:
    return [image.header for image in images if image.header is not None]
