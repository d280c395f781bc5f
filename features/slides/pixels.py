"""Pixel conversions of the readers: RGB of 8 bit without transparency."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from features.slides.base import RgbArray

__all__ = [
    "OTHER_COLOURS",
    "filled_image",
    "hides_picture",
    "is_cut_jpeg",
    "rgb_of_ycbcr",
    "to_rgb",
    "without_sign",
]

OTHER_COLOURS = {"CMYK", "LAB", "HSV"}
"""Modes of Pillow for colours of printing and others, which have no RGB without a profile."""
_CLEAR = 1 / 16
"""Share of opacity up to which pixels are as good as transparent."""
_BAND_PX = 1 << 20
_MID_GREY = 128
"""Value of a JPEG sample whose coefficients are all 0."""


def filled_image(height_px: int, width_px: int, rgb: tuple[int, int, int]) -> RgbArray:
    """Return pixels of one colour, shape (height_px, width_px, 3), uint8."""
    image = np.empty((height_px, width_px, 3), np.uint8)
    if len(set(rgb)) == 1:
        image.fill(rgb[0])  # several times as fast as channel by channel
    else:
        image[:] = np.array(rgb, np.uint8)
    return image


def hides_picture(pixels: npt.NDArray[Any]) -> bool:
    """Return whether the last channel, taken for alpha, hides all that the others show.

    ``pixels`` has shape (height, width, channels). A slide is not transparent throughout: its alpha
    was not written, or is a mask of other values.
    """
    alpha, colours = pixels[..., -1], pixels[..., :-1]
    is_clear = bool(alpha.max() <= np.iinfo(alpha.dtype).max * _CLEAR)
    return is_clear and bool((colours != colours[0, 0]).any())


def is_cut_jpeg(pixels: npt.NDArray[Any]) -> bool:
    """Return whether decoded JPEG pixels, shape (height, width, channels), lack their last blocks.

    Decoders report no error for a stream that ends early or was overwritten: blocks without data
    are exactly mid-grey, which stained tissue and glass are not over a block of 8 px. An image that
    is so from end to end was stored so.
    """
    if pixels.dtype != np.uint8 or (pixels[-8:, -8:] != _MID_GREY).any():
        return False
    return bool((pixels != _MID_GREY).any())


def rgb_of_ycbcr(pixels: npt.NDArray[np.uint8]) -> RgbArray:
    """Convert YCbCr in the full range (ITU-T T.871, 2011), shape (height, width, 3), to RGB."""
    height, width = pixels.shape[:2]
    image = Image.frombytes("YCbCr", (width, height), np.ascontiguousarray(pixels).tobytes())
    return np.asarray(image.convert("RGB"))


def without_sign(samples: npt.NDArray[Any], *, bits: int) -> npt.NDArray[Any]:
    """Return samples from 0 on, of the unsigned type, where a codec gives them with a sign.

    JPEG 2000 may state so whatever the file around it says; black is then the most negative number
    of so many bits.
    """
    if samples.dtype.kind != "i":
        return samples
    shifted: npt.NDArray[Any] = samples.view(f"u{samples.itemsize}") + (1 << (bits - 1))
    return shifted


def to_rgb(pixels: npt.NDArray[Any], *, background_rgb: tuple[int, int, int]) -> RgbArray:
    """Convert grey, RGB or RGBA of 8 or 16 bit to RGB of shape (height, width, 3), uint8.

    ``pixels`` has shape (height, width) or (height, width, 1 to 4), uint8 or uint16; transparent
    pixels take the background colour.
    """
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in {2, 4}:  # the last channel is alpha
        pixels = _flatten_alpha(pixels, background_rgb)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3], np.uint8)


def _flatten_alpha(
    pixels: npt.NDArray[np.uint8], background_rgb: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """Return colours composited onto the background by alpha, the last channel.

    Both have shape (height, width, channels) in px. Computed in bands, because floats take
    sixteen times the memory.
    """
    if pixels[..., -1].min() == 255:
        return pixels[..., :-1]
    height, width = pixels.shape[:2]
    flat = np.empty((height, width, 3), np.uint8)
    step = max(1, _BAND_PX // max(1, width))
    for top in range(0, height, step):
        part = pixels[top : top + step]
        alpha = part[..., -1:].astype(np.float32) / 255
        colour = part[..., :-1] * alpha + np.asarray(background_rgb, np.float32) * (1 - alpha)
        flat[top : top + step] = np.rint(colour).astype(np.uint8)
    return flat
