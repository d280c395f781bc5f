"""Suffixes of slides, and URLs among paths."""

from __future__ import annotations

import re
from pathlib import Path

from features.utils.text import normalize_name, strip_blanks

__all__ = ["has_slide_suffix", "parse_url", "slide_name", "strip_slide_suffix"]

_SUFFIX = re.compile(
    r"(\.((ome\.)?(tiff?|btf|tf[28])|ptiff?|qptiff|svs|svslide|ndpi|mrxs|scn|bif|vms|vmu|czi|dcm|dicom"
    r"|png|jpe?g|jp2|j2k|jpf|jpx|bmp|webp|(ome\.)?zarr(\.zip)?|ozx))+$",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(^|::)([A-Za-z][\w+.-]+):/+")


def has_slide_suffix(name: str) -> bool:
    """Return whether a name has the suffix of a slide.

    Examples
    --------
    >>> has_slide_suffix("006388_0.ome.tif"), has_slide_suffix("notes.txt")
    (True, False)
    """
    return bool(_SUFFIX.search(name))


def strip_slide_suffix(name: str) -> str:
    """Return a name without the suffixes of a slide; any other name unchanged.

    Converters add theirs to the scanner's, so several are left out.

    Examples
    --------
    >>> [strip_slide_suffix(name) for name in ("006388_0.ome.zarr", "1.svs.tif", "12.5")]
    ['006388_0', '1', '12.5']
    """
    return _SUFFIX.sub("", name)


def slide_name(name: str) -> str:
    """Return the one form of a slide's name: without suffixes and blanks around it, composed (NFC).

    Tables lose blanks around their cells, so no id can begin or end with one.

    Examples
    --------
    >>> slide_name("006388_0 .svs")
    '006388_0'
    """
    stem = strip_slide_suffix(name)
    return normalize_name(strip_blanks(stem) or stem)


def parse_url(path: Path | str) -> str | None:
    """Return the URL that a path stands for; None for a local path.

    ``Path`` turns ``s3://bucket`` into ``s3:/bucket``; the slash is restored here, so that URLs may
    be passed as paths.

    Examples
    --------
    >>> parse_url(Path("s3://bucket/006388_0.ome.zarr"))
    's3://bucket/006388_0.ome.zarr'
    >>> parse_url(Path("file:///slides/006388_0.zarr"))
    'file:///slides/006388_0.zarr'
    >>> parse_url("slides/006388_0.zarr") is None
    True
    """
    text = path if isinstance(path, str) else path.as_posix()
    if not _SCHEME.match(text):
        return None
    url = _SCHEME.sub(r"\1\2://", text)
    return re.sub(r"(^|::)file://", r"\1file:///", url)
