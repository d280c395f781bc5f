"""TIFF directories: support checks, colours, resolution, and the sizes that streams declare."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile

from features.slides.backends.sample_bits import bits_of_maximum, to_eight_bits
from features.utils.image_headers import (
    jpeg_dimensions,
    jpeg_precision,
    png_or_webp_dimensions,
)

__all__ = [
    "ENTROPY_CODED",
    "JPEG_2000",
    "PLAIN_JPEGS",
    "alpha_index",
    "channel_pages",
    "check_declared_size",
    "conversion_hint",
    "count_images",
    "decodes_as_rgb",
    "directory_fault",
    "is_ndpi",
    "largest_byte_count",
    "orientation_warning",
    "stated_bits",
    "states_ycbcr",
    "to_colours",
    "unsupported_samples",
    "ventana_warning",
]

_NDPI_TAG = 65420
_TURNS: dict[object, str] = {
    2: "mirrored left to right", 3: "turned by 180 degrees", 4: "mirrored top to bottom",
    5: "mirrored and turned by 270 degrees", 6: "turned clockwise by 90 degrees",
    7: "mirrored and turned by 90 degrees", 8: "turned clockwise by 270 degrees",
}  # fmt: skip
"""What tag 274 asks of a viewer; 1 is upright."""
_VENTANA_LEVEL = re.compile(r"level=\d+ mag=\d")
"""Beginning of Ventana's description of a level."""
_MAX_DIRECTORIES = 64
_PHOTOMETRICS = {"MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "YCBCR"}
_OTHER_COLOURS = {"SEPARATED", "CIELAB", "ICCLAB", "ITULAB", "CFA", "LOGL", "LOGLUV", "LINEAR_RAW"}
"""Colours of printing and of cameras, which have no RGB without a profile."""
_UNSPECIFIED, _ASSOCIATED, _UNASSOCIATED = 0, 1, 2
"""Values of ExtraSamples, for channels after the colours."""
_MOST_NOISE = 0.01
"""Share of pixels that lossy compression may bring beyond what is possible."""
_JPEGS = {kind for kind in tifffile.COMPRESSION if "JP" in kind.name}
PLAIN_JPEGS = {kind for kind in _JPEGS if kind.name in {"JPEG", "OJPEG", "ALT_JPEG"}}
"""Compressions of JPEG itself, without JPEG 2000, XL and others."""
JPEG_2000 = {
    kind
    for kind in tifffile.COMPRESSION
    if any(name in kind.name for name in ("JPEG2000", "JPEG_2000", "JP2000"))
}
"""Compressions whose tags do not tell colours: libvips stores YCbCr as RGB, Bio-Formats the
reverse."""
OWN_COLOURS = JPEG_2000 | {
    kind for kind in tifffile.COMPRESSION if "WEBP" in kind.name or "JPEGXL" in kind.name
}
"""Compressions whose streams say what their colours are, JPEG 2000 aside."""
ENTROPY_CODED = JPEG_2000 | {
    kind for kind in tifffile.COMPRESSION if "WEBP" in kind.name or "ZSTD" in kind.name
}
"""Other compressions whose decoders notice no zeros, and which need none for what is plain."""
_PNG_AND_WEBP = {kind for kind in tifffile.COMPRESSION if "WEBP" in kind.name or kind.name == "PNG"}


def is_ndpi(page: Any) -> bool:
    """Return whether a page is from an NDPI file."""
    return _NDPI_TAG in page.tags


def largest_byte_count(path: Path) -> int:
    """Return the bytes of the longest TIFF tile or strip; 0 for other files, and for NDPI.

    NDPI stores the upper half of its numbers elsewhere, and OpenSlide does not use its counts.
    """
    try:
        with tifffile.TiffFile(path, is_ndpi=False) as file:
            if is_ndpi(file.pages.first):
                return 0
            pages = islice(file.pages, _MAX_DIRECTORIES)
            return max(max(page.databytecounts, default=0) for page in pages)
    except Exception:  # noqa: BLE001 - tifffile raises errors of many kinds on damaged files
        return 0


def directory_fault(file: tifffile.TiffFile) -> Literal["", "loop", "cut"]:
    """Return whether the chain of directories loops, or leads past the end of the file.

    It is empty for a chain that ends as it should.
    """
    layout, stream = file.tiff, file.filehandle
    order: Literal["little", "big"] = "little" if layout.byteorder == "<" else "big"
    offset = file.pages.first.offset
    visited: set[int] = set()
    while 0 < offset < stream.size:
        if offset in visited:
            return "loop"
        visited.add(offset)
        stream.seek(offset)
        n_tags = int.from_bytes(stream.read(layout.tagnosize), order)
        stream.seek(min(stream.size, offset + layout.tagnosize + n_tags * layout.tagsize))
        offset = int.from_bytes(stream.read(layout.offsetsize), order)
    return "cut" if offset else ""


def count_images(level: tifffile.TiffPageSeries) -> int:
    """Return the number of images in a level: the product of channels, planes and time points.

    Those are all axes of its shape except height and width in px, and samples.
    """
    sizes = zip(level.axes, level.shape, strict=True)
    return math.prod(size for axis, size in sizes if axis not in "YXS")


def ventana_warning(description: str) -> tuple[str, ...]:
    """Return a warning if a page is described as Ventana does it, and so was left without its XML.

    Files with the XML are read by OpenSlide. Empty for other pages.
    """
    if not _VENTANA_LEVEL.match(description):
        return ()
    text = (
        "a Ventana slide without the XML that says where its tiles overlap: they are read side by "
        "side, and tissue at their borders may be shown twice. Use the scanner's file if there is "
        "one."
    )
    return (text,)


def orientation_warning(value: object) -> tuple[str, ...]:
    """Return a warning if tag 274, Orientation, also of EXIF, says that pixels are shown turned.

    Pixels and coordinates are those stored, as in tifffile; libtiff, and OpenSlide with it, may
    turn each tile by itself, which is no picture.
    """
    if value not in _TURNS:
        return ()
    text = (
        f"its tag Orientation is {value} (to be shown {_TURNS[value]}): pixels and coordinates are "
        "those stored"
    )
    return (text,)


def channel_pages(level: tifffile.TiffPageSeries) -> Sequence[Any]:
    """Return the pages that make up the image: one, or red, green and blue, each of shape (y, x).

    Three come from an OME-TIFF with channels in pages of one sample per pixel.
    """
    page: Any = level.keyframe
    planes = [plane for plane in level.pages if plane is not None]
    if (
        (level.kind, level.axes, len(planes)) == ("ome", "CYX", 3)
        and page.samplesperpixel == 1
        and page.photometric.name == "MINISBLACK"
    ):
        return planes
    return [page]


def _unknown_kind(page: Any) -> str:
    """Why colours or compression of a page are unknown or contradictory; empty if they are not."""
    kinds = {"PhotometricInterpretation": page.photometric, "Compression": page.compression}
    for name, kind in kinds.items():
        if page.tags.get(name) is not None and not isinstance(kind, Enum):
            return f"{name} {kind}, which is not known"
    if isinstance(page.bitspersample, tuple):
        return f"samples of {', '.join(map(str, page.bitspersample))} bit in one pixel"
    # By the standard, a page without Compression has none, but one without colours is damaged.
    if not page.tags.get("PhotometricInterpretation"):
        return "no PhotometricInterpretation"
    n_colours = page.samplesperpixel - len(page.extrasamples)
    if page.photometric.name in {"MINISWHITE", "PALETTE"} and n_colours != 1:
        return f"{n_colours} colours per pixel as {page.photometric.name}"
    return ""


def alpha_index(page: Any) -> int | None:
    """Return the channel of a page that its tags state to be alpha; None without one."""
    is_alpha = page.extrasamples and page.extrasamples[0] in {_ASSOCIATED, _UNASSOCIATED}
    return page.samplesperpixel - len(page.extrasamples) if is_alpha else None


def unsupported_samples(page: Any) -> str:
    """Return why pixels of a page, shape (y, x, channels), cannot be RGB; empty if they can."""
    if reason := _unknown_kind(page):
        return reason
    photometric, compression = page.photometric.name, page.compression
    if photometric not in _PHOTOMETRICS:
        return f"colours as {photometric}"
    if page.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)} or page.imagedepth != 1:
        return f"samples of type {page.dtype}"
    if not 8 <= page.bitspersample <= 16:
        return f"samples of {page.bitspersample} bit"
    is_ycbcr = states_ycbcr(page)
    if is_ycbcr and compression.name not in {"JPEG", "OJPEG"} and compression not in OWN_COLOURS:
        return f"YCbCr in {compression.name}"
    is_planar = page.planarconfig != tifffile.PLANARCONFIG.CONTIG
    return "YCbCr in separate planes" if is_ycbcr and is_planar else ""


