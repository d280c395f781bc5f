"""Plain images (PNG, JPEG, JPEG 2000, WebP, BMP) as one-level slides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from features.errors import CONTENT_ERRORS, SlideError, UnsupportedFormatError
from features.slides.backends.base import RegionReader
from features.slides.backends.mpp_text import mpp_in_text
from features.slides.backends.sample_bits import resolve_bits, to_eight_bits
from features.slides.backends.scenes import require_single_scene
from features.slides.backends.tiff_tags import orientation_warning
from features.slides.base import Level, RgbArray, StatedMpp
from features.slides.pixels import (
    OTHER_COLOURS,
    hides_picture,
    is_cut_jpeg,
    to_rgb,
    without_sign,
)
from features.slides.resampling import thumbnail_accumulator
from features.slides.resolution import choose_mpp
from features.slides.zeroed import ZEROED, is_zeroed_picture
from features.utils.image_headers import jpeg_precision

__all__ = ["ImageSlide"]

_FORMATS = ("PNG", "JPEG", "JPEG2000", "WEBP", "BMP")
_MAX_PX = 1 << 28
"""Largest image: it is decoded whole, and 268 Mpx take 2 GB meanwhile."""
_BAND_PX = 1 << 22
Image.MAX_IMAGE_PIXELS = None  # Pillow would refuse images long before the limit above


class ImageSlide(RegionReader):
    """A plain image of at most 268 million pixels, decoded whole to shape (height, width, 3).

    Raises UnsupportedFormatError for colours of printing, SlideError if Pillow cannot open it, or
    it is larger.
    """

    reader = "image"

    def __init__(self, path: Path, scene: int | None = None) -> None:
        require_single_scene(scene, where=path)
        self.path = path
        try:
            with Image.open(path, formats=_FORMATS) as image:
                self.stated_mpp, self.warnings = choose_mpp(_stated_mpp(image))
                self._pixels = self._decode(image)
                # Pillow decodes a PNG for it, whatever its size.
                self.warnings += orientation_warning(image.getexif().get(Base.Orientation))
                self._check_end(image)
        except SlideError:
            raise
        except Exception as error:  # Pillow raises errors of many kinds on damaged files
            raise SlideError(
                path, actual=f"no plain image ({error})", expected="PNG, JPEG"
            ) from error
        height, width = self._pixels.shape[:2]
        self.levels = (Level(width_px=width, height_px=height, downsample=1.0),)

    def overview(self, *, downsample: int) -> RgbArray:
        """Read the whole image downsampled, shape (height, width, 3) in px, uint8."""
        means = thumbnail_accumulator(self.levels, 0, downsample)
        means.add(self._pixels, x_px=0, y_px=0)
        return means.mean_image(fill_rgb=self.background_rgb)

    def close(self) -> None:
        """Release the pixels."""
        self._pixels = np.empty((0, 0, 3), np.uint8)

    def _read_inside(self, level: int, x_px: int, y_px: int, *, out: RgbArray) -> None:  # noqa: ARG002 - one level
        height, width = out.shape[:2]
        out[:] = self._pixels[y_px : y_px + height, x_px : x_px + width]

    def _check_end(self, image: Image.Image) -> None:
        """Raise an error for pixels that were cut or overwritten, which Pillow does not notice."""
        actual = ""
        if is_zeroed_picture(self.path.read_bytes()):
            actual = f"a {image.format}: {ZEROED}"
        elif image.format in {"JPEG", "MPO"} and is_cut_jpeg(self._pixels):
            actual = "a JPEG whose data end early"
        if actual:
            raise SlideError(self.path, actual=actual, expected="a whole image",
                             hint="Copy it again.")  # fmt: skip

    def _decode(self, image: Image.Image) -> RgbArray:
        """Pixels of the image, converted in bands, because each conversion copies its input."""
        width, height = image.size
        if width * height > _MAX_PX:
            raise UnsupportedFormatError(
                self.path,
                actual=f"a plain image of {width} × {height} px",
                expected=f"at most {_MAX_PX:,} px",
                hint="Convert it to a tiled TIFF.",
            )
        if image.mode == "1":
            raise UnsupportedFormatError(
                self.path, actual="pixels of 1 bit, black and white", expected="grey or RGB",
                hint="Export the slide in colours.",
            )  # fmt: skip
        if image.mode in OTHER_COLOURS:
            raise UnsupportedFormatError(
                self.path, actual=f"colours as {image.mode}", expected="grey or RGB",
                hint="Convert its colours to sRGB first, for example with libvips: "
                "vips colourspace IN OUT.png srgb",
            )  # fmt: skip
        file = self.path.read_bytes() if image.format == "JPEG2000" else b""
        if (precision := jpeg_precision(file) or 8) > 8:
            image = self._decode_deep(file, precision)
        # Pillow would clip grey of 16 bit, which it calls I or I;16, at 255.
        is_deep = image.mode.startswith("I")
        mode = "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"
        # In colours Pillow keeps the upper 8 of 16 bit, and says so in the raw mode alone.
        is_cut_to_eight = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
        image.load()
        if "A" in image.getbands() and hides_picture(np.asarray(image)):
            self.warnings += ("its alpha channel hides the whole picture: it is not used",)
            mode = "RGB"
        largest = 0
        pixels = np.empty((height, width, 3), np.uint8)
        rows = max(1, _BAND_PX // width)
        for top in range(0, height, rows):
            band = image.crop((0, top, width, min(height, top + rows)))
            samples = np.asarray(band if is_deep else band.convert(mode))
            if is_deep:
                largest = max(largest, int(samples.max()))
                samples = samples.astype(np.uint16)
            pixels[top : top + rows] = to_rgb(samples, background_rgb=self.background_rgb)
        if is_cut_to_eight and not is_deep:
            largest = int(pixels.max()) << 8 | 255
        if is_deep or is_cut_to_eight:
            self.warnings += resolve_bits(None, field="", largest=largest)[1]
        return pixels

    def _decode_deep(self, file: bytes, precision: int) -> Image.Image:
        """JPEG 2000 of more than 8 bit, of which Pillow turns white into black."""
        samples = without_sign(imagecodecs.jpeg2k_decode(file), bits=precision)
        bits, notes = resolve_bits(precision, field="its header", largest=int(samples.max()))
        self.warnings += notes
        return Image.fromarray(to_eight_bits(samples, bits))


def _stated_mpp(image: Image.Image) -> Iterator[StatedMpp]:
    """Comments and properties in the file, then its density in px per inch."""
    texts = [text for text in image.info.values() if isinstance(text, str)]
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        texts.append(comment.decode(errors="replace"))
    for text in texts:
        yield from mpp_in_text(text)
    try:
        x, y = (25_400 / float(value) for value in image.info["dpi"])
    except CONTENT_ERRORS:
        return
    yield StatedMpp(x=x, y=y, field="the px per inch", kind="tags")
