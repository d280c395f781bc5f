"""OME-Zarr in a folder, in a zip or behind a URL, read chunk by chunk."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ZipStore

from features.errors import CONTENT_ERRORS, SlideError, TileError
from features.slides.backends.base import MAX_SIDE_PX, BlockGrid, BlockReader
from features.slides.backends.fluorescence import check_names
from features.slides.backends.mpp_text import mpp_in_ome, read_ome_image
from features.slides.backends.sample_bits import bits_of_maximum, resolve_bits, to_eight_bits
from features.slides.backends.samples import rgb_order
from features.slides.backends.scenes import Picture, choose_scene, companion_name
from features.slides.backends.zarr_codecs import with_size_limits
from features.slides.base import RgbArray, StatedMpp
from features.slides.length_units import um_per_unit
from features.slides.pixels import hides_picture, to_rgb
from features.slides.resolution import choose_mpp
from features.slides.zeroed import ZEROED, RawPixels, is_bright
from features.utils.paths import has_slide_suffix, parse_url

__all__ = ["OmeZarrSlide"]

_MAX_CHUNK_SAMPLES = 1 << 30
_MAX_MEMBER_BYTES = 1 << 31
"""Largest file in a zip: two bytes for each sample of the largest chunk."""
_N_CHANNELS = (1, 3, 4)
_LEAST_CLEAR_OR_OPAQUE = 0.9
"""Share of pixels that are wholly transparent or opaque where a fourth channel is alpha."""
_SLACK = 0.01
"""Difference of a level's size from its scale that rounding can bring."""
_LEAST_ZEROS = 512
_N_BIT_SAMPLES = 8
_N_TRIED = 3
"""Chunks of a level that are tried when a slide is opened."""
_OME_XML = "OME/METADATA.ome.xml"
_MAX_SERIES = 1000
_NO_IMAGES = {"OME", "labels"}
"""Groups of metadata, and of masks that OME-NGFF keeps apart from images."""
_EXPECTED = "OME-Zarr, that is zarr with OME-NGFF metadata"
_ZARR_NAMES = (".zarr", ".zarr.zip", ".ozx")