def decodes_as_rgb(page: Any) -> bool:
    """Return whether the samples of a JPEG page are taken for RGB, whatever its streams say.

    tifffile takes them so for the tag's sake, as in an Aperio SVS, unless the first has JFIF's
    marker.
    """
    return bool(
        page.compression in PLAIN_JPEGS
        and page.photometric == tifffile.PHOTOMETRIC.RGB
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and page.samplesperpixel == 3
        and not page.extrasamples
        and not page.is_jfif
    )


def states_ycbcr(page: Any) -> bool:
    """Return whether the tags of a page, shape (y, x, channels), say that its colours are YCbCr."""
    compression = getattr(page.compression, "name", "")
    return bool(page.photometric.name == "YCBCR" or compression == "APERIO_JP2000_YCBC")


def conversion_hint(page: Any) -> str:
    """Return how to convert a page of colours or numbers that no reader turns into RGB faithfully.

    It is empty for pages that can be read, shape (y, x, channels), and for kinds of samples that
    OpenSlide may read.
    """
    if _unknown_kind(page):
        return "Copy it again, or export it as tiled TIFF."
    if page.photometric.name == "CIELAB":  # libvips refuses those of 8 bit
        return (
            "Convert its colours to sRGB first, for example with Pillow: "
            """python -c "from PIL import Image, ImageCms as cms; cms.profileToProfile("""
            """Image.open('IN.tif'), cms.createProfile('LAB'), cms.createProfile('sRGB'), """
            """outputMode='RGB').save('OUT.tif')\""""
        )
    if page.photometric.name in _OTHER_COLOURS:
        return (
            "Convert its colours to sRGB first, for example with libvips: "
            "vips colourspace IN.tif 'OUT.tif[tile,pyramid,compression=jpeg]' srgb"
        )
    if unsupported_samples(page).startswith("YCbCr in") and not page.is_tiled:
        return (  # OpenSlide reads tiles; libvips takes them for RGB
            "Convert its colours to RGB first, for example with Pillow: "
            """python -c "from PIL import Image; Image.MAX_IMAGE_PIXELS = None; """
            """Image.open('IN.tif').convert('RGB').save('OUT.tif')\""""
        )
    if page.dtype is not None and (page.dtype.kind != "u" or page.dtype.itemsize > 2):
        return (
            "Scale its values to 0 to 255 and save them as 8 bit, for example with libvips: "
            "vips linear IN.tif 'OUT.tif[tile,pyramid,compression=jpeg]' FACTOR 0 --uchar"
        )
    return ""


