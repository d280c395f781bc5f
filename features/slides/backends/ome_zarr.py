"""OME-Zarr: pyramids of chunks in a folder, in a zip or behind a URL, read chunk by chunk."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ZipStore

from features.errors import SlideError, TileError
from features.slides.backends.zarr_codecs import with_size_limits
from features.slides.base import Level, RgbArray
from features.slides.cache import TileCache
from features.slides.pixels import clip_region, filled_image, to_rgb
from features.slides.resampling import overview_level, thumbnail_accumulator
from features.utils.hardware import CPU_COUNT
from features.utils.paths import parse_url

__all__ = ["OmeZarrSlide"]

_CACHE_BYTES = 320 << 20
_LARGEST_CHUNK_SAMPLES = 1 << 30
_LARGEST_MEMBER = 1 << 31
"""Bytes of a file in a zip at most: two of each sample of the largest chunk."""
_LARGEST_SIDE_PX = 4_000_000
_N_CHANNELS = (1, 3, 4)
_UNITS_UM = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3}
_EXPECTED = "OME-Zarr, that is zarr with OME-NGFF metadata"


@dataclass(frozen=True, eq=False, kw_only=True)
class _ChunkLayout:
    """Chunks of one level; each is decoded as a whole, with all its channels."""

    array: zarr.Array[Any]
    axes: tuple[str, ...]
    width_px: int
    height_px: int
    chunk_width_px: int
    chunk_height_px: int

    @property
    def rows(self) -> int:
        return -(-self.height_px // self.chunk_height_px)

    @property
    def columns(self) -> int:
        return -(-self.width_px // self.chunk_width_px)

    def pixels(self, row: int, column: int) -> npt.NDArray[Any]:
        """One chunk, cut at the level's border: (height, width) or (height, width, channels)."""
        top, left = row * self.chunk_height_px, column * self.chunk_width_px
        wanted = {
            "y": slice(top, min(top + self.chunk_height_px, self.height_px)),
            "x": slice(left, min(left + self.chunk_width_px, self.width_px)),
            "c": slice(None),
        }
        place = tuple(wanted.get(axis, 0) for axis in self.axes)
        pixels = np.asarray(self.array[place])
        kept = [axis for axis in self.axes if axis in wanted]
        pixels = pixels.transpose([kept.index(axis) for axis in "yxc" if axis in kept])
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


