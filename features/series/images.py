"""Plain images (PNG, JPEG, WebP, BMP, TIFF) of a series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from features.errors import TileError
from features.slides.base import RgbArray
from features.slides.pixels import OTHER_COLOURS, hides_picture, is_cut_jpeg, to_rgb
from features.slides.zeroed import ZEROED, is_zeroed_picture

__all__ = ["IMAGE_SUFFIXES", "letterbox", "read_image"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of the files of a folder that are read as images."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_LARGEST_PX = 1 << 26
"""Largest number of pixels of an image, 67 Mpx: it is decoded whole, and several at once."""


def read_image(path: Path) -> RgbArray:
    """Read an image, uint8 of shape (height_px, width_px, 3).

    Greyscale gets three equal channels, of 16 bits only the upper eight; transparent pixels are
    black.

    Raises
    ------
    TileError
        If Pillow cannot read it, or it is too large.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_size(path, image)
            pixels = _as_rgb(path, image)
            kind = image.format
        actual = ""
        if is_zeroed_picture(path.read_bytes()):
            actual = f"a {kind}: {ZEROED}"
        elif kind in {"JPEG", "MPO"} and is_cut_jpeg(pixels):
            actual = "a JPEG whose data end early"
    except TileError:
        raise
    except Exception as error:  # Pillow raises errors of many types on damaged files.
        raise TileError(
            path, actual=f"no image that can be read ({type(error).__name__})",
            expected="PNG, JPEG, WebP, BMP or TIFF",
        ) from error  # fmt: skip
    if actual:
        raise TileError(path, actual=actual, expected="a whole image", hint="Copy it again.")
    return pixels


def _check_size(path: Path, image: Image.Image) -> None:
    """Raise for an image that needs too much memory, or states data beyond the end of the file."""
    width_px, height_px = image.size
    if width_px * height_px > _LARGEST_PX:
        raise TileError(
            path,
            actual=f"an image of {width_px} × {height_px} px",
            expected=f"at most {_LARGEST_PX:,} px",
        )
    n_bytes = path.stat().st_size
    if any(part[2] > n_bytes for part in getattr(image, "tile", ())):  # Pillow allocates up to it.
        raise TileError(path, actual="an image that extends beyond the end of the file")


def _as_rgb(path: Path, image: Image.Image) -> RgbArray:
    """Pixels of shape (height, width, 3), uint8; TileError for colours of printing."""
    if image.mode in OTHER_COLOURS:
        raise TileError(
            path, actual=f"colours as {image.mode}", expected="grey or RGB",
            hint="Convert its colours to sRGB first.",
        )  # fmt: skip
    if image.mode.startswith(("I", "F")):
        deep: npt.NDArray[np.float64] = np.asarray(image, np.float64)
        grey = np.clip(deep / 256, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
    if has_alpha and hides_picture(pixels):
        pixels = pixels[..., :3]
    return to_rgb(pixels, background_rgb=(0, 0, 0))


def letterbox(pixels: RgbArray, *, side_px: int) -> RgbArray:
    """Scale an image to a square and fill the rest with black; its aspect ratio is kept.

    Takes uint8 of shape (height, width, 3) in px, returns uint8 of shape (side_px, side_px, 3).
    """
    height_px, width_px = pixels.shape[:2]
    scale = side_px / max(height_px, width_px)
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    if size != (width_px, height_px):
        # Pillow's filters grow with the reduction, so no pixel is skipped.
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    square = np.zeros((side_px, side_px, 3), np.uint8)
    top, left = (side_px - size[1]) // 2, (side_px - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = pixels
    return square
