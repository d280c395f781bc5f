"""Labelled example tiles for a filter: reading of the table, cutting and embedding of tiles."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.bags.h5 import to_storage_dtype
from features.encoders.base import Encoder
from features.errors import TableError
from features.filters.classifier import ExampleSlide, LabelledTiles
from features.slides.base import RgbArray, Slide
from features.slides.file_info import content_hash
from features.slides.reader import open_slide, slide_id_of
from features.slides.resolution import resolve_mpp
from features.tiling.grid import TileGrid, read_tile
from features.utils.paths import parse_url, slide_name
from features.utils.tables import (
    find_column,
    find_listed_file,
    find_optional_column,
    read_table,
)
from features.utils.text import is_missing_word, normalize_name

__all__ = ["ExampleRow", "embed_examples", "read_example_table"]

_BATCH_TILES = 64
_COLUMNS = ("label", "path", "slide_path", "slide_id", "image_id", "patient_id", "x", "y")
_LABELS = {"keep": False, "drop": True}
_WHOLE = re.compile(r"(-?\d+)(?:\.0+)?")
"""Whole number, also as programs write it where other rows of its column are empty."""


@dataclass(frozen=True, kw_only=True)
class ExampleRow:
    """One row of a table of examples: an image to cut into tiles, or one tile of a slide.

    ``where`` names table and row in messages; ``patient_id`` is empty if unknown. An image, at the
    resolution of a tile, has ``image_path``, and ``slide_path`` if the file of its slide is known;
    a tile of a slide has ``slide_path`` and ``corner_px0``, its upper left corner, x then y, in
    level-0 px.
    """

    where: str
    drop: bool
    slide_id: str
    patient_id: str
    image_path: Path | None
    slide_path: Path | None
    corner_px0: tuple[int, int] | None


def read_example_table(path: Path) -> tuple[ExampleRow, ...]:
    """Read a table of examples.

    Columns: ``label`` (``keep`` or ``drop``); then either ``path``, an image of a tile or of a
    larger region, with ``slide_id``, or ``slide_path`` with ``x`` and ``y`` in level-0 px; and
    optionally ``patient_id``. A table may mix both kinds. Paths are relative to its folder. Raises
    TableError if a column or cell is missing, a label is neither keep nor drop, coordinates are not
    integers, a tile occurs twice, or a slide has two patients or two files.
    """
    table = read_table(path)
    find_column(table, ["label"], where=path, what="keep or drop in every row")
    find_column(table, ["path", "slide_path"], where=path, what="images of tiles, or slides")
    columns = {
        name: column
        for name in _COLUMNS
        if (column := find_optional_column(table, name, where=path))
    }
    rows = tuple(
        _parse_row(path, number, {name: str(cells[column]) for name, column in columns.items()})
        for number, cells in zip(table.index + 2, table.to_dict("records"), strict=True)
    )
    _check_unique_tiles(rows)
    _check_one_per_slide(rows, "patient", lambda row: row.patient_id)
    _check_one_per_slide(rows, "file", lambda row: row.slide_path)
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
    """Cut the examples into tiles and embed them, giving features of shape (n_tiles, dim).

    An image larger than a tile is cut into all whole tiles it holds, each with the row's label. A
    tile has ``tile_px`` px per side and ``target_mpp`` µm per px, which images must have;
    ``given_mpp`` is µm per level-0 px by slide id, for slides whose file states none or a wrong
    one. ``on_row`` is called after the tiles of a row have been read. Raises SlideError if an image
    or slide cannot be read, TableError if an image is smaller than a tile, a tile starts outside
    its slide, or is a copy of one with another label or of another patient or slide.
    """
    embeddings: list[npt.NDArray[np.float32]] = []
    sources: list[ExampleRow] = []
    tiles = _read_tiles(rows, tile_px, target_mpp, given_mpp, on_row)
    seen: dict[bytes, ExampleRow] = {}
    patients = _patients_of(rows)
    while batch := list(islice(tiles, _BATCH_TILES)):
        for row, pixels in batch:
            _check_no_copy(row, pixels, seen, patients)
        sources += [row for row, _ in batch]
        embeddings.append(encoder.embed(np.stack([pixels for _, pixels in batch])))
    slides = _slides_of(rows)
    indices = {slide.slide_id: index for index, slide in enumerate(slides)}
    return LabelledTiles(
        features=to_storage_dtype(np.concatenate(embeddings)),
        drop=np.array([row.drop for row in sources], bool),
        slide_index=np.array([indices[row.slide_id] for row in sources], np.int64),
        slides=slides,
    )


def _check_no_copy(
    row: ExampleRow,
    pixels: RgbArray,
    seen: dict[bytes, ExampleRow],
    patients: Mapping[str, str],
) -> None:
    """Raise for a tile, (tile_px, tile_px, 3), that is one seen before; folds would not part them.

    Tiles of one colour, such as glass, may be equal. ``patients`` are those known by slide id.
    """
    if not np.ptp(pixels, axis=(0, 1)).any():
        return
    first = seen.setdefault(hashlib.sha256(pixels.tobytes()).digest(), row)
    is_same_slide = row.slide_id == first.slide_id
    patient, other = (patients.get(one.slide_id, "") for one in (row, first))
    if row.drop != first.drop or not (is_same_slide or (patient and patient == other)):
        raise TableError(
            row.where,
            actual=f"a tile with the same pixels as one of {first.where}",
            expected="one label of each tile, and tiles of one slide or patient",
            hint="Delete the row of the copy.",
        )


def _slide_path(path: Path, row: int, slide: str) -> Path:
    if parse_url(slide):
        return Path(slide)
    return find_listed_file(path, row, slide, expected="a slide")


def _parse_row(path: Path, row: int, cells: Mapping[str, str]) -> ExampleRow:
    where = f"{path}, row {row}"
    label, image, slide = (cells.get(name, "") for name in ("label", "path", "slide_path"))
    if label.lower() not in _LABELS:
        raise TableError(where, actual=f"label {label!r}", expected="keep or drop")
    if not image and not slide:
        raise TableError(where, actual="neither path nor slide_path", expected="one of them")
    named = cells.get("slide_id") or cells.get("image_id") or ""
    named = "" if is_missing_word(named) else named
    patient = cells.get("patient_id", "")
    if not named and not slide:
        raise TableError(
            where,
            actual="no slide_id",
            expected="the slide that the image comes from",
            hint="Without it, tiles of one slide would be in both training and test folds.",
        )
    return ExampleRow(
        where=where,
        drop=_LABELS[label.lower()],
        slide_id=slide_name(named) if named else slide_id_of(slide),
        patient_id="" if is_missing_word(patient) else normalize_name(patient),
        corner_px0=None if image else _corner(where, cells),
        image_path=find_listed_file(path, row, image, expected="an image") if image else None,
        slide_path=_slide_path(path, row, slide) if slide else None,
    )


def _corner(where: str, cells: Mapping[str, str]) -> tuple[int, int]:
    x, y = (_WHOLE.fullmatch(cells.get(name, "")) for name in ("x", "y"))
    if x and y:
        return int(x[1]), int(y[1])
    raise TableError(
        where,
        actual=f"x {cells.get('x', '')!r}, y {cells.get('y', '')!r}",
        expected="whole numbers, the tile's upper left corner in level-0 px",
    )


def _check_unique_tiles(rows: Sequence[ExampleRow]) -> None:
    known: dict[object, str] = {}
    for row in rows:
        tile = row.image_path or (row.slide_path, row.corner_px0)
        if (first := known.setdefault(tile, row.where)) != row.where:
            raise TableError(
                row.where, actual=f"the same tile as in {first}", expected="each tile once"
            )


def _check_one_per_slide(
    rows: Sequence[ExampleRow], name: str, value_of: Callable[[ExampleRow], object]
) -> None:
    known: dict[str, object] = {}
    for row in rows:
        value = value_of(row)
        if value and known.setdefault(row.slide_id, value) != value:
            raise TableError(
                row.where,
                actual=f"{name} {str(value)!r} for slide {row.slide_id!r}, which has "
                f"{str(known[row.slide_id])!r} above",
                expected=f"one {name} per slide",
            )


def _patients_of(rows: Sequence[ExampleRow]) -> dict[str, str]:
    """Return the patient by slide id, from any row of a slide that names it."""
    return {row.slide_id: row.patient_id for row in rows if row.patient_id}


def _slides_of(rows: Sequence[ExampleRow]) -> tuple[ExampleSlide, ...]:
    """Return the slides of a table, in order, with patient and content from any of their rows."""
    patients = _patients_of(rows)
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
) -> Iterator[tuple[ExampleRow, RgbArray]]:
    """Yield row and pixels, shape (tile_px, tile_px, 3), of all tiles.

    Consecutive rows of one slide share its open file.
    """
    for path, file_rows in groupby(rows, key=lambda row: row.image_path or row.slide_path):
        with closing(open_slide(path or "")) as slide:
            for row in file_rows:
                grid = _grid_of(slide, row, tile_px, target_mpp, given_mpp.get(row.slide_id))
                for index in range(len(grid.coords_px0)):
                    yield row, read_tile(slide, grid, index)
                on_row()


def _grid_of(
    slide: Slide, row: ExampleRow, tile_px: int, target_mpp: float, given_mpp: float | None
) -> TileGrid:
    """Return all whole tiles of an image, or the one tile of a slide that a row states."""
    width, height = slide.levels[0].width_px, slide.levels[0].height_px
    if row.corner_px0 is None:
        if min(width, height) < tile_px:
            raise TableError(
                row.where,
                actual=f"{row.image_path} of {width} × {height} px",
                expected=f"at least {tile_px} × {tile_px} px, one tile",
                hint="Export larger images, or set the size of a tile with --tile-px.",
            )
        starts = (np.arange(0, side - tile_px + 1, tile_px) for side in (width, height))
        corners = np.stack(np.meshgrid(*starts), axis=-1).reshape(-1, 2)
        tile_width_px0 = tile_height_px0 = float(tile_px)
    else:
        x, y = row.corner_px0
        if not (0 <= x < width and 0 <= y < height):
            raise TableError(
                row.where,
                actual=f"({x}, {y})",
                expected=f"a position on the slide of {width} × {height} px",
            )
        resolution = resolve_mpp(slide.stated_mpp, given_mpp=given_mpp, where=slide.path)
        corners = np.array([[x, y]])
        tile_width_px0 = tile_px * target_mpp / resolution.mpp_x
        tile_height_px0 = tile_px * target_mpp / resolution.mpp_y
    return TileGrid(
        coords_px0=corners.astype(np.int64),
        tissue_fraction=np.ones(len(corners), np.float32),
        tile_width_px0=tile_width_px0,
        tile_height_px0=tile_height_px0,
        tile_px=tile_px,
        min_tissue_used=0.0,
    )
