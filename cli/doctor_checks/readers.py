"""Checks of readers and codecs: each decodes a small image that was just written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
import zarr
from PIL import Image

from cli.doctor_checks.base import CheckResult, run_check
from features.bags.bag import Bag, BagMeta, Fingerprint
from features.bags.h5 import read_bag, write_bag
from features.slides.backends.image import ImageSlide
from features.slides.backends.ome_zarr import OmeZarrSlide
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.tiff import TiffSlide
from features.slides.base import RgbArray, Slide

__all__ = ["check"]

_SIDE_PX = 256
_MAX_ERROR = 8.0
"""Maximum mean error of lossy codecs, grey levels of 255."""

_COMPRESSIONS = ("none", "lzw", "adobe_deflate", "jpeg", "jpeg2000", "webp", "zstd")


def check() -> list[CheckResult]:
    """Check TIFF in each compression, OpenSlide, OME-Zarr, plain images, all 256 px, and bags."""
    checks: list[tuple[str, Callable[[Path], str], str]] = [
        *(
            (f"TIFF, {name}", partial(_tiff, compression=name), "tifffile imagecodecs")
            for name in _COMPRESSIONS
        ),
        ("OpenSlide", _openslide, "openslide-bin openslide-python"),
        ("OME-Zarr", _zarr, "zarr numcodecs"),
        ("PNG and JPEG", _image, "pillow"),
        ("bags in HDF5", _bag, "h5py"),
    ]
    with tempfile.TemporaryDirectory(prefix="mil-doctor-") as folder:
        return [
            run_check(
                "readers", name, partial(function, Path(folder)),
                advice=f"Install again: pip install --force-reinstall {packages}",
            )
            for name, function, packages in checks
        ]  # fmt: skip


def _tiff(folder: Path, compression: str) -> str:
    return _compare(TiffSlide, _write_tiff(folder / f"{compression}.tif", compression))


def _openslide(folder: Path) -> str:
    return _compare(OpenSlideSlide, _write_tiff(folder / "openslide.tif", "jpeg"))


def _zarr(folder: Path) -> str:
    """Write a zarr version 3 store with one level, and read it."""
    path = folder / "image.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=3)
    pixels = np.moveaxis(_gradient(), -1, 0)  # (channel, y, x)
    array = root.create_array("0", shape=pixels.shape, dtype=pixels.dtype, chunks=(1, 128, 128))
    array[...] = pixels
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space"} for n in "yx")]
    image = {"axes": axes, "datasets": [{"path": "0"}]}
    root.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return _compare(OmeZarrSlide, path)


def _image(folder: Path) -> str:
    for suffix in ("png", "jpg"):
        Image.fromarray(_gradient()).save(folder / f"image.{suffix}")
        message = _compare(ImageSlide, folder / f"image.{suffix}")
    return message


def _bag(folder: Path) -> str:
    """Write a bag of two tiles, and read it."""
    features = np.arange(8, dtype=np.float16).reshape(2, 4)
    fingerprint = Fingerprint(
        encoder="none", weights_sha256="0" * 64, transform="{}", dim=4, tile_px=_SIDE_PX,
        target_mpp=0.5, overlap_px=0, tissue="{}",
    )  # fmt: skip
    meta = BagMeta(
        slide_id="doctor", fingerprint=fingerprint, width_px0=2 * _SIDE_PX, height_px0=_SIDE_PX,
        mpp_x=0.5, mpp_y=0.5, mpp_source="given", span_x_px0=float(_SIDE_PX),
        span_y_px0=float(_SIDE_PX), slide_content_id="none", n_tried=2,
    )  # fmt: skip
    bag = Bag(
        features=features, coords_px0=np.array([[0, 0], [_SIDE_PX, 0]]),
        tissue_fraction=np.ones(2, np.float32), meta=meta,
    )  # fmt: skip
    write_bag(folder / "doctor.h5", bag)
    if not np.array_equal(read_bag(folder / "doctor.h5").features, features):
        raise ValueError("the numbers read differ from those written")
    return "written and read"


def _write_tiff(path: Path, compression: str) -> Path:
    tifffile.imwrite(
        path, _gradient(), photometric="rgb", tile=(128, 128), metadata=None,
        compression=None if compression == "none" else compression,
    )  # fmt: skip
    return path


def _gradient() -> RgbArray:
    """Return a smooth colour gradient, shape (256, 256, 3), uint8, preserved by every codec."""
    ramp = np.arange(_SIDE_PX, dtype=np.uint8)
    pixels = np.empty((_SIDE_PX, _SIDE_PX, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = ramp, ramp[:, None], 128
    return pixels


def _compare(reader: Callable[[Path], Slide], path: Path) -> str:
    with closing(reader(path)) as slide:
        pixels = slide.read(level=0, x_px=0, y_px=0, width_px=_SIDE_PX, height_px=_SIDE_PX)
    error = float(np.abs(pixels.astype(np.float32) - _gradient()).mean())
    if error > _MAX_ERROR:
        raise ValueError(f"the image read differs by {error:.0f} of 255 grey levels")
    return "decoded" if error else "decoded, exact"