def check_declared_size(stream: bytes, *, compression: int, max_px: int) -> None:
    """Raise ValueError for a stream that declares a shape of more than ``max_px`` pixels.

    It is called before a decoder allocates them. PNG and WebP without a readable size raise too.
    """
    size = None
    if compression in _JPEGS:
        size = jpeg_dimensions(stream)
    elif compression in _PNG_AND_WEBP:
        size = png_or_webp_dimensions(stream)
        if size is None:
            raise ValueError("its stream declares no size that can be read")
    if size is not None and size[0] * size[1] > max_px:
        raise ValueError(f"its stream declares {size[0]:,} × {size[1]:,} px")


def stated_bits(page: Any, ome: Mapping[str, str], first_stream: bytes) -> tuple[int | None, str]:
    """Return the bits that samples of 16 bit use and the field that states it; None, empty without.

    Fields are BitsPerSample, SignificantBits in the attributes ``ome`` of the image's OME-XML,
    MaxSampleValue, and the precision in the header of a JPEG or JPEG 2000 stream.
    """
    if page.bitspersample < 16:
        return page.bitspersample, "BitsPerSample"
    with suppress(KeyError, ValueError):
        if 8 <= (significant := int(ome["SignificantBits"])) <= 16:
            return significant, "SignificantBits of the OME-XML"
    for name in ("MaxSampleValue", "SMaxSampleValue"):
        tag = page.tags.get(name)
        bits = None if tag is None else bits_of_maximum(tag.value)
        if bits is not None:
            return bits, name
    if page.compression in _JPEGS:
        precision = jpeg_precision(first_stream)
        if precision is not None and 8 <= precision <= 16:
            return precision, "the JPEG stream"
    return None, ""


