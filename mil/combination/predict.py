"""Predictions of a combination: each run predicts from the bags of its encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from features.bags.bag import BagRef, Fingerprint
from features.bags.h5 import read_meta
from features.bags.store import is_bag_store, open_bags
from features.errors import BagError
from mil.arrays import Floats
from mil.calibration import clipped_log
from mil.calibration.priors import balanced, shift_prior
from mil.combination.bundle import Combination
from mil.data.cohort import Cohort, Columns
from mil.data.covariates import with_covariates
from mil.inference.bundle import ModelBundle
from mil.inference.conformal import COVERAGE
from mil.inference.output import set_caveats, undersized_caveats
from mil.inference.patient_typicality import PatientTypicality
from mil.inference.predict import PatientPrediction, bound_probabilities, iter_predictions

__all__ = [
    "combination_caveats",
    "find_bag_folders",
    "missing_folder_error",
    "predict_combination",
]


def find_bag_folders(combination: Combination, given: Sequence[Path]) -> dict[str, Path | None]:
    """Return the folder with the bags of each run, by name; None where there is none.

    Folders are those given and the ones in them; what their bags were made with decides.

    Raises
    ------
    BagError
        If a bag cannot be read.
    """
    candidates: dict[Path, Fingerprint] = {}
    for folder in given:
        inside = [] if is_bag_store(folder) or not folder.is_dir() else sorted(folder.iterdir())
        for path in (folder, *(path for path in inside if path.is_dir())):
            refs = open_bags(path, may_be_empty=True)
            if refs:
                candidates[path] = read_meta(refs[next(iter(refs))]).fingerprint
    return {
        name: next(
            (path for path, made in candidates.items()
             if made == member.fingerprint), None,
        )
        for name, member in combination.members.items()
    }  # fmt: skip


def missing_folder_error(combination: Combination, name: str, given: Sequence[Path]) -> BagError:
    """Return the error on bags that a run of a combination needs and that no folder holds."""
    made = combination.members[name].fingerprint
    at = f"{made.tile_px} px tiles" + (f" at {made.target_mpp:g} µm/px" if made.target_mpp else "")
    return BagError(
        ", ".join(map(str, given)),
        actual=f"no bags for the run {name!r}",
        expected=f"bags by {made.encoder} (weights {made.weights_sha256[:12]}, {at})",
        hint="Give their folder with --bags too; 'mil infer --slides' embeds slides without bags.",
    )


def combination_caveats(combination: Combination, coverage: float) -> tuple[str, ...]:
    """Return notes on what limits the prediction sets at a coverage, and by which run."""
    if few := undersized_caveats(combination.conformal, combination.classes, coverage):
        return few
    if not combination.sets_by_fold:
        why = "a run of an earlier version lacks its held-out logits, to compare sets fold by fold"
        return (f"note: {why}: no coverage of prediction sets is guaranteed",)
    return tuple(
        f"{note} (run {name})"
        for name, member in combination.members.items()
        for note in set_caveats(member, coverage)
    )


def predict_combination(
    combination: Combination,
    cohort: Cohort,
    refs: Mapping[str, Mapping[str, BagRef]],
    *,
    prior: Floats | None = None,
    coverage: float = COVERAGE,
    typicality: float | None = None,
    columns: Columns | None = None,
) -> list[PatientPrediction]:
    """Return the prediction of every patient, in the order of the cohort table.

    A patient that a run cannot predict gets the prior, with the status of that run: the weights
    hold for all runs together. Spread is that between the runs. A patient unlike the training
    patients of any run is marked, and its set holds all classes.

    Parameters
    ----------
    combination
        From :func:`mil.combination.bundle.load_combination`.
    cohort
        Patients and their slides; labels are ignored.
    refs
        Bags by slide id, by name of the run.
    prior
        Class shares that the probabilities are for, shape (classes,); balanced by default.
    coverage
        Target coverage of the prediction sets.
    typicality
        As for :func:`mil.inference.predict.predict`.
    columns
        Names of columns of the cohort's table, from which runs with covariates read them, see
        :func:`mil.data.cohort.read_cohort`.

    Raises
    ------
    InputError
        If a run has too few training patients for a typicality that low.
    """
    shares = balanced(combination.classes) if prior is None else prior
    by_member = [
        list(
            iter_predictions(
                member,
                _with_covariates(member, cohort, columns),
                refs[name],
                coverage=coverage,
                typicality=typicality,
            )
        )
        for name, member in combination.members.items()
    ]
    return [
        _combine(combination, of_patient, shares, coverage=coverage)
        for of_patient in zip(*by_member, strict=True)
    ]


def _with_covariates(member: ModelBundle, cohort: Cohort, columns: Columns | None) -> Cohort:
    if member.covariates is None:
        return cohort
    return with_covariates(cohort, member.covariates.covariates, columns=columns)


def _combine(
    combination: Combination,
    members: Sequence[PatientPrediction],
    prior: Floats,
    *,
    coverage: float,
) -> PatientPrediction:
    """Return the prediction of one patient from those of the runs, at the balanced prior."""
    classes, even = combination.classes, balanced(combination.classes)
    # The calibrated logits themselves, without the bound of patients unlike the training's.
    of_runs = [
        run.calibrator.predict_proba(one.logits[None])[0]
        for run, one in zip(combination.members.values(), members, strict=True)
        if one.logits is not None
    ]
    first = members[0]
    worst = next((one for one in members if one.logits is None), None)
    partly = next((one for one in members if one.status != "ok"), first)
    matched = next((m.matched_training_patient for m in members if m.matched_training_patient), "")
    whitened = any(one.used_for_whitening for one in members)
    typicality = _least_typical(combination, members)
    is_unlike = typicality is not None and typicality.is_unlike
    out_of_fold = combination.out_of_fold.get(matched)
    proba, spread, confidence, kept = prior[None], prior[None], 0.0, classes
    if worst is None:
        at_even = combination.calibrator.predict_proba(clipped_log(np.stack(of_runs))[None])
        confidence = float(at_even.max())
        if not matched and not whitened and not is_unlike:
            compared = clipped_log(at_even)
            if combination.sets_by_fold:
                of_folds = [one.set_logits for one in members if one.set_logits is not None]
                compared = log_softmax(np.stack(of_folds), axis=-1).mean(axis=0)
            held = combination.conformal.sets(compared[:, None], coverage=coverage)[0]
            kept = tuple(n for n, own in zip(classes, held, strict=True) if own)
        proba = shift_prior(at_even, old=even, new=prior)
        spread = shift_prior(np.stack(of_runs), old=even, new=prior)
        if is_unlike:
            proba = bound_probabilities(proba, sum(combination.cohort_counts))
    return replace(
        first,
        probabilities=proba[0],
        status=(worst or partly).status,
        n_tiles=(worst or first).n_tiles,
        ensemble_min=spread.min(axis=0),
        ensemble_max=spread.max(axis=0),
        matched_training_patient=matched,
        used_for_whitening=whitened,
        used_for_filter=any(one.used_for_filter for one in members),
        out_of_fold=None
        if out_of_fold is None
        else shift_prior(out_of_fold[None], old=even, new=prior)[0],
        prediction_set=kept,
        problems={slide: error for one in members for slide, error in one.problems.items()},
        confidence=confidence,
        review_below=None if combination.abstention is None else combination.abstention.threshold,
        typicality=typicality,
        learner_parts={},
        logits=None,
        set_logits=None,
    )


def _least_typical(
    combination: Combination, members: Sequence[PatientPrediction]
) -> PatientTypicality | None:
    """Return the typicality by the encoder to which the patient is least typical.

    Its p-value is corrected for the number of encoders (Bonferroni), so that combining more of them
    marks no more patients by chance.
    """
    scored = [
        (member.typicality.min_level, one.typicality)
        for member, one in zip(combination.members.values(), members, strict=True)
        if member.typicality is not None and one.typicality is not None
    ]
    if not scored:
        return None
    n_encoders = len({str(member.fingerprint) for member in combination.members.values()})
    min_level, least = min(scored, key=lambda pair: pair[1].p_value)
    return replace(
        least,
        p_value=min(1.0, n_encoders * least.p_value),
        level=max(least.level, n_encoders * min_level),
    )