@dataclass(frozen=True, eq=False, kw_only=True)
class _ChunkGrid(BlockGrid):
    """Chunks of one level; each is decoded as a whole, with all its channels."""

    array: zarr.Array[Any]
    other_fill: zarr.Array[Any]
    """The same with another fill value, so that pixels that are not stored differ."""
    axes: tuple[str, ...]
    is_raw: bool
    """Whether chunks are stored as they are, without any compression."""

    @property
    def fill_value(self) -> int:
        """Sample of pixels that are not stored."""
        return int(self.array.fill_value or 0)

    def read(self, row: int, column: int) -> npt.NDArray[Any] | None:
        """Read a chunk, cut at the border, shape (height, width[, channels]) in px.

        None if it is not stored, or holds the fill value alone without compression, as a copy that
        stopped may leave it; EOFError if only some of its channels are stored.
        """
        pixels = self._read(self.array, row, column)
        channels = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
        is_filled = (channels == self.fill_value).all(axis=0)
        if is_filled.all() and self.is_raw:
            return None
        if self.is_raw and self._is_zeroed(pixels, row, column):
            raise EOFError(ZEROED)
        if not is_filled.any():
            return pixels
        others = self._read(self.other_fill, row, column).reshape(channels.shape)
        n_missing = int((others != channels).all(axis=0).sum())
        if n_missing == channels.shape[1]:
            return None
        if n_missing:
            message = f"{n_missing} of {channels.shape[1]} channels are not stored"
            raise EOFError(message)
        return pixels

    def _is_zeroed(self, pixels: npt.NDArray[Any], row: int, column: int) -> bool:
        """Whether zeros in an uncompressed chunk are no black fill.

        Where they fill whole rows, fill would go on in the chunks beside it.
        """
        top, left = row * self.block_height_px, column * self.block_width_px
        right = left + pixels.shape[1]
        is_planar = pixels.ndim == 3 and self.axes[-1] != "c"
        for channel, plane in enumerate(np.moveaxis(pixels, -1, 0) if is_planar else [pixels]):
            rows = np.ascontiguousarray(plane).reshape(len(plane), -1).view(np.uint8)
            is_zero = np.logical_not(np.any(rows, axis=1))
            if is_zero.all() or not is_zero.any():
                continue
            stream = rows.tobytes()
            raw = RawPixels(
                offsets=np.zeros(1, np.uint64), end=len(stream), columns=1, block_rows=len(rows),
                sample_bytes=pixels.dtype.itemsize, row_bytes=rows.shape[1],
                pixel_bytes=plane[0, 0].nbytes,
            )  # fmt: skip
            if raw.are_zeroed(partial(_part_of, stream), 0, stream):
                return True
            edges = np.flatnonzero(np.diff(is_zero, prepend=False, append=False)).reshape(-1, 2)
            for first, end in edges[np.diff(edges)[:, 0] * rows.shape[1] >= _LEAST_ZEROS].tolist():
                y, bottom = top + first, top + end
                if not (0 < y < bottom < self.height_px and 0 < left < right < self.width_px):
                    continue
                beside = (
                    self._read_box(self.array, *box)
                    for box in (
                        (y - 1, y, left, right), (bottom, bottom + 1, left, right),
                        (y, bottom, left - 1, left), (y, bottom, right, right + 1),
                    )
                )  # fmt: skip
                if all(
                    is_bright((side[..., channel] if is_planar else side).tobytes())
                    for side in beside
                ):
                    return True
        return False

    def _read(self, array: zarr.Array[Any], row: int, column: int) -> npt.NDArray[Any]:
        top, left = row * self.block_height_px, column * self.block_width_px
        bottom = min(top + self.block_height_px, self.height_px)
        return self._read_box(
            array, top, bottom, left, min(left + self.block_width_px, self.width_px)
        )

    def _read_box(
        self, array: zarr.Array[Any], top: int, bottom: int, left: int, right: int
    ) -> npt.NDArray[Any]:
        """Pixels between these rows and columns of the level, px."""
        slices = {"y": slice(top, bottom), "x": slice(left, right), "c": slice(None)}
        pixels = np.asarray(array[tuple(slices.get(axis, 0) for axis in self.axes)])
        kept = [axis for axis in self.axes if axis in slices]
        pixels = pixels.transpose([kept.index(axis) for axis in "yxc" if axis in kept])
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