class OmeZarrSlide:
    """An OME-Zarr image; see :class:`features.slides.base.Slide`.

    Serves OME-NGFF up to 0.4 (zarr v2) and 0.5 (zarr v3), grey, RGB or RGBA of 8 or 16 bit, one
    plane at one time, in any order of axes. Chunks that are not stored have the fill value. Where
    ``bioformats2raw`` put several images into one store, the first is the slide.

    Parameters
    ----------
    path
        A folder, a zip, or a URL that fsspec knows (``s3://…``), as text or as ``Path``.

    Raises
    ------
    SlideError
        If it is no such image, or not to be reached.
    """

    reader = "ome-zarr"
    background_rgb = (255, 255, 255)

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._where = parse_url(path) or str(path)
        self._cache = TileCache(_CACHE_BYTES)
        self._store: Store | None = None
        try:
            self._store, folder = _open_store(path)
            group = zarr.open_group(self._store, mode="r", path=folder)
            group, image = self._image_of(group)
            axes = _axes_of(image)
            names = [dataset["path"] for dataset in image["datasets"]]
            self._grids = [self._grid(group, name, axes) for name in names]
            self.mpp_xy = _mpp_of(image, axes or self._grids[0].axes)
            self.levels = self._levels()
        except SlideError:
            self.close()
            raise
        except Exception as error:  # fsspec and zarr meet what is wrong in too many ways to list
            self.close()
            raise SlideError(
                self._where,
                actual=f"cannot be opened ({_reason(error)})",
                expected=_EXPECTED,
            ) from error

    def read(self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> RgbArray:
        """Pixels of a rectangle; see the protocol."""
        grid = self._grids[level]
        picture = filled_image(height_px, width_px, self.background_rgb)
        rows, columns, left, top, width, height = clip_region(
            x_px, y_px, width_px, height_px,
            level_width_px=grid.width_px, level_height_px=grid.height_px,
        )  # fmt: skip
        if not width or not height:
            return picture
        inside = picture[rows, columns]
        step_y, step_x = grid.chunk_height_px, grid.chunk_width_px
        for row in range(top // step_y, (top + height - 1) // step_y + 1):
            for column in range(left // step_x, (left + width - 1) // step_x + 1):
                chunk = self._chunk(level, row, column)
                chunk_top, chunk_left = row * step_y, column * step_x
                first_y, first_x = max(top, chunk_top), max(left, chunk_left)
                last_y = min(top + height, chunk_top + chunk.shape[0])
                last_x = min(left + width, chunk_left + chunk.shape[1])
                inside[first_y - top : last_y - top, first_x - left : last_x - left] = chunk[
                    first_y - chunk_top : last_y - chunk_top,
                    first_x - chunk_left : last_x - chunk_left,
                ]
        return picture

    def overview(self, *, downsample: int) -> RgbArray:
        """The whole slide, small; see the protocol. Damaged chunks show the background."""
        level = overview_level(self.levels, downsample)
        grid = self._grids[level]
        means = thumbnail_accumulator(self.levels, level, downsample)
        first_error: TileError | None = None
        n_read = 0
        for row, column, chunk in self._all_chunks(level):
            if isinstance(chunk, TileError):
                first_error = first_error or chunk
                continue
            n_read += 1
            means.add(chunk, x_px=column * grid.chunk_width_px, y_px=row * grid.chunk_height_px)
        if first_error and not n_read:
            raise SlideError(
                self._where,
                actual=f"no chunk of level {level} can be read, first: {first_error.actual}",
                expected="pixels",
            ) from first_error
        return means.mean_image(fill_rgb=self.background_rgb)

    def close(self) -> None:
        """Give the store and the cache back."""
        self._cache.clear()
        if self._store is not None:
            self._store.close()
            self._store = None

    def _image_of(self, group: zarr.Group) -> tuple[zarr.Group, Mapping[str, Any]]:
        """The group of the image and the first entry of its ``multiscales``."""
        attributes: Any = group.attrs.asdict()
        ome = attributes.get("ome", attributes)
        if "multiscales" not in ome and "bioformats2raw.layout" in ome:
            member = group.get("0")
            if isinstance(member, zarr.Group):
                return self._image_of(member)
        if not ome.get("multiscales"):
            what = "a plate of many images" if "plate" in ome else "a zarr group, no 'multiscales'"
            raise SlideError(self._where, actual=what, expected=_EXPECTED)
        image: Mapping[str, Any] = ome["multiscales"][0]
        if not image["datasets"]:
            raise self._cannot("'multiscales' without datasets")
        return group, image

    def _grid(self, group: zarr.Group, name: str, axes: tuple[str, ...]) -> _ChunkLayout:
        """Check that we can serve an array, and how it is cut into chunks."""
        array = group.get(name)
        if not isinstance(array, zarr.Array):
            raise self._cannot(f"no array {name!r}, which 'multiscales' lists")
        axes = axes or tuple("tczyx"[-array.ndim :])
        if len(axes) != array.ndim or len(set(axes)) != array.ndim or not {"y", "x"} <= set(axes):
            raise self._cannot(f"axes {', '.join(axes)} for {array.ndim} dimensions")
        sizes = dict(zip(axes, array.shape, strict=True))
        many = {axis: size for axis, size in sizes.items() if axis not in "cyx" and size != 1}
        if many:
            text = ", ".join(f"{size} along {axis}" for axis, size in many.items())
            raise self._cannot(f"more than one plane ({text})")
        if sizes.get("c", 1) not in _N_CHANNELS:
            raise self._cannot(f"{sizes['c']} channels")
        if array.dtype.kind != "u" or array.dtype.itemsize > 2:
            raise self._cannot(f"samples of type {array.dtype}")
        width, height = sizes["x"], sizes["y"]
        if not 0 < width <= _LARGEST_SIDE_PX or not 0 < height <= _LARGEST_SIDE_PX:
            raise self._cannot(f"{width} × {height} px")
        if not 0 < np.prod(array.chunks, dtype=np.float64) <= _LARGEST_CHUNK_SAMPLES:
            raise self._cannot(f"chunks of {' × '.join(map(str, array.chunks))}")
        chunks = dict(zip(axes, array.chunks, strict=True))
        return _ChunkLayout(
            array=with_size_limits(array), axes=axes, width_px=width, height_px=height,
            chunk_width_px=chunks["x"], chunk_height_px=chunks["y"],
        )  # fmt: skip

    def _levels(self) -> tuple[Level, ...]:
        first, previous = self._grids[0], self._grids[0]
        levels = []
        for grid in self._grids:
            if grid.width_px > previous.width_px or grid.height_px > previous.height_px:
                raise self._cannot(
                    f"a level of {grid.width_px} × {grid.height_px} px after one of "
                    f"{previous.width_px} × {previous.height_px} px"
                )
            previous = grid
            factors = (first.width_px / grid.width_px, first.height_px / grid.height_px)
            levels.append(
                Level(width_px=grid.width_px, height_px=grid.height_px, downsample=sum(factors) / 2)
            )
        return tuple(levels)

    def _cannot(self, found: str) -> SlideError:
        return SlideError(
            self._where,
            actual=found,
            expected="OME-Zarr of 8 or 16 bit with 1, 3 or 4 channels in one plane, finest first",
        )

    def _chunk(self, level: int, row: int, column: int) -> RgbArray:
        return self._cache.get((level, row, column), lambda: self._decode(level, row, column))

    def _decode(self, level: int, row: int, column: int) -> RgbArray:
        """One chunk; zarr opens it anew each time, so there is no stale handle to replace."""
        try:
            pixels = self._grids[level].pixels(row, column)
        except Exception as error:
            raise TileError(
                self._where,
                actual=f"chunk in row {row}, column {column} of level {level} cannot be read "
                f"({_reason(error)})",
                expected="pixels",
            ) from error
        return to_rgb(pixels, background_rgb=self.background_rgb)

    def _all_chunks(self, level: int) -> Iterator[tuple[int, int, RgbArray | TileError]]:
        """Chunks in order, several at a time, few ahead; the error where one is broken."""
        grid = self._grids[level]

        def one(index: int) -> tuple[int, int, RgbArray | TileError]:
            row, column = divmod(index, grid.columns)
            try:
                return row, column, self._chunk(level, row, column)
            except TileError as error:
                return row, column, error

        ahead = max(8, (64 << 20) // (grid.chunk_height_px * grid.chunk_width_px * 3))
        waiting = iter(range(grid.rows * grid.columns))
        with ThreadPoolExecutor(CPU_COUNT, thread_name_prefix="overview") as pool:
            while some := list(islice(waiting, ahead)):
                yield from pool.map(one, some)


def _open_store(path: Path | str) -> tuple[Store, str]:
    """The store, and the folder in it where the image lies."""
    url = parse_url(path)
    if url is not None:
        return FsspecStore.from_url(url, read_only=True), ""
    path = Path(path)
    if path.is_dir():
        return LocalStore(path, read_only=True), ""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
        folders = {member.filename.partition("/")[0] for member in members}
        if (largest := max((member.file_size for member in members), default=0)) > _LARGEST_MEMBER:
            raise SlideError(
                path, actual=f"a file of {largest:,} bytes in its zip",
                expected=f"at most {_LARGEST_MEMBER:,}",
            )  # fmt: skip
        # Zipped from outside, everything lies in one folder; from inside, there is metadata too.
        return ZipStore(path, mode="r"), folders.pop() if len(folders) == 1 else ""
    raise SlideError(path, actual="neither a folder nor a zip", expected=_EXPECTED)


def _axes_of(image: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the axes in order, channels as ``c``; empty before OME-NGFF 0.3, which had none."""
    names = []
    for axis in image.get("axes", ()):
        if isinstance(axis, str):
            names.append(axis.lower())
        else:
            names.append("c" if axis.get("type") == "channel" else axis["name"].lower())
    return tuple(names)


def _mpp_of(image: Mapping[str, Any], axes: tuple[str, ...]) -> tuple[float, float] | None:
    """µm per level-0 pixel: the product of the scales that apply to it, where units are known."""
    transformations = [
        *image.get("coordinateTransformations", ()),
        *image["datasets"][0].get("coordinateTransformations", ()),
    ]
    scales = [step["scale"] for step in transformations if "scale" in step]
    if not scales:
        return None
    mpp = []
    for name in "xy":
        place = axes.index(name)
        axis = image["axes"][place] if "axes" in image else name
        unit_um = None if isinstance(axis, str) else _UNITS_UM.get(axis.get("unit"))
        if unit_um is None:
            return None
        mpp.append(float(np.prod([float(scale[place]) for scale in scales])) * unit_um)
    return mpp[0], mpp[1]


def _reason(error: Exception) -> str:
    """What an exception says, in one line; its kind where it says too little."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
