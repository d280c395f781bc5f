"""Search for slides in folders; what is passed over is kept with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from features.errors import SlideError
from features.slides.dicom_series import SPLIT_SERIES, group_dicom_files, may_be_dicom
from features.slides.file_info import VMS_SUFFIXES, parts_of_vms
from features.utils.file_kinds import BFCONVERT
from features.utils.files import is_zarr_folder, path_exists, unzip_hint
from features.utils.paths import has_slide_suffix, parse_url, strip_slide_suffix

__all__ = [
    "SYSTEM_FILES",
    "PassedOver",
    "SlideSearch",
    "describe_passed_over",
    "find_slides",
    "search_slides",
    "without_repeats",
]

SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
"""Files that Windows and macOS put into folders; hidden ones begin with a point."""
_BY_BIO_FORMATS = {
    ".ets", ".flex", ".ims", ".lif", ".lof", ".lsm", ".nd2", ".oib", ".oif", ".oir", ".vsi",
    ".xlif", ".zvi",
}  # fmt: skip
_BY_VENDOR = {
    ".afi", ".dyqx", ".hdx", ".i2syntax", ".isyntax", ".kfb", ".kfbf", ".mds", ".mdsx", ".sdpc",
    ".tmap", ".tron",
}  # fmt: skip
_PICTURES = {
    ".avif", ".cr2", ".dng", ".exr", ".gif", ".heic", ".heif", ".jxl", ".jxr", ".nef", ".pgm",
    ".pnm", ".ppm", ".psd", ".tga",
}  # fmt: skip
_ARCHIVES = {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"}
_OTHERS = _BY_BIO_FORMATS | _BY_VENDOR | _PICTURES | _ARCHIVES
"""Suffixes of files that are never DICOM, and need not be opened."""
_MIRAX_INDEX = "slidedat.ini"
_N_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """Why a file of a folder is no slide; ``is_slide`` is true if it is one that cannot be read."""

    reason: str
    is_slide: bool = False


@dataclass(frozen=True, kw_only=True)
class SlideSearch:
    """The slides found, sorted, and the files that were passed over."""

    slides: list[Path] = field(default_factory=list)
    passed_over: dict[Path, PassedOver] = field(default_factory=dict)

    @property
    def unread(self) -> dict[Path, PassedOver]:
        """Slides without a reader, except originals beside a converted slide of their name."""
        found = {(path.parent, strip_slide_suffix(path.name)) for path in self.slides}
        return {
            path: why
            for path, why in self.passed_over.items()
            if why.is_slide and (path.parent, path.stem) not in found
        }


def find_slides(paths: Sequence[Path | str]) -> list[Path]:
    """Return the slides among files, folders and URLs, sorted; see :func:`search_slides`."""
    return search_slides(paths).slides


def search_slides(paths: Sequence[Path | str]) -> SlideSearch:
    """Find the slides among files, folders and URLs, and say what is passed over.

    Files and URLs given by name are taken whatever their suffix (URLs as ``Path``). Folders are
    searched for known suffixes through all subfolders, except hidden ones, the data folders of MRXS
    slides and links, which may form loops. A folder named ``*.zarr`` is one slide. The DICOM files
    of one series in one folder are one slide, represented by the first, also if they are given by
    name; labels, overviews, reports and annotations are passed over.

    Raises
    ------
    SlideError
        If a path does not exist, or no slide is found at all.
    """
    search = SlideSearch()
    named: list[Path] = []
    dicom: list[Path] = []
    for path in map(Path, paths):
        if parse_url(path) is not None:
            search.slides.append(path)
        elif not path_exists(path):
            raise SlideError(
                path, actual="there is no such file or folder", expected="slides",
                hint=unzip_hint(path),
            )  # fmt: skip
        elif path.is_dir() and not is_zarr_folder(path):
            _search_named(path, search, dicom)
        elif _may_be_dicom(path):
            named.append(path)
        else:
            search.slides.append(path)
    if len(named) == 1 and not dicom:
        search.slides.extend(named)
    else:
        _add_dicom(without_repeats([*dicom, *named]), search)
    _pass_over_names(search)
    if paths and not search.slides:
        passed = describe_passed_over(search.passed_over)
        raise SlideError(
            ", ".join(map(str, paths)),
            actual="no slide in it" + (f"; passed over {'; '.join(passed)}" if passed else ""),
            expected="files such as .tif, .svs, .ndpi, .mrxs, .dcm, .zarr, .png",
        )
    return SlideSearch(
        slides=without_repeats(search.slides),
        passed_over=dict(sorted(search.passed_over.items())),
    )


def without_repeats(paths: Iterable[Path]) -> list[Path]:
    """Return paths sorted, without those that lead to another one's file under the same name.

    A file may be named by a relative and an absolute path, or by way of a link to its folder.
    """
    by_name: dict[str, list[Path]] = {}
    for path in sorted(set(paths)):
        by_name.setdefault(path.name, []).append(path)
    repeats = set()
    for same in by_name.values():
        first: dict[str, Path] = {}
        if len(same) > 1:
            repeats |= {path for path in same if first.setdefault(_resolve(path), path) != path}
    return sorted({path for same in by_name.values() for path in same} - repeats)


def _resolve(path: Path) -> str:
    return str(path) if parse_url(path) else os.path.realpath(path)


def describe_passed_over(passed_over: Mapping[Path, PassedOver]) -> list[str]:
    """Return a line per reason, with the number of files and the names of the first five."""
    by_reason: dict[str, list[str]] = {}
    for path, why in passed_over.items():
        by_reason.setdefault(why.reason, []).append(path.name)
    lines = []
    for reason, names in by_reason.items():
        noun = "file" if len(names) == 1 else "files"
        more = f" and {len(names) - _N_NAMED:,} more" if len(names) > _N_NAMED else ""
        lines.append(f"{len(names):,} {noun}, {reason}: {', '.join(names[:_N_NAMED])}{more}")
    return lines


def _search_named(folder: Path, search: SlideSearch, dicom: list[Path]) -> None:
    """Search a folder that was named; it is passed over if there is no slide in it."""
    if (slide := Path(f"{folder}.mrxs")).is_file():
        search.slides.append(slide)
        return
    n_before = len(search.slides) + len(dicom) + len(search.passed_over)
    _search(folder, search, dicom)
    if len(search.slides) + len(dicom) + len(search.passed_over) == n_before:
        search.passed_over[folder] = PassedOver(reason="a folder without slides", is_slide=True)


def _search(folder: Path, search: SlideSearch, dicom: list[Path]) -> None:
    """Add what is in a folder and below it; DICOM files, which are grouped later, to ``dicom``."""
    entries = _list_entries(folder)
    if _MIRAX_INDEX in map(str.lower, entries):
        search.passed_over[folder] = PassedOver(
            reason="the data folder of a MIRAX slide without its .mrxs file beside it",
            is_slide=True,
        )
        return
    parts = {
        part
        for name in entries
        if name.lower().endswith(VMS_SUFFIXES)
        for part in parts_of_vms(folder / name)
    }
    for name in sorted(entries):
        path, suffix = folder / name, _suffix_of(name)
        if _is_folder(entries[name]):
            if f"{name}.mrxs" not in entries:
                _take_folder(path, entries[name], search, dicom)
        elif name.lower() in SYSTEM_FILES:
            continue
        elif name in parts:
            search.passed_over[path] = PassedOver(reason="a part of a Hamamatsu VMS slide")
        elif _may_be_dicom(path):
            dicom.append(path)
        elif has_slide_suffix(name):
            search.slides.append(path)
        else:
            search.passed_over[path] = _passed_over(suffix)


def _take_folder(
    folder: Path, entry: os.DirEntry[str], search: SlideSearch, dicom: list[Path]
) -> None:
    """Add a folder in another as a slide, or what is in it, or why it is passed over."""
    is_link = entry.is_symlink()
    if folder.suffix.lower() == ".zarr" or (not is_link and is_zarr_folder(folder)):
        search.slides.append(folder)
    elif is_link:
        search.passed_over[folder] = PassedOver(
            reason="a link to a folder, which is searched only if it is named", is_slide=True
        )
    else:
        _search(folder, search, dicom)


def _add_dicom(files: Iterable[Path], search: SlideSearch) -> None:
    for path, reason in group_dicom_files(files).items():
        if reason is None:
            search.slides.append(path)
        elif reason:
            search.passed_over[path] = PassedOver(
                reason=reason, is_slide=reason.startswith(SPLIT_SERIES)
            )


def _may_be_dicom(path: Path) -> bool:
    return path.suffix.lower() not in _OTHERS and may_be_dicom(path)


def _pass_over_names(search: SlideSearch) -> None:
    """Pass over slides whose path no table or bag can hold: on Linux, names may be any bytes."""
    unwritable = {path for path in search.slides if not _is_unicode(str(path))}
    reason = "a name that is not UTF-8, rename it"
    search.passed_over.update(
        {path: PassedOver(reason=reason, is_slide=True) for path in unwritable}
    )
    search.slides[:] = [path for path in search.slides if path not in unwritable]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffix_of(name: str) -> str:
    """Suffix in small letters with its point, as ``Path`` has it, in a tenth of the time."""
    stem, _, end = name.rpartition(".")
    return f".{end.lower()}" if stem else ""


def _passed_over(suffix: str) -> PassedOver:
    """Why a file of this suffix is not read."""
    if suffix in _BY_BIO_FORMATS:
        how = (
            f"no reader for {suffix}, convert to OME-TIFF with bfconvert of Bio-Formats, "
            f"{BFCONVERT}"
        )
    elif suffix in _BY_VENDOR:
        how = f"no reader for {suffix}, export as TIFF with the vendor's software"
    elif suffix in _PICTURES:
        how = f"no reader for {suffix}, convert to PNG or TIFF"
    elif suffix in _ARCHIVES:
        how = f"an archive ({suffix}), unpack it first"
    else:
        kind = suffix or "no suffix"
        return PassedOver(reason=f"no slide by its name ({kind}), read only if it is named")
    return PassedOver(reason=how, is_slide=True)


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
