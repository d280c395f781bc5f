"""Slides that a run was trained on, as its bundle lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from features.utils.tables import read_table, write_table
from features.utils.text import normalize_name
from mil.data.bags import content_keys
from mil.data.patient_groups import LinkedPairs

__all__ = ["TrainingSlide", "linked_patients", "read_training_slides", "write_training_slides"]


@dataclass(frozen=True, kw_only=True)
class TrainingSlide:
    """A slide that a run was trained on, identified by id and by content.

    ``features_sha256`` is the hash of its embeddings, shape (n_tiles, dim), ``tiles_sha256`` that
    of the embeddings in any order, empty in a run trained earlier, and ``content_id`` that of the
    slide file, see :func:`features.slides.file_info.content_hash`.
    """

    slide_id: str
    patient_id: str
    n_tiles: int
    content_id: str
    features_sha256: str
    tiles_sha256: str = ""

    @property
    def content_keys(self) -> tuple[tuple[str, str], ...]:
        """Keys that copies of the slide have in common, see :func:`mil.data.bags.content_keys`."""
        return content_keys(
            content_id=self.content_id, features_sha256=self.features_sha256,
            tiles_sha256=self.tiles_sha256, n_tiles=self.n_tiles,
        )  # fmt: skip


def write_training_slides(path: Path, slides: Sequence[TrainingSlide]) -> None:
    """Write one row per slide."""
    write_table(path, pd.DataFrame([asdict(slide) for slide in slides]))


def read_training_slides(path: Path) -> tuple[TrainingSlide, ...]:
    """Read the slides of a run; those of earlier runs lack the hash of tiles in any order."""
    table = read_table(path)
    return tuple(
        TrainingSlide(
            slide_id=normalize_name(row["slide_id"]),
            patient_id=normalize_name(row["patient_id"]),
            n_tiles=int(row["n_tiles"]),
            content_id=row["content_id"],
            features_sha256=row["features_sha256"],
            tiles_sha256=row.get("tiles_sha256", ""),
        )
        for row in table.to_dict("records")
    )


def linked_patients(slides: Sequence[TrainingSlide]) -> LinkedPairs:
    """Return pairs of patients that share a slide, by its file or its embeddings."""
    owners: dict[tuple[str, str], str] = {}
    keys = [(key, slide.patient_id) for slide in slides for key in slide.content_keys]
    pairs = ((owners.setdefault(key, patient_id), patient_id) for key, patient_id in keys)
    return tuple(dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]))