def to_colours(
    page: Any, pixels: npt.NDArray[Any], *, bits: int = 16, has_alpha: bool = True
) -> npt.NDArray[Any]:
    """Return grey or RGB, and alpha behind them if there is one, from the samples of a page.

    Samples of 16 bit that use only ``bits`` of them are scaled to 8 bit first. Palette and inverted
    grey are converted; both arrays have shape (height, width, channels) in px, uint8 or uint16.
    Without ``has_alpha``, samples behind the colours are left out.
    """
    if page.photometric.name == "PALETTE":
        palette = np.asarray(page.colormap)  # (3, entries), uint16
        if palette.max() > 255:  # some writers forget that entries have 16 bit
            palette = palette >> 8
        colours = np.moveaxis(palette.astype(np.uint8), 0, -1)  # (entries, 3)
        return np.asarray(colours[pixels[..., 0]])
    if bits < 16 and pixels.dtype == np.uint16:
        pixels = to_eight_bits(pixels, bits)
    if page.photometric.name == "MINISWHITE":
        inverted = np.iinfo(pixels.dtype).max - pixels[..., :1]
        pixels = np.concatenate([inverted, pixels[..., 1:]], axis=-1)
    if not has_alpha:
        return pixels[..., : pixels.shape[-1] - len(page.extrasamples)]
    return _with_straight_alpha(pixels, page.extrasamples)


def _may_be_premultiplied(pixels: npt.NDArray[Any]) -> bool:
    """Return whether colours, shape (height, width, 4), are nowhere larger than the fourth sample.

    Colours multiplied by alpha cannot be, but for compression; what is smaller, such as a channel
    of zeros, would make the slide glass.
    """
    largest = pixels[..., :3].max(axis=-1).astype(np.int64)
    is_larger = largest > pixels[..., 3].astype(np.int64) + np.iinfo(pixels.dtype).max // 16
    return bool(is_larger.mean() < _MOST_NOISE)


def _with_straight_alpha(pixels: npt.NDArray[Any], extra: Sequence[int]) -> npt.NDArray[Any]:
    """Colours, and behind them straight alpha; premultiplied ones are composited onto white."""
    n_colours = pixels.shape[-1] - len(extra)
    if not extra or pixels.shape[-1] == 3 or n_colours not in {1, 3}:
        return pixels
    kind = extra[0]
    if n_colours == 3 and tuple(extra) == (_UNSPECIFIED,) and _may_be_premultiplied(pixels):
        kind = _ASSOCIATED  # the usual meaning, which libtiff assumes too
    if kind not in {_ASSOCIATED, _UNASSOCIATED}:
        return pixels[..., :n_colours]
    if kind == _UNASSOCIATED:
        return pixels[..., : n_colours + 1]
    full = np.iinfo(pixels.dtype).max
    alpha = pixels[..., n_colours : n_colours + 1].astype(np.float32)
    white = pixels[..., :n_colours] + (full - alpha)
    return np.minimum(np.rint(white), full).astype(pixels.dtype)
