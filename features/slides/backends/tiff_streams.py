"""Tiles of a TIFF that OpenSlide reads: those that are missing, and zeros in others.

Its decoders notice neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from features.slides.backends.base import StoredGrid, whole_grid
from features.slides.backends.openslide_properties import PHILIPS
from features.slides.backends.scn import LEICA, scn_areas
from features.slides.backends.tiff_tags import ENTROPY_CODED, PLAIN_JPEGS
from features.slides.zeroed import has_zeroed_data, is_zeroed_jpeg
from features.utils.image_headers import jpeg_stores_rgb

__all__ = ["JoinedStreams", "TiffStreams", "tiff_grids", "tiff_streams"]

_MAX_PAGES = 64
_APERIO, _NDPI, _TRESTLE, _VENTANA = "aperio", "hamamatsu", "trestle", "ventana"
_VENDORS = {_APERIO, "generic-tiff", _NDPI, PHILIPS}
"""Those of whose levels OpenSlide places the tiles as the TIFF does, without overlap."""
_TRESTLE_OVERLAPS = re.compile(r"OverlapsXY=([ \d]*)")
_BIF_INFO = re.compile(r"<ImageInfo\b([^>]*?)(?:/>|>(.*?)</ImageInfo>)", re.DOTALL)
_BIF_JOINT = re.compile(r"<TileJointInfo\b([^>]*)>")
_BIF_ORIGINS = re.compile(r"<AoiOrigin>(.*?)</AoiOrigin>", re.DOTALL)
_BIF_ORIGIN = re.compile(r"<\w+\b([^>]*)>")
_BIF_VALUE = re.compile(r'([\w-]+)="([^"]*)"')
_BIF_FIELD = re.compile(r"(\w+)=(\S+)")
_XMP_TAG = 700
_SCN_TOLERANCE = 0.04
"""OpenSlide takes areas for one level whose nm per px are within 2 % of those of the first."""
_SOURCE_LENS, _FOCAL_PLANE = "65421", "65424"
"""NDPI's magnification of a page, below 0 for companions, and focal plane; OpenSlide shows 0."""
_NDPI_FACTORS = (8, 4, 2, 1)
"""OpenSlide makes further levels of an NDPI, decoding so many px of a page to one."""
_MAX_NDPI_BYTES = 1 << 24
"""Longest JPEG of an NDPI without restart intervals that is looked at."""
_JPEG_END = b"\xff\xd9"
_JPEG_COLOURS = {tifffile.PHOTOMETRIC.RGB: "RGB", tifffile.PHOTOMETRIC.YCBCR: "YCbCr"}
_N_LOOKED_AT = 3
"""Tiles whose headers are compared with the tag, so that damage to one misleads nobody."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TiffStreams:
    """Tiles of one level, in rows of ``columns``."""

    path: Path
    tile_width_px: float
    tile_height_px: float
    """Size of a tile, or of each of its parts."""
    columns: int
    offsets: npt.NDArray[np.uint64]
    byte_counts: npt.NDArray[np.uint64]
    is_jpeg: bool
    jpeg_tables: bytes
    left_px: float = 0
    top_px: float = 0
    """Corner of the tiles in the level."""
    overlap_x_px: float = 0
    overlap_y_px: float = 0
    """Px that tiles, or their parts, side by side have in common."""
    n_parts: int = 1
    """Parts of a tile along each of its sides that are placed on their own."""
    shown_rows: range = range(1 << 32)
    shown_columns: range = range(1 << 32)
    """Rows and columns of tiles, or of their parts, that are shown, from the corner on."""
    colours: str = ""
    """What OpenSlide takes JPEG for, RGB or YCbCr, whatever the streams state; empty if neither."""
    ndpi_header: bytes = b""
    """What precedes the tiles of an NDPI page, which are restart intervals of one JPEG."""
    _verdicts: dict[int, bool] = field(default_factory=dict)

    def is_zeroed(self, x_px: int, y_px: int, width_px: int, height_px: int) -> bool:
        """Return whether zeros lie in the stream of any tile of a region, px of the level."""
        rows = _shown(
            int(y_px - self.top_px), height_px, self.tile_height_px, self.overlap_y_px,
            self.shown_rows,
        )  # fmt: skip
        columns = _shown(
            int(x_px - self.left_px), width_px, self.tile_width_px, self.overlap_x_px,
            self.shown_columns,
        )  # fmt: skip
        return any(
            self._is_zeroed_at(row * self.columns + column)
            for row in {row // self.n_parts for row in rows}
            for column in {column // self.n_parts for column in columns}
            if column < self.columns
        )

    def mistaken_for(self) -> str:
        """Return what OpenSlide takes the colours for where the streams state others, else ""."""
        largest = (
            np.argsort(self.byte_counts, kind="stable")[-_N_LOOKED_AT:] if self.colours else ()
        )
        said = {jpeg_stores_rgb(self._read_stream(int(index))) for index in largest} - {None}
        return self.colours if said == {self.colours != "RGB"} else ""

    def _is_zeroed_at(self, index: int) -> bool:
        if index >= len(self.offsets):
            return False
        if index not in self._verdicts:
            stream = self._read_stream(index)
            self._verdicts[index] = bool(stream) and self._has_zeros(stream)
        return self._verdicts[index]

    def _read_stream(self, index: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(int(self.offsets[index]))
            return file.read(int(self.byte_counts[index]))

    def _has_zeros(self, stream: bytes) -> bool:
        if not self.is_jpeg:
            return has_zeroed_data(stream)
        if self.ndpi_header:
            stream = self.ndpi_header + stream + _JPEG_END
        return is_zeroed_jpeg(stream, tables=self.jpeg_tables)


def _shown(
    start_px: int, length_px: int, tile_px: float, overlap_px: float, within: range
) -> range:
    """Numbers of the tiles along one side that a stretch of it shows."""
    step_px = tile_px - overlap_px
    first = math.floor((start_px - max(tile_px, step_px)) / step_px) + 1
    end = math.ceil((start_px + length_px) / step_px)
    return range(max(within.start, first), min(within.stop, end))


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedStreams:
    """Tiles of several areas of one level, in px of it."""

    areas: Sequence[TiffStreams]

    def is_zeroed(self, x_px: int, y_px: int, width_px: int, height_px: int) -> bool:
        """Return whether zeros lie in the stream of any tile of a region, px of the level."""
        return any(area.is_zeroed(x_px, y_px, width_px, height_px) for area in self.areas)

    def mistaken_for(self) -> str:
        """Return what the colours of any area are mistaken for, as for :class:`TiffStreams`."""
        return next(filter(None, (area.mistaken_for() for area in self.areas)), "")


def tiff_streams(
    path: Path, vendor: str, level_sizes_px: Sequence[tuple[int, int]]
) -> Mapping[tuple[int, int], TiffStreams | JoinedStreams]:
    """Return the tiles of each level of a TIFF by its width and height in px; empty for others."""
    found: dict[tuple[int, int], TiffStreams] = {}
    placed = _PLACED.get(vendor)
    if placed is not None:
        with suppress(Exception), tifffile.TiffFile(path) as file:
            return dict(placed(path, file, level_sizes_px))
    if vendor in _VENDORS:
        is_ndpi = vendor == _NDPI
        with suppress(Exception), tifffile.TiffFile(path, is_ndpi=is_ndpi) as file:
            for page in islice(file.pages, _MAX_PAGES):
                if is_ndpi:
                    found.update(_ndpi_streams_of(path, page.aspage()))
                    continue
                for size, streams in _streams_of(path, page.aspage()):
                    found.setdefault(size, streams)
    return found


def tiff_grids(
    path: Path, vendor: str, level_sizes_px: Sequence[tuple[int, int]]
) -> list[StoredGrid] | None:
    """Return the tiles of each level that a TIFF stores, or None if none is known to be missing.

    ``level_sizes_px`` are widths and heights, px.
    """
    found: dict[tuple[int, int], StoredGrid] = {}
    if vendor in _VENDORS - {_NDPI}:
        with suppress(Exception), tifffile.TiffFile(path, is_ndpi=False) as file:
            for page in islice(file.pages, _MAX_PAGES):
                whole: Any = page.aspage()
                if whole.is_tiled:
                    found.setdefault((whole.imagewidth, whole.imagelength), _stored_tiles(whole))
    grids = [found.get(size) or whole_grid(*size) for size in level_sizes_px]
    if vendor == _APERIO:
        for number in range(1, len(grids)):
            grids[number] = _without_holes(grids[number], grids[number - 1])
    return None if all(grid.stored is None for grid in grids) else grids


def _without_holes(grid: StoredGrid, finer: StoredGrid) -> StoredGrid:
    """A level without tiles in whose area the finer one has none: OpenSlide shows none there."""
    if finer.stored is None:
        return grid
    is_stored = np.zeros((finer.rows, finer.columns), bool)
    if finer.stored:  # an empty index means everything
        is_stored[tuple(zip(*finer.stored, strict=True))] = True
    down = grid.block_height_px * finer.height_px / grid.height_px / finer.block_height_px
    across = grid.block_width_px * finer.width_px / grid.width_px / finer.block_width_px
    whole = {
        (row, column)
        for row in range(grid.rows)
        for column in range(grid.columns)
        if is_stored[
            int(row * down) : math.ceil((row + 1) * down),
            int(column * across) : math.ceil((column + 1) * across),
        ].all()
    }
    return replace(grid, stored=frozenset(whole if grid.stored is None else whole & grid.stored))


def _stored_tiles(page: Any) -> StoredGrid:
    """Tiles of a page, without those that have no bytes or no place in any of its planes."""
    grid = whole_grid(page.imagewidth, page.imagelength)
    grid = replace(grid, block_width_px=page.tilewidth, block_height_px=page.tilelength)
    lists = (np.array(page.dataoffsets, np.uint64), np.array(page.databytecounts, np.uint64))
    is_stored = np.all(lists, axis=0).reshape(-1, grid.rows, grid.columns).all(axis=0)
    if is_stored.all():
        return grid
    places = zip(*(axis.tolist() for axis in np.nonzero(is_stored)), strict=True)
    return replace(grid, stored=frozenset(places))


def _streams_of(path: Path, page: Any) -> Iterator[tuple[tuple[int, int], TiffStreams]]:
    """The tiles of a page, if they are compressed in a way that is looked at.

    ValueError or TypeError for sizes that a damaged tag turned into something else than numbers.
    """
    is_jpeg = page.compression in PLAIN_JPEGS
    if not page.is_tiled or not (is_jpeg or page.compression in ENTROPY_CODED):
        return
    is_decoded_directly = (
        page.compression == tifffile.COMPRESSION.JPEG
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and (page.samplesperpixel, page.bitspersample) == (3, 8)
    )
    yield (page.imagewidth, page.imagelength), TiffStreams(
        path=path, tile_width_px=int(page.tilewidth), tile_height_px=max(1, int(page.tilelength)),
        colours=_JPEG_COLOURS.get(page.photometric, "") if is_decoded_directly else "",
        columns=-(-page.imagewidth // page.tilewidth),
        offsets=np.array(page.dataoffsets, np.uint64),
        byte_counts=np.array(page.databytecounts, np.uint64),
        is_jpeg=is_jpeg, jpeg_tables=page.jpegtables or b"",
    )  # fmt: skip


def _scn_streams(
    path: Path, file: tifffile.TiffFile, level_sizes_px: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], JoinedStreams]]:
    """Tiles of the scanned areas of a Leica slide, which its XML places in nm."""
    areas = list(scn_areas(file))
    for size in level_sizes_px:
        own = [
            (area, area.width_nm / width_px, directory)
            for area in areas
            for width_px, directory in area.levels
            if math.isclose(
                area.slide_width_nm * width_px / area.width_nm, size[0],
                rel_tol=_SCN_TOLERANCE, abs_tol=1,
            )
        ]  # fmt: skip
        # Areas of other px are placed in those of the finest, not scaled.
        nm_per_px = min((each for _, each, _ in own), default=math.nan)
        placed = [
            replace(streams, left_px=area.left_nm / nm_per_px, top_px=area.top_nm / nm_per_px)
            for area, _, directory in own
            for _, streams in _streams_of(path, file.pages[directory].aspage())
        ]
        yield size, JoinedStreams(areas=placed)


def _trestle_streams(
    path: Path, file: tifffile.TiffFile, level_sizes_px: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], TiffStreams]]:
    """Tiles of a Trestle slide, which overlap by px that the description states for each level."""
    stated = _TRESTLE_OVERLAPS.search(file.pages.first.description)
    overlaps = [int(number) for number in stated[1].split()] if stated else []
    for level, size in enumerate(level_sizes_px):
        across, down = (*overlaps[2 * level : 2 * level + 2], 0, 0)[:2]
        for _, streams in _streams_of(path, file.pages[level].aspage()):
            yield size, replace(streams, overlap_x_px=across, overlap_y_px=down)


def _bif_streams(
    path: Path, file: tifffile.TiffFile, level_sizes_px: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], JoinedStreams]]:
    """Tiles of the scanned areas of a Ventana slide, joined with the mean overlap of level 0.

    Tiles of other levels are cut into as many parts as they show tiles of level 0, and the parts
    joined in this way. Tiles of an area start at its origin in the TIFF and are shown at its
    position, whose y is counted upwards from below all areas to the lower edge.
    """
    pages: list[tuple[Any, dict[str, str]]] = [
        (page, fields) for each in file.pages
        if "level" in (fields := dict(_BIF_FIELD.findall((page := each.aspage()).description)))
    ]  # fmt: skip
    finest = pages[0][0]
    areas, across, down = _bif_areas(bytes(finest.tags[_XMP_TAG].value).decode(errors="replace"))
    step_x, step_y = finest.tilewidth - across, finest.tilelength - down
    heights = [int((int(area["NumRows"]) - 1) * step_y + finest.tilelength) for area in areas]
    bottoms = [int(_number(area["Pos-Y"])) for area in areas]
    top = max([0, *(sum(edges) for edges in zip(bottoms, heights, strict=True))])
    for size, (page, fields) in zip(level_sizes_px, pages, strict=True):
        downsample = _number(pages[0][1]["mag"]) / _number(fields["mag"])
        joined = []
        for area, bottom, height in zip(areas, bottoms, heights, strict=True):
            column = int(area["OriginX"]) // finest.tilewidth
            row = int(area["OriginY"]) // finest.tilelength
            left_px = int(_number(area["Pos-X"])) - column * step_x
            top_px = top - bottom - height - row * step_y
            joined += [
                replace(
                    streams, left_px=left_px / downsample, top_px=top_px / downsample,
                    tile_width_px=finest.tilewidth / downsample,
                    tile_height_px=finest.tilelength / downsample,
                    overlap_x_px=across / downsample, overlap_y_px=down / downsample,
                    n_parts=int(downsample),
                    shown_rows=range(row, row + int(area["NumRows"])),
                    shown_columns=range(column, column + int(area["NumCols"])),
                )
                for _, streams in _streams_of(path, page)
            ]  # fmt: skip
        yield size, JoinedStreams(areas=joined)


def _bif_areas(xml: str) -> tuple[list[dict[str, str]], float, float]:
    """Attributes of each scanned area and of its origin, and the mean overlaps, x and y, px."""
    areas: list[dict[str, str]] = []
    overlaps: dict[str, list[float]] = {"X": [], "Y": []}
    weights: dict[str, list[int]] = {"X": [], "Y": []}
    origins = _BIF_ORIGIN.findall(_BIF_ORIGINS.findall(xml)[0])
    for (area, joints), origin in zip(_BIF_INFO.findall(xml), origins, strict=True):
        stated = dict(_BIF_VALUE.findall(area + origin))
        if not int(stated["AOIScanned"]):
            continue
        areas.append(stated)
        for joint in map(dict, map(_BIF_VALUE.findall, _BIF_JOINT.findall(joints))):
            axis = "Y" if joint["Direction"] == "UP" else "X"
            overlaps[axis].append(_number(joint[f"Overlap{axis}"]))
            weights[axis].append(int(joint["Confidence"]))
    across, down = (float(np.average(overlaps[axis], weights=weights[axis])) for axis in "XY")
    return areas, across, down


def _number(text: str) -> float:
    """A number with a decimal point or comma."""
    return float(text.replace(",", "."))


_Streams = TiffStreams | JoinedStreams
_Placing = Callable[
    [Path, tifffile.TiffFile, Sequence[tuple[int, int]]],
    Iterator[tuple[tuple[int, int], _Streams]],
]
_PLACED: Mapping[str, _Placing] = {
    LEICA: _scn_streams, _TRESTLE: _trestle_streams, _VENTANA: _bif_streams,
}  # fmt: skip
"""By vendor: those whose tiles lie elsewhere in the level than in the TIFF."""


def _ndpi_streams_of(path: Path, page: Any) -> Iterator[tuple[tuple[int, int], TiffStreams]]:
    """The restart intervals of a page, also for the levels that OpenSlide makes of it."""
    width, height = page.imagewidth, page.imagelength
    is_whole = page.jpegheader is None
    is_level = page.tags.valueof(_SOURCE_LENS, 0) > 0 and not page.tags.valueof(_FOCAL_PLANE, 0)
    if not is_level or (is_whole and sum(page.databytecounts) > _MAX_NDPI_BYTES):
        return
    tile_width, tile_height = (width, height) if is_whole else (page.tilewidth, page.tilelength)
    offsets, byte_counts = (
        np.array(values, np.uint64) for values in (page.dataoffsets, page.databytecounts)
    )
    for factor in _NDPI_FACTORS:
        yield (width // factor, height // factor), TiffStreams(
            path=path, tile_width_px=max(1, tile_width // factor),
            tile_height_px=max(1, tile_height // factor), columns=-(-width // tile_width),
            offsets=offsets, byte_counts=byte_counts, is_jpeg=True, jpeg_tables=b"",
            ndpi_header=page.jpegheader or b"",
        )  # fmt: skip
