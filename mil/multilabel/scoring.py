"""Scores of predictions of several labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from features.utils.tables import find_column, read_table
from mil.arrays import Floats
from mil.data.cohort import match_ids
from mil.evaluation.metrics import Interval, as_two_columns
from mil.evaluation.predictions import (
    average_predictions,
    check_same_ids,
    read_probabilities,
)
from mil.evaluation.scoring import ScoreReport, ScoreSettings, score_model
from mil.multilabel.metrics import shift_labels, weighted_label_loss
from mil.multilabel.table import LabelTable

__all__ = ["LabelScores", "average_labels", "read_label_predictions", "score_labels"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelScores:
    """Scores of the predictions, shape (patients, labels), of one file.

    ``losses`` are weighted log losses of all labels, in nats: ``raw``, on request ``calibrated``,
    and ``cohort prior`` (the shares of the scored patients as predictions).
    """

    losses: Mapping[str, Interval]
    labels: Mapping[str, ScoreReport]

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "weighted_label_loss": {kind: loss.as_dict() for kind, loss in self.losses.items()},
            "labels": {name: label.as_dict() for name, label in self.labels.items()},
        }


def read_label_predictions(path: Path, table: LabelTable, *, is_part: bool = False) -> Floats:
    """Return probabilities in the order of the table's patients, shape (patients, labels).

    With ``is_part``, rows of other patients are left out.

    Raises
    ------
    TableError
        If a column or an id is missing.
    CohortError
        If the last row is one of totals.
    PredictionsError
        If a value is not a probability, or patients are missing, unknown or duplicated.
    """
    rows = read_table(path)
    ids, _, _ = match_ids(rows, table.patients, ["patient_id"], where=path, has_others=is_part)
    spellings = {
        find_column(rows, [name], where=path, what="one column per label"): name
        for name in table.names
    }
    rows = rows.rename(columns=spellings)
    patient_ids = table.patients.patient_ids
    if is_part:
        rows, ids = rows[ids.isin(patient_ids)], ids[ids.isin(patient_ids)]
    values = read_probabilities(path, rows, table.names)
    check_same_ids(path, ids, table.patients, set(patient_ids), what="patients")
    row_of = {name: row for row, name in enumerate(ids)}
    return np.asarray(values[[row_of[name] for name in patient_ids]], np.float64)


def average_labels(tables: Sequence[Floats], *, how: Literal["probability", "logit"]) -> Floats:
    """Return the mean of several files, shape (patients, labels) each.

    ``how`` is as for :func:`mil.evaluation.predictions.average_predictions`.
    """
    pairs = [
        as_two_columns(np.stack(of_label)) for of_label in zip(*(t.T for t in tables), strict=True)
    ]
    return np.stack([average_predictions(list(pair), how=how)[:, 1] for pair in pairs], axis=1)


def score_labels(
    proba: Floats, table: LabelTable, settings: ScoreSettings, *, file_prior: Floats, prior: Floats
) -> LabelScores:
    """Score predictions, shape (patients, labels), raw and after cross-fitted calibration.

    They are in the order of the table. ``file_prior`` and ``prior``, shape (labels,), are the
    shares of patients with each label in the predictions, and those at which calibration is
    measured; they replace the priors of the settings.

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