class OmeZarrSlide(BlockReader):
    """An OME-Zarr image in a folder, a zip, or behind a URL that fsspec knows (``s3://…``).

    Serves OME-NGFF up to 0.4 (zarr v2) and 0.5 (zarr v3), grey, RGB or RGBA of 8 or 16 bit, one
    plane at one time, in any order of axes, as pixels of shape (height, width, 3), uint8. Chunks
    that are not stored have the fill value where glass borders on them, and are lost where tissue
    does. Of several images in one store, as ``bioformats2raw``
    writes them, the largest that is no companion is the slide, or the scene of a number. Raises
    MultiImageError if the largest are of one size, SceneError if there is no such scene, SlideError
    if it is not such an image, or cannot be reached.
    """

    reader = "ome-zarr"
    _block_noun = "chunk"
    _grids: list[_ChunkGrid]

    def __init__(self, path: Path | str, scene: int | None = None) -> None:
        super().__init__(Path(path))
        self._where = parse_url(path) or str(path)
        self._store: Store | None = None
        self._bits = 16
        self._order: tuple[int, ...] | None = None
        self._known_stored: dict[tuple[_ChunkGrid, int, int], bool] = {}
        try:
            with warnings.catch_warnings():
                # They name files beside the images.
                warnings.filterwarnings("ignore", module=r"zarr(\.|$)")
                self._open(path, scene)
        except SlideError:
            self.close()
            raise
        except Exception as error:  # fsspec and zarr raise errors of many kinds
            self.close()
            raise SlideError(
                self._where,
                actual=f"cannot be opened ({_reason(error)})",
                expected=_EXPECTED,
                hint="Install what is missing with pip, or download it."
                if isinstance(error, ImportError)
                else "",
            ) from error

    def close(self) -> None:
        """Close the store and release cached chunks."""
        super().close()
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self, path: Path | str, scene: int | None) -> None:
        """Open the store, choose the image, and check it."""
        self._store, folder = _open_store(path)
        group = zarr.open_group(self._store, mode="r", path=folder)
        group, image = self._choose_image(group, scene)
        axes = _axes_of(image)
        image = _finest_first(group, image, axes)
        check_names(_channel_labels(_ome_of(group)), where=self._where)
        self._grids = list(self._read_grids(group, image["datasets"], axes))
        self.stated_mpp, notes = choose_mpp(self._read_mpp(image, folder))
        self.warnings += notes
        self._check_order()
        self._check_alpha()
        self._order = _rgb_order(_ome_of(group))
        self._bits, notes = self._read_bits(_ome_of(group), folder)
        self.warnings += notes
        self._check_chunks()
        self.levels = self._make_levels()

    def _read_mpp(self, image: Mapping[str, Any], folder: str) -> Iterator[StatedMpp]:
        """What 'multiscales' states, else the OME-XML that bioformats2raw puts beside it."""
        stated = list(_mpp_of(image, self._grids[0].axes))
        yield from stated or mpp_in_ome(self._read_ome_xml(folder))

    def _read_ome_xml(self, folder: str) -> Mapping[str, str]:
        """Attributes of the image in the OME-XML of the store; empty without any."""
        first = self._grids[0]
        with suppress(Exception):  # most have no such file; a damaged one costs nothing else
            ome = _read_text(self.path, f"{folder}/{_OME_XML}".lstrip("/"))
            return read_ome_image(ome, width_px=first.width_px, height_px=first.height_px)[0]
        return {}

    def _read_bits(self, attributes: Mapping[str, Any], folder: str) -> tuple[int, tuple[str, ...]]:
        """Bits that samples of 16 bit use, and warnings; some chunks are read for it."""
        grid = self._grids[0]
        if grid.array.dtype.itemsize != 2:
            return 16, ()
        stated, field = None, ""
        with suppress(KeyError, ValueError):
            stated = int(self._read_ome_xml(folder)["SignificantBits"])
            field = "SignificantBits of the OME-XML"
        if stated is None:
            with suppress(KeyError, TypeError, AttributeError):
                windows = [channel["window"] for channel in attributes["omero"]["channels"]]
                stated = bits_of_maximum([window["max"] for window in windows])
                field = "window.max of 'omero'"
        largest = 0
        for index in np.linspace(0, grid.rows * grid.columns - 1, _N_BIT_SAMPLES, dtype=int):
            with suppress(Exception):  # a damaged chunk is reported where it is read
                pixels = grid.read(*divmod(int(index), grid.columns))
                if pixels is not None:
                    colours = pixels[..., :3] if pixels.ndim == 3 else pixels
                    largest = max(largest, int(colours.max()))
        stated = stated if stated is None or 8 <= stated <= 16 else None
        return resolve_bits(stated, field=field, largest=largest)

    def _choose_image(
        self, group: zarr.Group, scene: int | None
    ) -> tuple[zarr.Group, Mapping[str, Any]]:
        """The group of the image that is the slide, and its entry of ``multiscales``."""
        ome = _ome_of(group)
        images = [(group, image) for image in ome.get("multiscales") or ()]
        if not images and "plate" in ome:
            image_path = _first_image_of(group, ome["plate"])
            raise SlideError(
                self._where,
                actual="a plate of many images",
                expected="the image of one well",
                hint=f"Unzip it, and name one, such as {image_path} in it."
                if isinstance(self._store, ZipStore)
                else f"Name it, such as {self._where}/{image_path}.",
            )
        if not images:
            images = list(_images_below(group))
        if not images:
            raise SlideError(
                self._where, actual="a zarr group, no 'multiscales'", expected=_EXPECTED
            )
        if any(not image.get("datasets", True) for _, image in images):
            raise self._unsupported("'multiscales' without datasets")
        if len(images) == 1 and scene is None:
            return images[0]
        pictures = [self._picture_of(member, image) for member, image in images]
        choice = choose_scene(pictures, scene=scene, where=self._where)
        self.scene, self.other_scenes = choice.scene, choice.other_scenes
        self.associated_images = choice.associated_images
        return images[choice.index]

    def _picture_of(self, group: zarr.Group, image: Mapping[str, Any]) -> Picture:
        """Name and level-0 size, px, of an image."""
        array = group.get(image["datasets"][0]["path"]) if image.get("datasets") else None
        if not isinstance(array, zarr.Array):
            raise self._unsupported("'multiscales' without datasets")
        axes = _axes_of(image) or tuple("tczyx"[-array.ndim :])
        sizes = dict(zip(axes, array.shape, strict=False))
        member = group.path.rpartition("/")[2]
        names = [str(image.get("name") or ""), "" if member.isdigit() else member]
        named = [name for name in names if companion_name(name)]
        return Picture(
            name=next(filter(None, [*named, *names]), ""),
            width_px=sizes.get("x", 0),
            height_px=sizes.get("y", 0),
            is_companion="image-label" in _ome_of(group),
            mpp=_mean_mpp(image, axes),
        )

    def _read_grids(
        self, group: zarr.Group, datasets: Sequence[Mapping[str, Any]], axes: tuple[str, ...]
    ) -> Iterator[_ChunkGrid]:
        """Chunks of all levels, without coarser ones that cannot be served or lie elsewhere."""
        first = self._read_grid(group, datasets[0]["path"], axes)
        yield first
        for dataset in datasets[1:]:
            name = dataset["path"]
            try:
                grid = self._read_grid(group, name, axes)
            except SlideError as error:
                self.warnings += (f"level {name!r} is set aside: {error.actual}",)
                continue
            stated, factor = _factor_of(datasets[0], dataset, axes), first.width_px / grid.width_px
            slack_px = max(2.0, _SLACK * grid.width_px)
            if stated is None or abs(first.width_px / stated - grid.width_px) <= slack_px:
                yield grid
            else:
                text = f"its scale is {stated:.4g} times the finest, its size {factor:.4g} times"
                self.warnings += (f"level {name!r} is set aside: {text} smaller",)

    def _read_grid(self, group: zarr.Group, name: str, axes: tuple[str, ...]) -> _ChunkGrid:
        """Chunks of an array, after checks that it can be served."""
        array = group.get(name)
        if not isinstance(array, zarr.Array):
            raise self._unsupported(f"no array {name!r}, which 'multiscales' lists")
        axes = axes or tuple("tczyx"[-array.ndim :])
        if len(axes) != array.ndim or len(set(axes)) != array.ndim or not {"y", "x"} <= set(axes):
            raise self._unsupported(f"axes {', '.join(axes)} for {array.ndim} dimensions")
        sizes = dict(zip(axes, array.shape, strict=True))
        many = {axis: size for axis, size in sizes.items() if axis not in "cyx" and size != 1}
        if many:
            text = ", ".join(f"{size} along {axis}" for axis, size in many.items())
            raise self._unsupported(
                f"more than one plane ({text})", hint="Export the plane to embed alone."
            )
        if sizes.get("c", 1) not in _N_CHANNELS:
            raise self._unsupported(
                f"{sizes['c']} channels",
                hint="Export red, green and blue of a stained slide alone.",
            )
        if array.dtype.kind != "u" or array.dtype.itemsize > 2:
            raise self._unsupported(
                f"samples of type {array.dtype}",
                hint="Scale its values to 0 to 255 and store them as uint8.",
            )
        width, height = sizes["x"], sizes["y"]
        if not 0 < width <= MAX_SIDE_PX or not 0 < height <= MAX_SIDE_PX:
            raise self._unsupported(f"{width} × {height} px")
        if not 0 < np.prod(array.chunks, dtype=np.float64) <= _MAX_CHUNK_SAMPLES:
            raise self._unsupported(f"chunks of {' × '.join(map(str, array.chunks))}")
        chunks = dict(zip(axes, array.chunks, strict=True))
        return _ChunkGrid(
            array=with_size_limits(array), other_fill=_with_other_fill(array), axes=axes,
            is_raw=_is_raw(array.metadata),
            width_px=width, height_px=height,
            block_width_px=chunks["x"], block_height_px=chunks["y"],
        )  # fmt: skip

    def _check_order(self) -> None:
        """Raise an error unless each level is at most as large as the one before."""
        for previous, grid in pairwise(self._grids):
            if grid.width_px > previous.width_px or grid.height_px > previous.height_px:
                raise self._unsupported(
                    f"a level of {grid.width_px} × {grid.height_px} px after one of "
                    f"{previous.width_px} × {previous.height_px} px"
                )

    def _check_alpha(self) -> None:
        """Raise an error if the fourth channel, of which OME-NGFF says nothing, is no alpha."""
        grid = self._grids[-1]
        pixels = None
        with suppress(Exception):  # a damaged chunk is reported where it is read
            pixels = grid.read(grid.rows // 2, grid.columns // 2)
        if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4:
            return
        fourth, full = pixels[..., 3], np.iinfo(pixels.dtype).max
        if hides_picture(pixels) or np.isin(fourth, (0, full)).mean() < _LEAST_CLEAR_OR_OPAQUE:
            raise self._unsupported("4 channels, of which the fourth is no transparency")

    def _check_chunks(self) -> None:
        """Raise an error if none of some chunks of any level can be decoded."""
        first_error = None
        for level, grid in reversed(list(enumerate(self._grids))):
            for index in np.linspace(0, grid.rows * grid.columns - 1, _N_TRIED, dtype=int).tolist():
                try:
                    self._decode(level, *divmod(index, grid.columns))
                except TileError as error:
                    first_error = first_error or error
                else:
                    return
        if first_error is not None:
            raise SlideError(
                self._where, actual=f"none of the sampled chunks can be decoded, first: "
                f"{first_error.actual}", expected="pixels", hint="Copy it again.",
            )  # fmt: skip

    def _unsupported(
        self, actual: str, *, hint: str = "Export it again, as OME-Zarr or tiled TIFF."
    ) -> SlideError:
        return SlideError(
            self._where, actual=actual, hint=hint,
            expected="OME-Zarr of 8 or 16 bit with 1, 3 or 4 channels in one plane, finest first",
        )  # fmt: skip

    def _is_stored(self, level: int, row: int, column: int) -> bool:
        """Whether a chunk is stored; one that cannot be read is."""
        key = self._grids[level], row, column
        if key not in self._known_stored:
            try:
                self._known_stored[key] = self._decode(level, row, column) is not None
            except TileError:
                self._known_stored[key] = True
        return self._known_stored[key]

    def _fill_rgb(self, level: int) -> tuple[int, int, int]:
        grid = self._grids[level]
        n_channels = dict(zip(grid.axes, grid.array.shape, strict=True)).get("c", 1)
        pixel = np.full((1, 1, n_channels), grid.fill_value, grid.array.dtype)
        if self._bits < 16 and pixel.dtype == np.uint16:
            pixel = to_eight_bits(pixel, self._bits)
        red, green, blue = to_rgb(pixel, background_rgb=self.background_rgb)[0, 0].tolist()
        return red, green, blue

    def _decode(self, level: int, row: int, column: int) -> RgbArray | None:
        """One chunk, None if it is not stored.

        zarr reopens it each time, so no retry on a fresh handle is needed.
        """
        try:
            pixels = self._grids[level].read(row, column)
        except Exception as error:
            raise TileError(
                self._where,
                actual=f"{self._name_block(level, row, column)} cannot be read ({_reason(error)})",
                expected="pixels",
                hint="Copy it again.",
            ) from error
        if pixels is None:
            return None
        if self._order and pixels.ndim == 3 and pixels.shape[2] >= len(self._order):
            pixels = pixels[..., [*self._order, *range(len(self._order), pixels.shape[2])]]
        if self._bits < 16 and pixels.dtype == np.uint16:
            pixels = to_eight_bits(pixels, self._bits)
        return to_rgb(pixels, background_rgb=self.background_rgb)


def _ome_of(group: zarr.Group) -> Mapping[str, Any]:
    """Metadata of OME-NGFF: below ``ome`` since version 0.5, else the attributes themselves."""
    attributes: Any = group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    return ome if isinstance(ome, Mapping) else {}


def _images_below(group: zarr.Group) -> Iterator[tuple[zarr.Group, Mapping[str, Any]]]:
    """Images in the groups of a store: numbered by bioformats2raw, else under any name.

    Groups that lie one below the other are listed where the store can list them.
    """
    names = [str(number) for number in range(_MAX_SERIES)]
    if "bioformats2raw.layout" not in _ome_of(group):
        names = sorted(name for name, _ in group.groups())
    for name in names:
        member = group.get(name)
        if not isinstance(member, zarr.Group):
            if name.isdigit():
                return
            continue
        if name not in _NO_IMAGES:
            yield from ((member, image) for image in _ome_of(member).get("multiscales") or ())


def _first_image_of(group: zarr.Group, plate: Mapping[str, Any]) -> str:
    """Path of the first image of the first well of a plate."""
    well, image = "A/1", "0"
    with suppress(*CONTENT_ERRORS):
        well = plate["wells"][0]["path"]
        member: Any = group[well]
        image = _ome_of(member)["well"]["images"][0]["path"]
    return f"{well}/{image}"


def _open_store(path: Path | str) -> tuple[Store, str]:
    """The store, and the folder of the image within it."""
    url = parse_url(path)
    if url is not None:
        if has_slide_suffix(url) and not url.lower().endswith(_ZARR_NAMES):
            raise SlideError(
                url, actual="the URL of a file", expected=_EXPECTED,
                hint="Download it, and name the file.",
            )  # fmt: skip
        return FsspecStore.from_url(url, read_only=True), ""
    path = Path(path)
    if path.is_dir():
        return LocalStore(path, read_only=True), ""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
        folders = {member.filename.partition("/")[0] for member in members}
        if (
            largest := max((member.file_size for member in members), default=0)
        ) > _MAX_MEMBER_BYTES:
            raise SlideError(
                path, actual=f"a file of {largest:,} bytes in its zip",
                expected=f"at most {_MAX_MEMBER_BYTES:,}",
            )  # fmt: skip
        # A zip of a folder has that folder as its only entry; a zip of its contents has metadata.
        return ZipStore(path, mode="r"), folders.pop() if len(folders) == 1 else ""
    raise SlideError(path, actual="neither a folder nor a zip", expected=_EXPECTED)


def _read_text(path: Path, name: str) -> str:
    """A text file of a store; an error where there is none."""
    url = parse_url(path)
    if url is not None:
        with fsspec.open(f"{url}/{name}", "rb") as stream:
            return str(stream.read().decode(errors="replace"))
    if path.is_dir():
        return (path / name).read_text(errors="replace")
    with zipfile.ZipFile(path) as file:
        return file.read(name).decode(errors="replace")


def _part_of(stream: bytes, n_bytes: int, position: int) -> bytes:
    return stream[position : position + n_bytes]


def _is_raw(metadata: Any) -> bool:
    """Whether chunks of an array are stored without compression, filters and shards."""
    if metadata.zarr_format == 2:
        return metadata.compressor is None and not metadata.filters
    return all(codec.to_dict()["name"] == "bytes" for codec in metadata.codecs)


def _with_other_fill(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array with another value for pixels that are not stored."""
    other = array.dtype.type(1 if int(array.fill_value or 0) != 1 else 2)
    metadata: Any = replace(array.metadata, fill_value=other)
    return with_size_limits(zarr.Array(zarr.AsyncArray(metadata, array.store_path)))


def _axes_of(image: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the axes in order, channels as ``c``; empty before OME-NGFF 0.3."""
    names = []
    for axis in image.get("axes", ()):
        if isinstance(axis, str):
            names.append(axis.lower())
        else:
            names.append("c" if axis.get("type") == "channel" else axis["name"].lower())
    return tuple(names)


def _finest_first(
    group: zarr.Group, image: Mapping[str, Any], axes: tuple[str, ...]
) -> Mapping[str, Any]:
    """The entry of an image in ``multiscales`` with its levels by size, if its first is there."""

    def area_px(dataset: Mapping[str, Any]) -> int:
        array = group.get(dataset["path"])
        if not isinstance(array, zarr.Array):
            return 0
        sizes = dict(zip(axes or "tczyx"[-array.ndim :], array.shape, strict=False))
        return sizes.get("x", 0) * sizes.get("y", 0)

    areas = [area_px(dataset) for dataset in image["datasets"]]
    order = sorted(range(len(areas)), key=lambda level: -areas[level]) if areas[0] else ()
    return {**image, "datasets": [image["datasets"][level] for level in order]} if order else image


def _mpp_of(image: Mapping[str, Any], axes: tuple[str, ...]) -> Iterator[StatedMpp]:
    """µm per level-0 px along x and y: the product of all scales; nothing without known units."""
    transformations = [
        *(image.get("coordinateTransformations") or ()),
        *(image["datasets"][0].get("coordinateTransformations") or ()),
    ]
    scales = [step["scale"] for step in transformations if isinstance(step.get("scale"), list)]
    described = image.get("axes", axes)
    units = {
        name: None if isinstance(axis, str) else um_per_unit(axis.get("unit"))
        for name, axis in zip(axes, described, strict=True)
    }
    x_um, y_um = units["x"] or units["y"], units["y"] or units["x"]
    if scales and x_um is not None and y_um is not None:
        x, y = (
            math.prod(float(scale[axes.index(axis)]) for scale in scales) * um
            for axis, um in (("x", x_um), ("y", y_um))
        )
        yield StatedMpp(x=x, y=y, field="the scales and units of 'multiscales'")


def _factor_of(
    finest: Mapping[str, Any], dataset: Mapping[str, Any], axes: tuple[str, ...]
) -> float | None:
    """Scale of a level along x over that of the finest; None if it has none of its own."""
    try:
        scales = [
            math.prod(
                float(step["scale"][axes.index("x")])
                for step in level["coordinateTransformations"]
                if isinstance(step.get("scale"), list)
            )
            for level in (finest, dataset)
        ]
        factor = scales[1] / scales[0]
    except CONTENT_ERRORS:
        return None
    # Writers that know no resolution state the same scale for every level.
    return factor if 1 < factor < math.inf else None


def _rgb_order(ome: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Indices of red, green and blue by the labels and colours of 'omero'; None if not stated."""
    try:
        channels = ome["omero"]["channels"][:3]
        colours = [int(str(channel.get("color") or "-1").strip("#"), 16) for channel in channels]
    except CONTENT_ERRORS:
        return None
    return rgb_order(_channel_labels(ome)[:3], colours)


def _channel_labels(ome: Mapping[str, Any]) -> list[str]:
    """Labels of all channels in 'omero', empty where a channel has none."""
    with suppress(*CONTENT_ERRORS):
        return [str(channel.get("label") or "") for channel in ome["omero"]["channels"]]
    return []


def _mean_mpp(image: Mapping[str, Any], axes: tuple[str, ...]) -> float | None:
    """µm per level-0 px, the geometric mean of both axes; None if not stated or wrongly."""
    try:
        mpp = next(iter(_mpp_of(image, axes)), None)
    except CONTENT_ERRORS:
        return None
    return math.sqrt(mpp.x * mpp.y) if mpp and min(mpp.x, mpp.y) > 0 else None


def _reason(error: Exception) -> str:
    """Kind and message of an exception."""
    return f"{type(error).__name__}: {error}"
