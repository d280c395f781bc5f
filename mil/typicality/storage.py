"""Files of a typicality reference in the folder of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save

from features.utils.files import atomic_write
from features.utils.tables import read_table, write_table
from mil.typicality.distances import CoreTiles, MeanTiles
from mil.typicality.reference import TypicalityReference

__all__ = ["read_reference", "write_reference"]

_CORE, _PATIENTS = "typicality.safetensors", "typicality.csv"


def write_reference(folder: Path, reference: TypicalityReference) -> None:
    """Write ``typicality.csv``, one row per patient, and ``typicality.safetensors``.

    The second holds the core tiles, shape (core tiles, components), and the mean tiles, shape
    (patients, components), float16.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    table = pd.DataFrame({
        "patient_id": reference.patient_ids,
        "center_id": reference.centres,
        "distance": reference.distances,
        "typicality": reference.p_values,
        "typicality_in_other_centres": reference.centre_p_values,
        "group": reference.groups,
        "n_core_tiles": reference.core.counts,
        "n_sampled_tiles": reference.means.counts,
        "sum_of_squares": reference.means.squares,
    })  # fmt: skip
    write_table(folder / _PATIENTS, table)
    tensors = {
        "core": reference.core.tiles.astype(np.float16),
        "means": reference.means.means.astype(np.float16),
        "tile_limit": np.array([reference.tile_limit]),
    }
    with atomic_write(folder / _CORE) as temporary:
        temporary.write_bytes(save(tensors))


def read_reference(folder: Path) -> TypicalityReference:
    """Read the files of :func:`write_reference`.

    Raises
    ------
    TableError, OSError, SafetensorError, LookupError, TypeError, ValueError
        If a file is missing or damaged.
    """
    tensors = load_file(folder / _CORE)
    table = read_table(folder / _PATIENTS)
    others = table["typicality_in_other_centres"].replace("", "nan")
    return TypicalityReference(
        patient_ids=tuple(table["patient_id"]),
        groups=table["group"].to_numpy().astype(np.int64),
        core=CoreTiles(
            tiles=np.ascontiguousarray(tensors["core"], np.float32),
            counts=table["n_core_tiles"].to_numpy().astype(np.int64),
        ),
        means=MeanTiles(
            means=np.ascontiguousarray(tensors["means"], np.float32),
            squares=table["sum_of_squares"].to_numpy().astype(np.float64),
            counts=table["n_sampled_tiles"].to_numpy().astype(np.int64),
        ),
        distances=table["distance"].to_numpy().astype(np.float64),
        tile_limit=float(tensors["tile_limit"][0]),
        centres=tuple(table["center_id"]),
        centre_p_values=others.to_numpy().astype(np.float64),
    )
