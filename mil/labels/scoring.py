"""Scores of a predictions file with several labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.tables import find_column, read_table
from mil.errors import PredictionsError
from mil.labels.metrics import paired, weighted_label_loss
from mil.labels.table import LabelTable
from mil.metrics import Interval
from mil.scoring import score_predictions

__all__ = ["LabelScores", "read_label_predictions", "score_labels"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelScores:
    """What was found of one file."""

    losses: Mapping[str, Interval]
    """Weighted log loss of all labels: of the ``predictions`` as they stand, and of the ``cohort
    prior``, the shares of the patients scored."""
    labels: Mapping[str, Mapping[str, Interval]]
    """Scores of each label by itself, see :func:`mil.scoring.score_predictions`."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "weighted_label_loss": {kind: _plain(loss) for kind, loss in self.losses.items()},
            "labels": {
                name: {kind: _plain(score) for kind, score in scores.items()}
                for name, scores in self.labels.items()
            },
        }


def read_label_predictions(path: Path, table: LabelTable) -> Floats:
    """Probabilities of labels in the order of the table's patients, shape (patients, labels).

    Raises
    ------
    TableError
        If a column is missing.
    PredictionsError
        If a value is no probability, or patients are missing, unknown or there twice.
    """
    rows = read_table(path)
    ids = rows[find_column(rows, ["patient_id"], where=path, what="patient ids")]
    for name in table.names:
        find_column(rows, [name], where=path, what="one column a label")
    numbers = rows[list(table.names)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = ~((numbers >= 0) & (numbers <= 1))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value = rows[table.names[column]].iloc[row]
        raise PredictionsError(
            f"{path}, row {row + 2}", found=f"{table.names[column]} is {value!r}",
            expected="a probability",
        )  # fmt: skip
    known = table.patients.patient_ids
    if sorted(ids) != sorted(known):
        odd = sorted(set(ids) ^ set(known)) or sorted(ids[ids.duplicated()])
        raise PredictionsError(
            path, found=f"{len(ids)} rows for {len(known)} patients (first that differs: "
            f"{odd[0]!r})", expected=f"one row for each patient of {table.patients.path}",
        )  # fmt: skip
    places = {name: place for place, name in enumerate(ids)}
    return np.asarray(numbers[[places[name] for name in known]], np.float64)


def score_labels(proba: Floats, table: LabelTable, *, n_resamples: int, seed: int) -> LabelScores:
    """Score predictions that are for the shares of the patients scored.

    Parameters
    ----------
    proba
        Shape (patients, labels), in the order of the table.
    table
        Patients and labels.
    n_resamples, seed
        Of the bootstrap.
    """
    shares = table.truth.mean(axis=0)
    kinds = {"predictions": proba, "cohort prior": np.broadcast_to(shares, proba.shape)}
    labels = {}
    for place, name in enumerate(table.names):
        at_cohort = paired(shares[place])
        labels[name] = score_predictions(
            paired(proba[:, place]), table.truth[:, place], file_prior=at_cohort,
            prior=at_cohort, n_resamples=n_resamples, seed=seed,
        )  # fmt: skip
    return LabelScores(
        losses={
            kind: weighted_label_loss(
                values, table.truth, names=table.names, n_resamples=n_resamples, seed=seed
            )
            for kind, values in kinds.items()
        },
        labels=labels,
    )


def _plain(score: Interval) -> dict[str, object]:
    return {"value": score.value, "interval": [score.low, score.high]}
