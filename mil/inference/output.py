"""Predictions as files, and the caveats that a reader of them must know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from features.utils.spreadsheet_dates import date_hint
from features.utils.tables import write_table
from features.utils.text import list_names, nearest_names, pluralize
from mil.base_learners import learner_key
from mil.data.cohort import Cohort
from mil.inference.bundle import ModelBundle
from mil.inference.conformal import CrossConformal, min_calibration_size
from mil.inference.predict import PatientPrediction

__all__ = [
    "bag_caveats",
    "count_differences",
    "covariate_caveats",
    "describe_typicality",
    "learner_details",
    "missing_bag_caveats",
    "patient_caveats",
    "set_caveats",
    "typicality_caveats",
    "typicality_details",
    "undersized_caveats",
    "unlike_caveats",
    "write_details",
    "write_predictions",
]

_MAX_NAMED = 5
_NOTE_SEPARATOR = " | "
"""Between notes on the provenance of slides, which hold commas and semicolons."""
_STATUS_CAVEATS = {
    "no_bag": "without a readable slide got the prior",
    "no_tissue": "without tissue on their slides got the prior",
    "bag_refused": "without a bag that can be used got the prior",
    "out_of_range": "with embeddings of another scale than those of the training got the prior: "
    "check which encoder made them",
    "slides_missing": "predicted from part of their slides, because others have no bag that "
    "can be used",
}


def write_predictions(
    path: Path, predictions: Sequence[PatientPrediction], *, classes: Sequence[str]
) -> None:
    """Write ``patient_id`` and one column per class, shape (patients, 1 + classes), in order.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    table = pd.DataFrame(
        [[p.patient_id, *p.probabilities] for p in predictions], columns=["patient_id", *classes]
    )
    write_table(path, table)


