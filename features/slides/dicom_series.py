"""DICOM files of a folder, grouped into slides by their series.

Archives hand out slides as a flat folder: several series, each of one file per level, and beside
them labels, overviews, reports and annotations. Messages never quote a file's text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from features.utils.paths import has_slide_suffix

__all__ = [
    "COMPANIONS", "SPLIT_SERIES", "files_of_series", "group_dicom_files", "is_dicom",
    "may_be_dicom",
]  # fmt: skip

_SUFFIXES = (".dcm", ".dicom")

_MAGIC, _MAGIC_AT = b"DICM", 128
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class VL Whole Slide Microscopy Image Storage."""
_DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class Media Storage Directory Storage."""
_IMAGE_TYPE, _SOP_CLASS, _UID, _SERIES = 0x00080008, 0x00080016, 0x00080018, 0x0020000E
_COLUMNS, _ROWS = 0x00480006, 0x00480007
COMPANIONS = {"LABEL", "OVERVIEW", "LOCALIZER", "THUMBNAIL"}
"""Words of ImageType for pictures that accompany a slide."""
SPLIT_SERIES = "a part of the DICOM series of"
"""Beginning of the reason for files whose slide lies in another folder."""


@dataclass(frozen=True, kw_only=True)
class _Instance:
    """One file: its series, id and class of object, words of its ImageType, and pixels."""

    series: str
    uid: str
    sop_class: str
    image_type: frozenset[str]
    n_px: int


_Member = tuple[Path, _Instance]


def is_dicom(path: Path) -> bool:
    """Return whether bytes 128 to 131 of a file are those of DICOM, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC
    except OSError:
        return False


def may_be_dicom(path: Path) -> bool:
    """Return whether a file is named as DICOM, or not as a slide, e.g. by a UID, and begins so."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    return not has_slide_suffix(path.name) and is_dicom(path)


def files_of_series(path: Path) -> list[Path]:
    """Return the files of one folder that are of the series of ``path``, and so of its slide.

    Headers of the whole folder are read, once for all its slides. Raises OSError if it cannot be
    listed.
    """
    folder = path.parent
    names = _names_by_series(folder, folder.stat().st_mtime_ns)
    return [folder / name for name in next((each for each in names if path.name in each), [])]


@lru_cache(maxsize=1)
def _names_by_series(folder: Path, _changed_ns: int) -> list[list[str]]:
    """Names of the files of each series of a folder, as it was when its entries last changed."""
    series: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if may_be_dicom(path) and (instance := _read_instance(path)) and instance.series:
            series.setdefault(instance.series, []).append(path.name)
    return list(series.values())


def group_dicom_files(paths: Iterable[Path]) -> dict[Path, str | None]:
    """Return None for the file that represents a slide, and for all others why they do not.

    The first file of a series by name represents its slide; the reason of the others is empty. A
    series of labels, overviews or thumbnails alone is no slide, and neither is an object of another
    kind, such as a report. Of a series whose files are spread over folders, which no reader joins,
    the folder with the largest level is the slide. A file that cannot be read, or ends before it
    says what it is, represents itself, so that it is not lost without a word.
    """
    series: dict[tuple[str, Path], list[_Member]] = {}
    result: dict[Path, str | None] = {}
    for path in sorted(paths):
        instance = _read_instance(path)
        if instance is None:
            result[path] = None
        elif instance.sop_class != _WHOLE_SLIDE:
            result[path] = f"a DICOM object of another kind ({_name_of(instance.sop_class)})"
        else:
            key = instance.series or str(path), path.parent
            series.setdefault(key, []).append((path, instance))
    slides: dict[str, list[Sequence[_Member]]] = {}
    for (uid, _), members in series.items():
        kinds = [instance.image_type & COMPANIONS for _, instance in members]
        if all(kinds):
            for (path, _), kind in zip(members, kinds, strict=True):
                result[path] = f"a DICOM {min(kind).lower()} without its slide"
        else:
            result |= {path: "" for path, _ in members}
            result[members[0][0]] = None
            slides.setdefault(uid, []).append(members)
    for folders in slides.values():
        result |= _parts_elsewhere(folders)
    return result


def _parts_elsewhere(folders: Sequence[Sequence[_Member]]) -> dict[Path, str]:
    """Why files of a series are not read, where others of it, in another folder, are the slide.

    A folder that repeats files of the slide is a copy, and remains one of its own.
    """
    slide = max(folders, key=lambda members: max(instance.n_px for _, instance in members))
    uids = {instance.uid for _, instance in slide}
    where = slide[0][0]
    reason = f"{SPLIT_SERIES} {where.parent.name}/{where.name}, move them into one folder"
    return {
        path: reason
        for members in folders
        if members is not slide and not uids & {instance.uid for _, instance in members}
        for path, _ in members
    }


def _read_instance(path: Path) -> _Instance | None:
    """Header of a file up to its size; None if it cannot be read."""
    # It takes 0.2 s, and few folders hold DICOM.
    from pydicom.filereader import read_partial  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            header: Any = read_partial(
                file,
                stop_when=lambda tag, _vr, _length: tag > _ROWS,
                specific_tags=[_IMAGE_TYPE, _SOP_CLASS, _UID, _SERIES, _COLUMNS, _ROWS],
            )
        # A directory of files (DICOMDIR) states its class before the data and has no series, which
        # every other object has: a file without was cut off.
        sop_class = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        if not header.get("SeriesInstanceUID") and sop_class not in (_WHOLE_SLIDE, _DIRECTORY):
            return None
        image_type = header.get("ImageType") or ()
        words = [image_type] if isinstance(image_type, str) else image_type
        return _Instance(
            series=str(header.get("SeriesInstanceUID") or ""),
            uid=str(header.get("SOPInstanceUID") or ""),
            sop_class=str(sop_class),
            image_type=frozenset(str(word).upper() for word in words),
            n_px=math.prod(
                int(header.get(f"TotalPixelMatrix{side}") or 0) for side in ("Columns", "Rows")
            ),
        )
    except Exception:  # noqa: BLE001 - pydicom raises errors of many kinds on damaged files
        return None


def _name_of(sop_class: str) -> str:
    """Name of a class of objects by the standard; its number if it is private."""
    from pydicom.uid import UID  # noqa: PLC0415 - loaded above already

    name = UID(sop_class).name
    return name.removesuffix(" Storage") if name != sop_class else "private"
