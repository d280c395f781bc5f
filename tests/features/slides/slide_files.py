"""Slides that tests of the readers write, and the pixels that they read of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from features.slides.base import Slide
from features.slides.reader import open_slide

NOISE = np.random.default_rng(0).integers(0, 256, (300, 421, 3), np.uint8)
SMOOTH = np.stack(
    [np.add.outer(np.arange(300), np.arange(421)) // step % 256 for step in (3, 4, 5)], axis=-1
).astype(np.uint8)
_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def whole(slide: Slide | Path, level: int = 0) -> np.ndarray:
    """Return all pixels of a level of an open slide, or of the slide of a file."""
    if isinstance(slide, Path):
        with closing(open_slide(slide)) as opened:
            return whole(opened, level)
    size = slide.levels[level]
    return slide.read(level=level, x_px=0, y_px=0, width_px=size.width_px, height_px=size.height_px)


def write_tiff(path: Path, levels: Iterable[np.ndarray], **options: Any) -> Path:
    """Write a pyramid of pages, the coarser ones marked as reduced."""
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(level, photometric="rgb", subfiletype=min(number, 1), **options)
    return path


def write_zarr(
    store: Any,
    levels: Iterable[np.ndarray] = (NOISE,),
    *,
    axes: str = "yxc",
    zarr_format: int = 2,
    mpp: tuple[float, float] | None = None,
    unit: str = "micrometer",
    chunk_px: int = 128,
    chunk_channels: int = 1,
    separator: str = ".",
    group: str = "",
    name: str = "",
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Write an OME-Zarr of levels of shape (y, x, c), in chunks of one channel as most writers do.

    ``separator`` is that of the keys of chunks of zarr v2, and ``about`` goes beside
    ``multiscales``, as ``omero`` does.
    """
    root = zarr.open_group(store, mode="w", path=group, zarr_format=zarr_format)
    sides = {"y": chunk_px, "x": chunk_px, "c": chunk_channels}
    datasets = []
    for index, pixels in enumerate(levels):
        data = _arranged(pixels, axes)
        if zarr_format == 2:
            options = {"chunk_key_encoding": {"name": "v2", "separator": separator}, **options}
        array = root.create_array(
            str(index), shape=data.shape, dtype=data.dtype,
            chunks=tuple(sides.get(axis, 1) for axis in axes), **options,
        )  # fmt: skip
        array[...] = data
        dataset: dict[str, Any] = {"path": str(index)}
        if mpp is not None:
            scale = [{"x": mpp[0], "y": mpp[1]}.get(axis, 1.0) * 2**index for axis in axes]
            dataset["coordinateTransformations"] = [
                {"type": "scale", "scale": scale},
                {"type": "translation", "translation": [0.5] * len(axes)},
            ]
        datasets.append(dataset)
    named = [
        {"name": axis, "type": _TYPES[axis], **({"unit": unit} if axis in "yx" and unit else {})}
        for axis in axes
    ]
    image: dict[str, Any] = {"axes": named, "datasets": datasets}
    if name:
        image["name"] = name
    if zarr_format == 2:
        root.attrs.update({"multiscales": [{**image, "version": "0.4"}], **(about or {})})
    else:
        root.attrs["ome"] = {"version": "0.5", "multiscales": [image], **(about or {})}
    return store


def _arranged(pixels: np.ndarray, axes: str) -> np.ndarray:
    """Pixels of shape (y, x, c) with other axes, in another order."""
    extra = [axis for axis in axes if axis not in "yxc"]
    if "c" not in axes:
        pixels = pixels[..., 0]
    present = "".join(extra) + ("yxc" if "c" in axes else "yx")
    pixels = pixels[(None,) * len(extra)]
    return pixels.transpose([present.index(axis) for axis in axes])
