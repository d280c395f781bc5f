"""Example tiles for a filter: a table of what to keep and to drop, read, cut and embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.bags.h5 import to_storage_dtype
from features.encoders.encoder import Encoder
from features.errors import TableError
from features.filters.classifier import ExampleSlide, LabelledTiles
from features.slides.base import RgbArray, Slide
from features.slides.file_info import content_hash
from features.slides.reader import open_slide, slide_id_of
from features.slides.resolution import resolve_mpp
from features.tiling.grid import TileGrid, read_tile
from features.utils.paths import parse_url, strip_slide_suffix
from features.utils.tables import find_column, read_table

__all__ = ["ExampleRow", "embed_examples", "read_example_table"]

_BATCH_TILES = 64
_ANSWERS = {"keep": False, "drop": True}


@dataclass(frozen=True, kw_only=True)
class ExampleRow:
    """One row of a table of examples: an image cut into tiles, or one tile of a slide."""

    where: str
    """Table and row, for messages."""
    drop: bool
    """Whether its tiles are to be left out."""
    slide_id: str
    """The slide it comes from."""
    patient_id: str
    """Whose slide that is; empty where the table does not say."""
    image_path: Path | None
    """Image at the resolution of a tile; None where a slide and a place are given."""
    slide_path: Path | None
    """File of the slide; None where only its name is known."""
    corner_px0: tuple[int, int] | None
    """Upper left corner of the tile, x then y, level-0 px; None for an image."""


class _Tile(NamedTuple):
    """Pixels of one example, and which row of the table it comes from."""

    row: ExampleRow
    pixels: RgbArray


def read_example_table(path: Path) -> tuple[ExampleRow, ...]:
    """Read a table of examples.

    Columns: ``label`` (``keep`` or ``drop``); then either ``path``, an image of a tile or of a
    larger region, with ``slide_id``, or ``slide_path`` with ``x`` and ``y`` in level-0 px; and
    optionally ``patient_id``. Both kinds may stand in one table. Paths count from its folder.

    Raises
    ------
    TableError
        If a column or cell is missing, an answer is neither keep nor drop, a place is no number,
        the same tile stands there twice, or a slide has two patients or two files.
    """
    table = read_table(path)
    find_column(table, ["label"], where=path, what="keep or drop in every row")
    find_column(table, ["path", "slide_path"], where=path, what="images of tiles, or slides")
    rows = tuple(
        _parse_row(f"{path}, row {number}", {str(name): str(cell) for name, cell in cells.items()},
                   folder=path.parent)
        for number, cells in enumerate(table.to_dict("records"), start=2)
    )  # fmt: skip
    _refuse_twice(rows)
    for what, value_of in (("patient", lambda r: r.patient_id), ("file", lambda r: r.slide_path)):
        _refuse_two(rows, what, value_of)
    return rows


def embed_examples(
    rows: Sequence[ExampleRow],
    encoder: Encoder,
    *,
    tile_px: int,
    target_mpp: float,
    given_mpp: Mapping[str, float],
    on_row: Callable[[], None] = lambda: None,
) -> LabelledTiles:
    """Cut the examples into tiles and embed them.

    An image larger than a tile is cut into all whole tiles it holds, each with its answer.

    Parameters
    ----------
    rows
        From :func:`read_example_table`.
    encoder
        The backbone.
    tile_px
        Side of a tile, px.
    target_mpp
        Resolution of a tile, µm/px; images must have it.
    given_mpp
        µm per level-0 px by slide id, for slides whose file is silent or wrong.
    on_row
        Called when a row's tiles have been read.

    Raises
    ------
    SlideError
        If an image or slide cannot be read.
    TableError
        If an image is smaller than a tile, or a tile begins outside its slide.
    """
    embeddings: list[npt.NDArray[np.float32]] = []
    sources: list[ExampleRow] = []
    batch: list[RgbArray] = []
    for tile in _read_tiles(rows, tile_px, target_mpp, given_mpp, on_row):
        sources.append(tile.row)
        batch.append(tile.pixels)
        if len(batch) == _BATCH_TILES:
            embeddings.append(encoder.embed(np.stack(batch)))
            batch = []
    if batch:
        embeddings.append(encoder.embed(np.stack(batch)))
    slides = _seen_slides(rows)
    places = {slide.slide_id: place for place, slide in enumerate(slides)}
    return LabelledTiles(
        features=to_storage_dtype(np.concatenate(embeddings)),
        drop=np.array([row.drop for row in sources], bool),
        slide_index=np.array([places[row.slide_id] for row in sources], np.int64),
        slides=slides,
    )


def _parse_row(where: str, cells: Mapping[str, str], *, folder: Path) -> ExampleRow:
    label, image, slide = (cells.get(name, "") for name in ("label", "path", "slide_path"))
    if label.lower() not in _ANSWERS:
        raise TableError(where, actual=f"label {label!r}", expected="keep or drop")
    if not image and not slide:
        raise TableError(where, actual="neither path nor slide_path", expected="one of them")
    named = cells.get("slide_id") or cells.get("image_id") or ""
    if not named and not slide:
        raise TableError(
            where,
            actual="no slide_id",
            expected="the slide that the image comes from",
            hint="Without it tiles of one slide would be learned from and judged at once.",
        )
    return ExampleRow(
        where=where,
        drop=_ANSWERS[label.lower()],
        slide_id=strip_slide_suffix(named) if named else slide_id_of(slide),
        patient_id=cells.get("patient_id", ""),
        image_path=folder / image if image else None,
        slide_path=None if not slide else Path(slide) if parse_url(slide) else folder / slide,
        corner_px0=None if image else _corner(where, cells),
    )


def _corner(where: str, cells: Mapping[str, str]) -> tuple[int, int]:
    try:
        return int(cells.get("x", "")), int(cells.get("y", ""))
    except ValueError as error:
        raise TableError(
            where,
            actual=f"x {cells.get('x', '')!r}, y {cells.get('y', '')!r}",
            expected="whole numbers, the tile's upper left corner in level-0 px",
        ) from error


def _refuse_twice(rows: Sequence[ExampleRow]) -> None:
    known: dict[object, str] = {}
    for row in rows:
        tile = row.image_path or (row.slide_path, row.corner_px0)
        if tile in known:
            raise TableError(
                row.where, actual=f"the same tile as in {known[tile]}", expected="each tile once"
            )
        known[tile] = row.where


def _refuse_two(
    rows: Sequence[ExampleRow], what: str, value_of: Callable[[ExampleRow], object]
) -> None:
    known: dict[str, object] = {}
    for row in rows:
        value = value_of(row)
        if value and known.setdefault(row.slide_id, value) != value:
            raise TableError(
                row.where,
                actual=f"{what} {str(value)!r} for slide {row.slide_id!r}, which has "
                f"{str(known[row.slide_id])!r} above",
                expected=f"one {what} a slide",
            )


def _seen_slides(rows: Sequence[ExampleRow]) -> tuple[ExampleSlide, ...]:
    """The slides of a table, in order, with what any of their rows says of them."""
    patients = {row.slide_id: row.patient_id for row in rows if row.patient_id}
    files = {row.slide_id: row.slide_path for row in rows if row.slide_path is not None}
    return tuple(
        ExampleSlide(
            slide_id=slide_id,
            content_id=content_hash(files[slide_id]) if slide_id in files else "",
            patient_id=patients.get(slide_id, ""),
        )
        for slide_id in dict.fromkeys(row.slide_id for row in rows)
    )


def _read_tiles(
    rows: Sequence[ExampleRow],
    tile_px: int,
    target_mpp: float,
    given_mpp: Mapping[str, float],
    on_row: Callable[[], None],
) -> Iterator[_Tile]:
    """Tiles of all rows; rows of one slide that follow each other share its open file."""
    for path, of_file in groupby(rows, key=lambda row: row.image_path or row.slide_path):
        slide = open_slide(path or "")
        try:
            for row in of_file:
                grid = (
                    _cut(slide, row, tile_px)
                    if row.corner_px0 is None
                    else _place(slide, row, tile_px, target_mpp, given_mpp.get(row.slide_id))
                )
                for index in range(len(grid.coords_px0)):
                    yield _Tile(row, read_tile(slide, grid, index))
                on_row()
        finally:
            slide.close()


def _cut(image: Slide, row: ExampleRow, tile_px: int) -> TileGrid:
    """All whole tiles of an image."""
    width, height = image.levels[0].width_px, image.levels[0].height_px
    if min(width, height) < tile_px:
        raise TableError(
            row.where,
            actual=f"{row.image_path} of {width} × {height} px",
            expected=f"at least {tile_px} × {tile_px} px, one tile",
            hint="Export larger images, or give the tiles' size with --tile-px.",
        )
    columns, rows = (np.arange(0, side - tile_px + 1, tile_px) for side in (width, height))
    corners = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    return _grid(corners, tile_px, tile_width_px0=float(tile_px), tile_height_px0=float(tile_px))


def _place(
    slide: Slide, row: ExampleRow, tile_px: int, target_mpp: float, given_mpp: float | None
) -> TileGrid:
    """The one tile of a slide that a row names."""
    x, y = row.corner_px0 or (0, 0)
    width, height = slide.levels[0].width_px, slide.levels[0].height_px
    if not (0 <= x < width and 0 <= y < height):
        raise TableError(
            row.where, actual=f"({x}, {y})", expected=f"a place on the {width} × {height} px slide"
        )
    resolution = resolve_mpp(slide.mpp_xy, given_mpp=given_mpp, where=slide.path)
    return _grid(
        np.array([[x, y]]),
        tile_px,
        tile_width_px0=tile_px * target_mpp / resolution.mpp_x,
        tile_height_px0=tile_px * target_mpp / resolution.mpp_y,
    )


def _grid(
    corners: npt.NDArray[np.int64], tile_px: int, *, tile_width_px0: float, tile_height_px0: float
) -> TileGrid:
    return TileGrid(
        coords_px0=corners.astype(np.int64),
        tissue_fraction=np.ones(len(corners), np.float32),
        tile_width_px0=tile_width_px0,
        tile_height_px0=tile_height_px0,
        tile_px=tile_px,
        min_tissue_used=0.0,
    )