def write_details(
    path: Path,
    predictions: Sequence[PatientPrediction],
    *,
    classes: Sequence[str],
    abstain: bool = False,
    typicality: bool = False,
) -> None:
    """Write the details of each prediction: status, slides, tiles, set, spread, training overlap.

    Where bags could not be used, a column says why. With ``abstain``, a column marks the patients
    who need review; with ``typicality``, columns show how much each is like the training patients.
    Of a stack, ``logit_share_<learner>`` is the share of a learner in the logit of the most
    probable class (:attr:`PatientPrediction.learner_shares`). Shape (patients, columns).

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    table = pd.DataFrame([_details(p, classes) for p in predictions])
    if not abstain:
        table = table.drop(columns="look_at")
    if not any(p.problems for p in predictions):
        table = table.drop(columns="problems")
    if typicality:
        table = table.join(pd.DataFrame(map(typicality_details, predictions)))
    if any(p.learner_parts for p in predictions):
        table = table.join(pd.DataFrame(map(learner_details, predictions)))
    write_table(path, table)


def learner_details(prediction: PatientPrediction) -> dict[str, float]:
    """Return the share of each learner of a stack in the logit, -1 to 1, by name of the column."""
    shares = prediction.learner_shares
    return {f"logit_share_{learner_key(name)}": share for name, share in shares.items()}


def bag_caveats(predictions: Sequence[PatientPrediction]) -> tuple[str, ...]:
    """Return warnings of patients that got the prior or lack slides, and why bags were not used."""
    caveats = []
    for status, words in _STATUS_CAVEATS.items():
        if of_status := [p for p in predictions if p.status == status]:
            count = pluralize(len(of_status), "patients")
            caveats.append(f"warning: {count} {words} ({_list_patients(of_status)})")
    problems = [error for p in predictions for error in p.problems.values()]
    caveats += [f"warning: not used: {error}" for error in problems[:_MAX_NAMED]]
    if len(problems) > _MAX_NAMED:
        caveats.append(
            f"warning: not used: {len(problems) - _MAX_NAMED} more bags, named with each patient"
        )
    return tuple(caveats)


def patient_caveats(predictions: Sequence[PatientPrediction]) -> tuple[str, ...]:
    """Return warnings and notes on patients without tissue, or used in training."""
    caveats = [*bag_caveats(predictions), *unlike_caveats(predictions)]
    if n_by_kind := count_differences(predictions):
        differing = [p for p in predictions if p.provenance]
        named = ", ".join(f"{kind} {n_patients}" for kind, n_patients in n_by_kind.items())
        caveats.append(
            f"note: slides of {pluralize(len(differing), 'patients')} differ from all training "
            f"slides ({named}); see the column 'provenance' of the details"
        )
    if n_matched := sum(bool(p.matched_training_patient) for p in predictions):
        caveats.append(
            f"warning: the run was trained on {n_matched} of these patients (or on their slides): "
            "use the out-of-fold columns of the details for them"
        )
    if n_used := sum(p.used_for_filter and not p.matched_training_patient for p in predictions):
        caveats.append(
            f"warning: the run's tile filter was fitted on slides of {n_used} of these patients: "
            "their scores are not those of new patients"
        )
    if n_whitened := sum(p.used_for_whitening for p in predictions):
        caveats.append(
            f"note: the run's whitening was fitted on {n_whitened} of these patients, without "
            "labels: their prediction sets hold all classes"
        )
    return tuple(caveats)


def unlike_caveats(predictions: Sequence[PatientPrediction]) -> tuple[str, ...]:
    """Return a warning on patients who are unlike the training patients, if there are any."""
    unlike = [p for p in predictions if p.unlike_training]
    if not unlike:
        return ()
    level = max(p.typicality.level for p in unlike if p.typicality is not None)
    n_scored = sum(p.typicality is not None for p in predictions)
    caveat = (
        f"warning: {len(unlike)} of {pluralize(n_scored, 'patients')} unlike the training patients "
        f"(typicality at most {level:.3g}; of patients like them {level * n_scored:.1f} would be "
        f"marked by chance): {_list_patients(unlike)}. Their prediction sets hold all classes; "
        "look at their slides"
    )
    return (caveat,)


def missing_bag_caveats(
    predictions: Sequence[PatientPrediction], bags: Collection[str]
) -> tuple[str, ...]:
    """Return warnings that name the first slides without a bag, and the bags named most alike.

    A bag of another slide of these patients is not one of them.
    """
    asked_for = {slide_id for p in predictions for slide_id in p.slide_ids}
    others = [slide_id for slide_id in bags if slide_id not in asked_for]
    missing = [
        slide_id
        for p in predictions
        for slide_id in p.slide_ids
        if slide_id not in p.n_tiles and slide_id not in p.problems
    ]
    caveats = []
    for slide_id in missing[:_MAX_NAMED]:
        near = " or ".join(map(repr, nearest_names(slide_id, others)))
        why = date_hint([slide_id], others) or (f"is it {near}?" if near else "")
        caveats.append(f"warning: no bag of {slide_id!r}" + (f"; {why}" if why else ""))
    if len(missing) > _MAX_NAMED:
        caveats.append(f"warning: no bag of {len(missing) - _MAX_NAMED} more slides")
    if missing:
        caveats.append(
            "note: 'mil infer' with --slides or --series embeds what has no bag; of slides that "
            "failed, embed.csv in the folder of the bags says why"
        )
    return tuple(caveats)


def covariate_caveats(bundle: ModelBundle, cohort: Cohort) -> tuple[str, ...]:
    """Return warnings on covariates of patients that were missing, or unknown to the run."""
    if bundle.covariates is None:
        return ()
    caveats = []
    unknown = Counter(
        word for p in cohort.patients for word in bundle.covariates.unknown(p.covariates)
    )
    if unknown:
        named = list_names([f"{word} ({n})" for word, n in unknown.most_common()])
        caveats.append(
            f"warning: categories that no training patient had count as missing: {named}"
        )
    for index, covariate in enumerate(bundle.covariates.covariates):
        n_missing = sum(not p.covariates[index] for p in cohort.patients)
        if n_missing:
            patients = pluralize(n_missing, "patients")
            caveats.append(f"note: {covariate.name} is missing for {patients}")
    return tuple(caveats)


def typicality_caveats(bundle: ModelBundle) -> tuple[str, ...]:
    """Return a note on a run that cannot tell who is unlike its training patients."""
    if bundle.typicality is not None:
        return ()
    note = (
        "note: the run does not hold what its training patients look like, as it was trained by an "
        "earlier version: patients unlike them are not marked. Train it again to have them marked"
    )
    return (note,)


def describe_typicality(predictions: Sequence[PatientPrediction]) -> dict[str, object] | None:
    """Return level and number of patients unlike the training patients; None if no patient has one.

    All are plain values for JSON.
    """
    scored = [p.typicality for p in predictions if p.typicality is not None]
    if not scored:
        return None
    return {
        "level": scored[0].level,
        "n_scored": len(scored),
        "n_unlike": sum(one.is_unlike for one in scored),
    }


def count_differences(predictions: Sequence[PatientPrediction]) -> dict[str, int]:
    """Return the patients whose slides differ from all training slides, by kind of difference."""
    counts = Counter(
        kind
        for p in predictions
        for kind in sorted({note.kind for notes in p.provenance.values() for note in notes})
    )
    return dict(counts)


def typicality_details(prediction: PatientPrediction) -> dict[str, object]:
    """Return the columns on how much a patient is like the training patients."""
    typicality = prediction.typicality
    return {
        "typicality": None if typicality is None else typicality.p_value,
        "unlike_training": str(prediction.unlike_training).lower(),
        "unlike_tiles": None if typicality is None else typicality.unlike_share,
        "unlike_tiles_by_slide": "" if typicality is None else _pairs(typicality.unlike_by_slide),
        "unlike_places": "" if typicality is None else " ".join(typicality.places),
        "provenance": _NOTE_SEPARATOR.join(
            f"{slide_id}: {note.text}"
            for slide_id, notes in prediction.provenance.items()
            for note in notes
        ),
    }


def set_caveats(bundle: ModelBundle, coverage: float) -> tuple[str, ...]:
    """Return notes on what limits the prediction sets of a run at a coverage."""
    if few := undersized_caveats(bundle.sets.conformal, bundle.classes, coverage):
        return few
    if bundle.guaranteed_coverage(coverage) is None:
        why = (
            "the run's folds were made by centre"
            if bundle.settings["by"] != "patient"
            else "the weights of its stack were not fitted without each fold"
            if not bundle.sets.weights_are_nested
            else "a filter drops tiles"
        )
        return (f"note: {why}: no coverage of prediction sets is guaranteed",)
    return ()


def undersized_caveats(
    conformal: CrossConformal, classes: Sequence[str], coverage: float
) -> tuple[str, ...]:
    """Return a note on classes with too few training patients to be ruled out, if there are any."""
    undersized = conformal.undersized(coverage)
    if not undersized.any():
        return ()
    names = ", ".join(np.array(classes)[undersized])
    note = (
        f"note: at a coverage of {coverage:g} a class needs {min_calibration_size(coverage)} "
        f"training patients to be ruled out, and there are fewer of {names}: every set holds "
        "all classes"
    )
    return (note,)


def _list_patients(predictions: Sequence[PatientPrediction]) -> str:
    return list_names([prediction.patient_id for prediction in predictions])


def _details(prediction: PatientPrediction, classes: Sequence[str]) -> dict[str, object]:
    out_of_fold = prediction.out_of_fold
    numbers = {
        "out_of_fold": [None] * len(classes) if out_of_fold is None else out_of_fold,
        "lowest": prediction.ensemble_min,
        "highest": prediction.ensemble_max,
    }
    return {
        "patient_id": prediction.patient_id,
        "status": prediction.status,
        "n_slides": len(prediction.slide_ids),
        "n_slides_used": len(prediction.attention_share),
        "n_tiles": sum(prediction.n_tiles.values()),
        "set": prediction.set_text,
        "look_at": str(prediction.needs_review).lower(),
        "seen_in_training": str(bool(prediction.matched_training_patient)).lower(),
        "seen_as": prediction.matched_training_patient,
        "seen_by_filter": str(prediction.used_for_filter).lower(),
        "seen_unlabelled": str(prediction.used_for_whitening).lower(),
        **{
            f"{column}_{name}": value
            for column, values in numbers.items()
            for name, value in zip(classes, values, strict=True)
        },
        "problems": "; ".join(map(str, prediction.problems.values())),
        "tiles_by_slide": _pairs(prediction.n_tiles),
        "attention_by_slide": _pairs(prediction.attention_share),
    }


def _pairs(values: Mapping[str, int | float]) -> str:
    """Return counts in full and shares to four digits, by slide."""
    shown = {n: str(v) if isinstance(v, int) else f"{v:.4g}" for n, v in values.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())
