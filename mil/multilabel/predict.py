"""Predict patients with a bundle of several labels: one row of probabilities per patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from features.bags.bag import BagRef
from features.bags.store import open_bags
from features.utils.tables import write_table
from mil.arrays import Floats
from mil.data.cohort import Cohort
from mil.inference.output import learner_details, typicality_details
from mil.inference.predict import PatientPrediction, predict
from mil.multilabel.train import MultiLabelBundle

__all__ = ["predict_labels", "write_label_details", "write_label_predictions"]

Predictions = Mapping[str, list[PatientPrediction]]

_COLUMNS: Mapping[str, Callable[[PatientPrediction], Floats | None]] = {
    "out_of_fold": lambda prediction: prediction.out_of_fold,
    "lowest": lambda prediction: prediction.ensemble_min,
    "highest": lambda prediction: prediction.ensemble_max,
}


def predict_labels(
    bundle: MultiLabelBundle,
    cohort: Cohort,
    bags: str | Path | Mapping[str, BagRef],
    *,
    prior: Floats,
    typicality: float | None = None,
) -> dict[str, list[PatientPrediction]]:
    """Predict every patient by the bundle of each label.

    Arguments are those of :func:`mil.inference.predict.predict`; ``prior``, shape (labels,), is the
    share of patients with each label that the probabilities are for.

    Raises
    ------
    BagError
        If there is no bag, or a bag was made with other settings than the run's or is damaged.
    """
    refs = bags if isinstance(bags, Mapping) else open_bags(Path(bags))
    return {
        name: predict(
            of_label, cohort, refs, prior=np.array([1 - share, share]), typicality=typicality
        )
        for (name, of_label), share in zip(bundle.bundles.items(), prior.tolist(), strict=True)
    }


def write_label_predictions(path: Path, predictions: Predictions) -> None:
    """Write ``patient_id`` and one column per label, shape (patients, 1 + labels).

    A row of probabilities need not sum to 1.

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
    """Write status, slides, tiles, training overlap and spread, shape (patients, columns).

    Of stacks, ``logit_share_<learner>_<label>`` is the share of a learner in the logit.

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
        "seen_in_training": [str(bool(p.matched_training_patient)).lower() for p in first],
        "seen_as": [p.matched_training_patient for p in first],
        **{
            f"{column}_{name}": _of_label([read(prediction) for prediction in own])
            for name, own in predictions.items()
            for column, read in _COLUMNS.items()
        },
    })  # fmt: skip
    for name, own in predictions.items():
        if any(p.learner_parts for p in own):
            shares = pd.DataFrame(map(learner_details, own))
            table = table.join(shares.add_suffix(f"_{name}"))
    if any(p.typicality is not None for p in first):
        table = table.join(pd.DataFrame(map(typicality_details, first)))
    write_table(path, table)


def _of_label(pairs: Sequence[Floats | None]) -> list[float | None]:
    """Return each patient's number for having the label; pairs have shape (2,)."""
    return [None if pair is None else float(pair[1]) for pair in pairs]
