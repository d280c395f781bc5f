"""Plain images (PNG, JPEG, WebP, BMP) as one-level slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from features.errors import SlideError
from features.slides.base import Level, RgbArray
from features.slides.pixels import clip_region, filled_image, to_rgb
from features.slides.resampling import thumbnail_accumulator

__all__ = ["ImageSlide"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_LARGEST_PX = 1 << 28
"""Pixels of an image at most: it is decoded whole, and 268 Mpx take 2 GB while it is."""
_BAND_PX = 1 << 22
Image.MAX_IMAGE_PIXELS = None  # else Pillow warns and refuses long before our own limit


class ImageSlide:
    """A plain image, decoded whole; see :class:`features.slides.base.Slide`.

    Raises
    ------
    SlideError
        If Pillow cannot open it, or it is too large to be decoded whole.
    """

    reader = "image"
    background_rgb = (255, 255, 255)
    mpp_xy = None

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with Image.open(path, formats=_FORMATS) as image:
                self._pixels = self._decode(image)
        except SlideError:
            raise
        except Exception as error:  # Pillow meets damage in more ways than it says
            raise SlideError(
                path, actual=f"no plain image ({error})", expected="PNG, JPEG"
            ) from error
        height, width = self._pixels.shape[:2]
        self.levels = (Level(width_px=width, height_px=height, downsample=1.0),)

    def _decode(self, image: Image.Image) -> RgbArray:
        """Pixels of the image; converted in bands, since each way on copies what it is given."""
        width, height = image.size
        if width * height > _LARGEST_PX:
            raise SlideError(
                self.path,
                actual=f"a plain image of {width} × {height} px",
                expected=f"at most {_LARGEST_PX:,} px",
                hint="Convert it to a tiled TIFF.",
            )
        mode = "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"
        image.load()
        pixels = np.empty((height, width, 3), np.uint8)
        rows = max(1, _BAND_PX // width)
        for top in range(0, height, rows):
            band = image.crop((0, top, width, min(height, top + rows))).convert(mode)
            pixels[top : top + rows] = to_rgb(np.asarray(band), background_rgb=self.background_rgb)
        return pixels

    def read(self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> RgbArray:
        """Pixels of a rectangle; see the protocol."""
        size = self.levels[level]
        picture = filled_image(height_px, width_px, self.background_rgb)
        rows, columns, left, top, width, height = clip_region(
            x_px, y_px, width_px, height_px,
            level_width_px=size.width_px, level_height_px=size.height_px,
        )  # fmt: skip
        picture[rows, columns] = self._pixels[top : top + height, left : left + width]
        return picture

    def overview(self, *, downsample: int) -> RgbArray:
        """The whole image, small; see the protocol."""
        means = thumbnail_accumulator(self.levels, 0, downsample)
        means.add(self._pixels, x_px=0, y_px=0)
        return means.mean_image(fill_rgb=self.background_rgb)

    def close(self) -> None:
        """Forget the pixels."""
        self._pixels = np.empty((0, 0, 3), np.uint8)
