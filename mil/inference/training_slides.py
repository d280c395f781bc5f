"""Slides that a run was trained on, as its bundle lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save

from features.bags.tile_keys import TileKeys, no_sketch
from features.utils.files import atomic_write
from features.utils.tables import read_table, write_table
from features.utils.text import normalize_name
from mil.data.copies import CopyIndex, SlideIdentity
from mil.data.patient_groups import LinkedPairs

__all__ = ["linked_patients", "read_training_slides", "write_training_slides"]

_COLUMNS = (
    "slide_id", "patient_id", "n_tiles", "content_id", "features_sha256", "tiles_sha256",
)  # fmt: skip
_SKETCHES = ".safetensors"


def write_training_slides(path: Path, slides: Sequence[SlideIdentity]) -> None:
    """Write one row per slide, and the sketches of their tiles beside the table.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    rows = [{name: getattr(slide, name) for name in _COLUMNS} for slide in slides]
    write_table(path, pd.DataFrame(rows, columns=_COLUMNS))
    sketches = [slide.tile_sketch for slide in slides]
    tensors = {
        "keys": np.concatenate([no_sketch(), *sketches]),
        "counts": np.array([len(sketch) for sketch in sketches], np.int64),
    }
    with atomic_write(path.with_suffix(_SKETCHES)) as temporary:
        temporary.write_bytes(save(tensors))


def read_training_slides(path: Path) -> tuple[SlideIdentity, ...]:
    """Read the slides of a run; those of earlier runs lack some ways to recognise a copy.

    Raises
    ------
    TableError, OSError, SafetensorError, LookupError, TypeError, ValueError
        If a file is missing or damaged.
    """
    rows = read_table(path).to_dict("records")
    sketches = _read_sketches(path.with_suffix(_SKETCHES), n_slides=len(rows))
    return tuple(
        SlideIdentity(
            slide_id=normalize_name(row["slide_id"]),
            patient_id=normalize_name(row["patient_id"]),
            n_tiles=int(row["n_tiles"]),
            content_id=row["content_id"],
            features_sha256=row["features_sha256"],
            tiles_sha256=row.get("tiles_sha256", ""),
            tile_sketch=sketch,
        )
        for row, sketch in zip(rows, sketches, strict=True)
    )


def linked_patients(slides: Sequence[SlideIdentity]) -> LinkedPairs:
    """Return pairs of patients that share a slide, by its file or its tiles."""
    pairs = (
        (slides[one].patient_id, slides[other].patient_id)
        for one, other in CopyIndex(slides).pairs()
    )
    return tuple(dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]))


def _read_sketches(path: Path, *, n_slides: int) -> list[TileKeys]:
    """Return the sketches of a file, shape (n_keys,) each; empty ones without the file."""
    if not path.is_file():
        return [no_sketch()] * n_slides
    tensors = load_file(path)
    keys, counts = tensors["keys"], tensors["counts"]
    if keys.dtype != np.uint64 or keys.ndim != 1 or counts.shape != (n_slides,):
        raise ValueError(f"{path.name}: {keys.dtype} keys of {counts.shape} slides")
    if (counts < 0).any() or counts.sum() != len(keys):
        raise ValueError(f"{path.name}: {counts.sum()} keys stated, {len(keys)} there")
    return np.split(keys, np.cumsum(counts)[:-1])
