"""Images in the data files of an MRXS slide, for zeros that OpenSlide's decoders do not notice."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.slides.zeroed import is_zeroed_picture

__all__ = ["MiraxStreams", "mirax_streams"]

_INDEX_VERSION_BYTES = 5
_POSITION = np.dtype([("flag", "u1"), ("x", "<i4"), ("y", "<i4")])
"""Place of a photograph of the camera, px of the finest level before any concatenation."""
_IMAGE = np.dtype([("index", "<i4"), ("offset", "<i4"), ("n_bytes", "<i4"), ("file", "<i4")])
_MAX_PAGES = 1_000_000
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MiraxStreams:
    """Tiles of one level, parts of images; all arrays have shape (tiles,), places in px of it."""

    paths: Sequence[Path]
    left_px: npt.NDArray[np.float64]
    top_px: npt.NDArray[np.float64]
    tile_width_px: float
    tile_height_px: float
    file_numbers: _Ints
    offsets: _Ints
    byte_counts: _Ints
    _verdicts: dict[tuple[int, int], bool] = field(default_factory=dict)

    def is_zeroed(self, x_px: int, y_px: int, width_px: int, height_px: int) -> bool:
        """Return whether zeros lie in any image that a region shows, px of the level."""
        is_shown = (
            (self.left_px < x_px + width_px) & (self.left_px + self.tile_width_px > x_px)
            & (self.top_px < y_px + height_px) & (self.top_px + self.tile_height_px > y_px)
        )  # fmt: skip
        return any(map(self._is_zeroed_at, np.flatnonzero(is_shown).tolist()))

    def _is_zeroed_at(self, tile: int) -> bool:
        image = int(self.file_numbers[tile]), int(self.offsets[tile])
        if image not in self._verdicts:
            with self.paths[image[0]].open("rb") as file:
                file.seek(image[1])
                stream = file.read(int(self.byte_counts[tile]))
            self._verdicts[image] = is_zeroed_picture(stream)
        return self._verdicts[image]


def mirax_streams(
    path: Path, properties: Mapping[str, str], sizes: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], MiraxStreams]:
    """Return the images of each level by its width and height in px.

    Parameters
    ----------
    path
        The ``.mrxs`` file.
    properties
        Those of OpenSlide, which hold the slide's ``Slidedat.ini``.
    sizes
        Width and height of each level, px.

    Returns
    -------
    dict
        Empty for an index of another form.
    """
    with suppress(Exception):  # OpenSlide has read it already, and judges what is wrong with it
        return dict(zip(sizes, _levels(path.with_suffix(""), properties), strict=True))
    return {}


def _levels(folder: Path, properties: Mapping[str, str]) -> Iterator[MiraxStreams]:
    """Tiles of all levels, placed as OpenSlide places them."""
    general, tree = "mirax.GENERAL.", "mirax.HIERARCHICAL."
    across = int(properties[f"{general}IMAGENUMBER_X"])
    down = int(properties[f"{general}IMAGENUMBER_Y"])
    divisions = int(properties.get(f"{general}CameraImageDivisionsPerSide", 1))
    sections = [
        f"mirax.{properties[f'{tree}HIER_0_VAL_{level}_SECTION']}."
        for level in range(int(properties[f"{tree}HIER_0_COUNT"]))
    ]
    paths = [
        folder / properties[f"mirax.DATAFILE.FILE_{number}"]
        for number in range(int(properties["mirax.DATAFILE.FILE_COUNT"]))
    ]
    index = (folder / properties[f"{tree}INDEXFILE"]).read_bytes()
    root = _INDEX_VERSION_BYTES + len(properties[f"{general}SLIDE_ID"].encode())
    (images_at,) = _numbers(index, root, 1)
    first = sections[0]
    width, height = (int(properties[f"{first}DIGITIZER_{side}"]) for side in ("WIDTH", "HEIGHT"))
    exponents = [int(properties[f"{section}IMAGE_CONCAT_FACTOR"]) for section in sections]
    photographs = _read_positions(index, root + 4, paths, properties)
    if photographs is None:
        rows, columns = np.divmod(
            np.arange(across // divisions * (down // divisions)), across // divisions
        )
        overlaps = [float(properties[f"{first}OVERLAP_{axis}"]) for axis in "XY"]
        x0 = columns * (width * divisions - overlaps[0])
        y0 = rows * (height * divisions - overlaps[1])
    else:
        x0, y0 = (photographs[axis].astype(np.float64) * 2 ** exponents[0] for axis in "xy")
    is_placed = (x0 != 0) | (y0 != 0) | (np.arange(len(x0)) == 0)
    for level, section in enumerate(sections):
        concatenated = 2 ** sum(exponents[: level + 1])
        parts = max(1, concatenated // divisions)
        images = np.concatenate(list(_read_images(index, images_at + 4 * level)))
        number, row, column = (
            each.ravel() for each in np.meshgrid(
                np.arange(len(images)), np.arange(parts), np.arange(parts), indexing="ij"
            )
        )  # fmt: skip
        x = images["index"][number] % across + column * divisions
        y = images["index"][number] // across + row * divisions
        is_inside = (x < across) & (y < down)
        number, x, y = number[is_inside], x[is_inside], y[is_inside]
        photograph = y // divisions * (across // divisions) + x // divisions
        is_shown = is_placed[photograph]
        number, x, y, photograph = (each[is_shown] for each in (number, x, y, photograph))
        yield MiraxStreams(
            paths=paths,
            left_px=(x0[photograph] + width * (x % divisions)) / concatenated,
            top_px=(y0[photograph] + height * (y % divisions)) / concatenated,
            tile_width_px=int(properties[f"{section}DIGITIZER_WIDTH"]) / parts,
            tile_height_px=int(properties[f"{section}DIGITIZER_HEIGHT"]) / parts,
            file_numbers=images["file"][number].astype(np.int64),
            offsets=images["offset"][number].astype(np.int64),
            byte_counts=images["n_bytes"][number].astype(np.int64),
        )  # fmt: skip


def _numbers(index: bytes, position: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}i", index, position)


def _first_page(index: bytes, position: int) -> int:
    """Position of the first page of the list that a pointer at a position leads to."""
    (list_at,) = _numbers(index, position, 1)
    return _numbers(index, list_at, 2)[1]


def _read_images(index: bytes, position: int) -> Iterator[npt.NDArray[np.void]]:
    """Places of images of one level in the data files, a page of the index at a time."""
    page_at = _first_page(index, position)
    for _ in range(_MAX_PAGES):
        count, next_at = _numbers(index, page_at, 2)
        yield np.frombuffer(index, _IMAGE, count, page_at + 8)
        if not next_at:
            return
        page_at = next_at


def _read_positions(
    index: bytes, root: int, paths: Sequence[Path], properties: Mapping[str, str]
) -> npt.NDArray[np.void] | None:
    """Places of the photographs, shape (photographs,); None where the slide states none."""
    records: dict[str, int] = {}
    n_records = 0
    tree = "mirax.HIERARCHICAL."
    for number in range(int(properties[f"{tree}NONHIER_COUNT"])):
        records.setdefault(properties[f"{tree}NONHIER_{number}_NAME"], n_records)
        n_records += int(properties[f"{tree}NONHIER_{number}_COUNT"])
    for name, unpack in (
        ("VIMSLIDE_POSITION_BUFFER", bytes), ("StitchingIntensityLayer", zlib.decompress)
    ):  # fmt: skip
        if name in records:
            (records_at,) = _numbers(index, root, 1)
            page_at = _first_page(index, records_at + 4 * records[name])
            offset, n_bytes, file = _numbers(index, page_at + 16, 3)
            with paths[file].open("rb") as data:
                data.seek(offset)
                return np.frombuffer(unpack(data.read(n_bytes)), _POSITION)
    return None
