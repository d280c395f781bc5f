"""Export of attention: CSV tables, and GeoJSON rectangles for QuPath."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path

import pandas as pd

from features.utils.files import atomic_write
from features.utils.tables import write_table
from mil.base_learners import learner_key
from mil.inference.attention import SlideAttention

__all__ = ["tile_table", "write_geojson", "write_tile_table"]


def tile_table(slide: SlideAttention, *, classes: Sequence[str]) -> pd.DataFrame:
    """Return one row per tile: ``slide_id``, ``x_px0``, ``y_px0``, ``attention``, ``percentile``.

    Images of a series have ``order`` and ``source`` instead of the level-0 px. Columns
    ``contribution_<class>`` sum to the part of the logit that is a sum over tiles, and for a stack
    ``<learner>_<class>`` to the learner's own logit, where it is one. ``unlike`` is 1 for tiles
    unlike training tiles. The table has shape (tiles, columns).
    """
    position: dict[str, object] = {"order": slide.order, "source": slide.source}
    if slide.order is None:
        position = {"x_px0": slide.coords_px0[:, 0], "y_px0": slide.coords_px0[:, 1]}
    table = pd.DataFrame({
        "slide_id": slide.meta.slide_id,
        **position,
        "attention": slide.attention,
        "percentile": slide.percentile,
    })  # fmt: skip
    if slide.contributions is not None:
        for name, column in zip(classes, slide.contributions.T, strict=True):
            table[f"contribution_{name}"] = column
    if len(slide.by_learner) > 1:
        for learner, parts in slide.by_learner.items():
            for name, column in zip(classes, parts.T, strict=True):
                table[f"{learner_key(learner)}_{name}"] = column
    if slide.is_unlike is not None:
        table["unlike"] = slide.is_unlike.astype(int)
    return table


def write_tile_table(path: Path, slide: SlideAttention, *, classes: Sequence[str]) -> None:
    """Write :func:`tile_table`, shape (tiles, columns), coordinates in px, as CSV.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    write_table(path, tile_table(slide, classes=classes))


def write_geojson(
    path: Path, slide: SlideAttention, *, span_px0: tuple[float, float], classes: Sequence[str]
) -> None:
    """Write one rectangle per tile in level-0 px as GeoJSON, with its values for QuPath.

    Values of the table, shape (tiles, columns), become measurements; ``span_px0`` is the width and
    height of a tile.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    table = tile_table(slide, classes=classes).drop(columns="slide_id")
    features = [_rectangle(row, span_px0) for row in table.to_dict("records")]
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump({"type": "FeatureCollection", "features": features}, file, allow_nan=False)


def _rectangle(row: dict[Hashable, float], span_px0: tuple[float, float]) -> dict[str, object]:
    left, top = int(row.pop("x_px0")), int(row.pop("y_px0"))
    right, bottom = left + span_px0[0], top + span_px0[1]
    corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"objectType": "tile", "measurements": row},
    }
