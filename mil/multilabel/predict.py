"""A run of several labels and a list of patients into one row of probabilities each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.utils.tables import write_table
from mil.data.cohort import Cohort
from mil.inference.predict import PatientPrediction, predict_patients
from mil.multilabel.train import MultiLabelBundle

__all__ = ["predict_labels", "write_label_details", "write_label_predictions"]

Floats = npt.NDArray[np.float64]
Predictions = Mapping[str, list[PatientPrediction]]


def predict_labels(
    run: MultiLabelBundle, cohort: Cohort, bags_dir: Path, *, prior: Floats
) -> dict[str, list[PatientPrediction]]:
    """Predict every patient by the bundle of each label.

    Parameters
    ----------
    run, cohort, bags_dir
        As for :func:`mil.inference.predict.predict_patients`.
    prior
        Shape (labels,): share of patients with each label that the probabilities are for.

    Raises
    ------
    BagError
        If a bag was made otherwise than the run's, or is damaged.
    """
    return {
        name: predict_patients(of_label, cohort, bags_dir, prior=np.array([1 - share, share]))
        for (name, of_label), share in zip(run.runs.items(), prior.tolist(), strict=True)
    }


def write_label_predictions(path: Path, predictions: Predictions) -> None:
    """Write ``patient_id`` and one column a label; a row need not sum to 1.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    first = next(iter(predictions.values()))
    table = pd.DataFrame({
        "patient_id": [p.patient_id for p in first],
        **{name: [p.probabilities[1] for p in own] for name, own in predictions.items()},
    })  # fmt: skip
    write_table(path, table)


def write_label_details(path: Path, predictions: Predictions) -> None:
    """Write what stands behind each row: slides, tiles, status, spread, whether it was seen.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    first = next(iter(predictions.values()))
    table = pd.DataFrame({
        "patient_id": [p.patient_id for p in first],
        "status": [p.status for p in first],
        "n_slides": [len(p.slide_ids) for p in first],
        "n_tiles": [sum(p.n_tiles.values()) for p in first],
        "seen_in_training": [str(bool(p.seen_as)).lower() for p in first],
        "seen_as": [p.seen_as for p in first],
        **{
            f"{what}_{name}": _column(own, what)
            for name, own in predictions.items()
            for what in ("out_of_fold", "lowest", "highest")
        },
    })  # fmt: skip
    write_table(path, table)


def _column(predictions: Sequence[PatientPrediction], what: str) -> list[float | None]:
    """A number of each patient that is about having the label."""
    found = [getattr(prediction, what) for prediction in predictions]
    return [None if pair is None else float(pair[1]) for pair in found]
