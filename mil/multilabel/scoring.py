"""Scores of predictions of several labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.utils.tables import find_column, read_table
from mil.errors import PredictionsError
from mil.evaluation.metrics import Interval, as_two_columns
from mil.evaluation.predictions import average_predictions
from mil.evaluation.scoring import ScoreReport, ScoreSettings, score_model
from mil.multilabel.metrics import shift_labels, weighted_label_loss
from mil.multilabel.table import LabelTable

__all__ = ["LabelScores", "average_labels", "read_label_predictions", "score_labels"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelScores:
    """Scores of one predictions file."""

    losses: Mapping[str, Interval]
    """Weighted log loss of all labels, in nats: ``raw``, on request ``calibrated``, and ``cohort
    prior`` (the shares of the scored patients as predictions)."""
    labels: Mapping[str, ScoreReport]
    """Scores of each label."""

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "weighted_label_loss": {kind: loss.as_dict() for kind, loss in self.losses.items()},
            "labels": {name: label.as_dict() for name, label in self.labels.items()},
        }


def read_label_predictions(path: Path, table: LabelTable) -> Floats:
    """Return probabilities in the order of the table's patients, shape (patients, labels).

    Raises
    ------
    TableError
        If a column is missing.
    PredictionsError
        If a value is not a probability, or patients are missing, unknown or duplicated.
    """
    rows = read_table(path)
    ids = rows[find_column(rows, ["patient_id"], where=path, what="patient ids")]
    for name in table.names:
        find_column(rows, [name], where=path, what="one column per label")
    numbers = rows[list(table.names)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = ~((numbers >= 0) & (numbers <= 1))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value = rows[table.names[column]].iloc[row]
        raise PredictionsError(
            f"{path}, row {row + 2}", actual=f"{table.names[column]} is {value!r}",
            expected="a probability",
        )  # fmt: skip
    known = table.patients.patient_ids
    if sorted(ids) != sorted(known):
        odd = sorted(set(ids) ^ set(known)) or sorted(ids[ids.duplicated()])
        raise PredictionsError(
            path, actual=f"{len(ids)} rows for {len(known)} patients (first that differs: "
            f"{odd[0]!r})", expected=f"one row for each patient of {table.patients.path}",
        )  # fmt: skip
    rows_of = {name: row for row, name in enumerate(ids)}
    return np.asarray(numbers[[rows_of[name] for name in known]], np.float64)


def average_labels(tables: Sequence[Floats], *, how: Literal["probability", "logit"]) -> Floats:
    """Return the mean of several files, shape (patients, labels).

    Parameters
    ----------
    tables
        Probabilities of each file, shape (patients, labels).
    how
        As for :func:`mil.evaluation.predictions.average_predictions`.
    """
    pairs = [
        as_two_columns(np.stack(of_label)) for of_label in zip(*(t.T for t in tables), strict=True)
    ]
    return np.stack([average_predictions(list(pair), how=how)[:, 1] for pair in pairs], axis=1)


def score_labels(
    proba: Floats, table: LabelTable, settings: ScoreSettings, *, file_prior: Floats, prior: Floats
) -> LabelScores:
    """Score predictions, raw and, on request, after cross-fitted calibration.

    Parameters
    ----------
    proba
        Probabilities, float64, shape (patients, labels), in the order of the table.
    table
        Patients and labels.
    settings
        Settings of the scoring; its priors are replaced by those of each label.
    file_prior
        Share of patients with each label in the predictions, shape (labels,).
    prior
        Shares at which the calibration of each label is measured, shape (labels,).

    Raises
    ------
    CalibrationError
        As :func:`mil.evaluation.scoring.score_model`.
    """
    shares = table.truth.mean(axis=0)
    labels = {
        name: score_model(
            as_two_columns(proba[:, index]),
            table.cohort_of(name),
            replace(
                settings, file_prior=as_two_columns(file_prior[index]),
                prior=as_two_columns(prior[index])
            ),
        )
        for index, name in enumerate(table.names)
    }  # fmt: skip
    kinds = {"raw": proba}
    if not np.array_equal(file_prior, shares):
        kinds["raw"] = shift_labels(proba, old=file_prior, new=shares)
    calibrated = [label.calibrated for label in labels.values() if label.calibrated is not None]
    if calibrated:
        even = np.full(len(shares), 0.5)
        balanced = np.stack([each[..., 1] for each in calibrated], axis=-1)
        kinds["calibrated"] = shift_labels(balanced, old=even, new=shares)
    kinds["cohort prior"] = np.broadcast_to(shares, proba.shape)
    return LabelScores(
        losses={
            kind: weighted_label_loss(
                values, table.truth, names=table.names, n_resamples=settings.n_resamples,
                seed=settings.seed,
            )
            for kind, values in kinds.items()
        },
        labels=labels,
    )  # fmt: skip
