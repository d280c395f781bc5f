"""Recalibration of a finished run on labelled local patients, into a new bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from features.bags.store import open_bags
from features.utils.files import atomic_folder, atomic_write
from features.utils.text import pluralize
from mil.arrays import Floats, Ints
from mil.calibration import Calibrator, PlattScaling, clipped_log, cross_fit
from mil.calibration.recalibration import recalibrated
from mil.data.bags import load_patient_bags
from mil.data.cohort import Cohort
from mil.data.patient_groups import assign_groups, group_ids
from mil.data.splits import stratified_fold_ids
from mil.errors import CohortError
from mil.evaluation.abstention import choose_abstention
from mil.evaluation.bootstrap import paired_differences, stratified_bootstrap
from mil.evaluation.metrics import Interval, auroc, weighted_log_loss
from mil.evaluation.run_predictions import write_held_out_predictions
from mil.inference.bundle import (
    ModelBundle,
    check_apart,
    load_bundle,
    save_bundle,
    write_json,
)
from mil.inference.conformal import COVERAGE, CrossConformal, min_calibration_size
from mil.inference.predict import PatientPrediction, predict
from mil.inference.prediction_sets import HeldOut, PredictionSets
from mil.validation.external import check_labels, reason_to_leave_out

__all__ = ["N_FOLDS", "N_REPEATS", "RecalibrationSummary", "recalibrate"]

N_FOLDS, N_REPEATS = 5, 20
"""Folds and repeats of the cross-fits that the scores after recalibration come from."""

_METRICS = {"weighted_log_loss": weighted_log_loss, "auroc": auroc}


@dataclass(frozen=True, kw_only=True, eq=False)
class RecalibrationSummary:
    """Summary of a recalibration.

    Attributes
    ----------
    path
        Folder of the new run.
    slope, bias
        Of the local Platt scaling: 1 and zeros, shape (classes,), change nothing.
    before, after
        Scores of the local patients as the run was, and cross-fitted with a new calibrator.
    gain
        By how much they are better after it, by metric; paired.
    n_patients
        Local patients.
    left_out
        Reason why patients of the table were not used, by patient.
    """

    path: Path
    slope: float
    bias: tuple[float, ...]
    before: Mapping[str, Interval]
    after: Mapping[str, Interval]
    gain: Mapping[str, Interval]
    n_patients: int
    left_out: Mapping[str, str]

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "run": str(self.path),
            "n_patients": self.n_patients,
            "left_out": dict(self.left_out),
            "slope": self.slope,
            "bias": list(self.bias),
            "before": _plain(self.before),
            "after": _plain(self.after),
            "gain": _plain(self.gain),
            "note": "after: cross-fitted, the calibrator of a patient was fitted on other patients",
        }


def recalibrate(
    run: str | Path,
    cohort: Cohort,
    bags: str | Path,
    run_dir: str | Path,
    *,
    seed: int = 0,
    n_resamples: int = 1000,
) -> RecalibrationSummary:
    """Fit the calibrator of a run anew on local patients, and write a new bundle.

    Heads, base learners and their weights stay. Slope and biases of the calibrated logits are
    fitted on the local patients (Platt scaling, shrunken towards no change), and the prediction
    sets compare with the scores of the local patients, none of whom the heads were trained on
    (split conformal prediction; Papadopoulos et al., 2002). Local patients that share a slide are
    in one fold of the cross-fits. Probabilities have shape (patients, classes).

    Parameters
    ----------
    run
        Folder of a finished run.
    cohort
        Labelled local patients; those that the run was trained on are left out, and those that its
        whitening was fitted on without a label.
    bags
        Folder or packed store of their bags.
    run_dir
        Folder of the new run.
    seed, n_resamples
        Of folds and bootstrap.

    Raises
    ------
    RunError
        If the run cannot be read.
    CohortError
        If a label is none of the run's classes, or a class has too few patients.
    BagError
        If bags cannot be used.
    OutputError
        If the folder cannot be written.
    """
    bundle, run_dir = load_bundle(run), Path(run_dir)
    check_apart(run_dir, [Path(run)])
    cohort = cohort.sorted_by_id()
    check_labels(cohort, bundle.classes)
    predictions = predict(bundle, cohort, bags)
    left_out = {p.patient_id: why for p in predictions if (why := _reason_to_leave_out(p))}
    local = cohort.subset(set(cohort.patient_ids) - left_out.keys())
    labels = np.array([bundle.classes.index(str(p.label)) for p in local.patients], np.int64)
    _check_counts(cohort, bundle, labels, left_out)
    kept = [p for p in predictions if p.patient_id not in left_out]
    logits = _logits(kept)
    before = bundle.calibrator.predict_proba(logits)
    slides = load_patient_bags(local, open_bags(Path(bags)))
    groups = group_ids(local.patient_ids, slides.linked_patients())
    folds = _draw_folds(labels, groups, seed=seed)
    repeated = np.broadcast_to(before, (N_REPEATS, *before.shape))
    after = cross_fit(clipped_log(repeated), labels, folds, calibrator="platt", groups=groups)
    fitted = PlattScaling().fit(clipped_log(before), labels)
    options = {"n_resamples": n_resamples, "seed": seed}
    summary = RecalibrationSummary(
        path=run_dir,
        slope=fitted.slope_,
        bias=tuple(fitted.bias_.tolist()),
        before=stratified_bootstrap(_METRICS, before, labels, **options),
        after=stratified_bootstrap(_METRICS, after, labels, **options),
        gain=paired_differences(after, {"before": before[None]}, labels, **options)["before"],
        n_patients=len(labels),
        left_out=left_out,
    )
    made = replace(
        bundle,
        path=run_dir,
        calibrator=recalibrated(bundle.calibrator, fitted),
        view_calibrator=_recalibrate_views(bundle, local, bags, labels),
        sets=_local_sets(bundle, logits, labels, local.patient_ids),
        abstention=choose_abstention(after[0], labels, folds[0], groups=groups),
        # With these the local patients are known again by content.
        training_slides=(*bundle.training_slides, *slides.slides),
        out_of_fold={
            **bundle.out_of_fold, **dict(zip(local.patient_ids, after.mean(axis=0), strict=True)),
        },
        settings={
            **bundle.settings,
            "recalibration": _name_both(Path(run), cohort, bundle.classes, labels),
        },
    )  # fmt: skip
    with atomic_folder(run_dir) as temporary:
        scores = {"calibrated": _plain(summary.after), "before": _plain(summary.before)}
        write_json(temporary / "scores.json", {"kind": "recalibrated", **scores})
        write_held_out_predictions(
            temporary,
            {"calibrated": after, "raw": repeated},
            classes=bundle.classes, patient_ids=local.patient_ids, labels=labels,
            centres=[p.center_id or "" for p in local.patients], fold=folds,
        )  # fmt: skip
        write_json(temporary / "recalibration.json", {**summary.as_dict(), "run": run_dir.name})
        _write_card(temporary / "MODEL_CARD.md", Path(run), summary, cohort)
        save_bundle(replace(made, path=temporary))
    return summary


def _check_counts(
    cohort: Cohort, bundle: ModelBundle, labels: Ints, left_out: Mapping[str, str]
) -> None:
    counts = np.bincount(labels, minlength=len(bundle.classes))
    least, smallest = min_calibration_size(COVERAGE) + 1, int(counts.argmin())
    if counts[smallest] < least:
        first = next(iter(left_out.items()), None)
        why = f"; {len(left_out)} are left out, first {first[0]}: {first[1]}" if first else ""
        raise CohortError(
            cohort.path,
            actual=f"{pluralize(int(counts[smallest]), 'patients')} of class "
            f"{bundle.classes[smallest]!r} that can be used{why}",
            expected=f"at least {least} of each class",
            hint="Add local patients that the run was not trained on, and check --bags.",
        )


def _reason_to_leave_out(prediction: PatientPrediction) -> str | None:
    """Return why a patient cannot calibrate: unlike new ones, the run may have seen its slides."""
    if (reason := reason_to_leave_out(prediction)) is None and prediction.used_for_whitening:
        return "the run's whitening was fitted on its slides, without a label"
    return reason


def _logits(predictions: Sequence[PatientPrediction]) -> Floats:
    """Return the ensemble's logits, shape (patients, classes) or (patients, learners, classes)."""
    return np.stack([p.logits for p in predictions if p.logits is not None])


def _recalibrate_views(
    bundle: ModelBundle, local: Cohort, bags: str | Path, labels: Ints
) -> Calibrator | None:
    """Return the calibrator of logits averaged over views, fitted in the same way."""
    if bundle.view_calibrator is None:
        return None
    averaged = _logits(predict(bundle, local, bags, tta=True))
    proba = bundle.view_calibrator.predict_proba(averaged)
    return recalibrated(bundle.view_calibrator, PlattScaling().fit(clipped_log(proba), labels))


def _local_sets(
    bundle: ModelBundle, logits: Floats, labels: Ints, patient_ids: Sequence[str]
) -> PredictionSets:
    """Return the sets of the deployed ensemble, whose one fold tested the local patients.

    Those of a single head stand on its raw logits, those of a stack on its calibrated ones.
    """
    is_stack = bundle.base_learners is not None
    compared = clipped_log(bundle.calibrator.predict_proba(logits)) if is_stack else logits
    one_fold = np.zeros(len(labels), np.int64)
    return PredictionSets(
        heads=(bundle.heads,),
        conformal=CrossConformal.fit(compared, labels, one_fold),
        base_learners=() if bundle.base_learners is None else (bundle.base_learners,),
        calibrators=(bundle.calibrator,) if is_stack else (),
        covariates=() if bundle.covariates is None else (bundle.covariates,),
        held_out={n: HeldOut(0, own) for n, own in zip(patient_ids, compared, strict=True)},
    )


def _draw_folds(labels: Ints, groups: Ints, *, seed: int) -> Ints:
    """Return the folds of every repeat, shape (repeats, patients); those of a group are in one."""

    def assign(rows: Ints, repeat: int) -> Ints:
        return stratified_fold_ids(labels[rows], n_folds=N_FOLDS, seed=(seed, repeat))

    repeats = range(N_REPEATS)
    return np.stack([assign_groups(groups, partial(assign, repeat=repeat)) for repeat in repeats])


def _name_both(
    run: Path, cohort: Cohort, classes: Sequence[str], labels: Ints
) -> dict[str, object]:
    """Return what the new bundle says of the run and of the local patients."""
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    return {
        "run": run.resolve().name,
        "run_sha256": hashlib.sha256((run / "model.json").read_bytes()).hexdigest(),
        "cohort": cohort.path.name,
        "cohort_sha256": hashlib.sha256(cohort.path.read_bytes()).hexdigest(),
        "class_counts": dict(zip(classes, counts, strict=True)),
    }


def _write_card(path: Path, run: Path, summary: RecalibrationSummary, cohort: Cohort) -> None:
    """Write the model card: what was fitted anew, and the card of the run it comes from."""
    card = run / "MODEL_CARD.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    before, after = (of["weighted_log_loss"] for of in (summary.before, summary.after))
    lines = [
        f"# Model card: {summary.path.name}",
        "",
        f"**Recalibrated.** The run `{run.resolve().name}` with its calibrator fitted anew on",
        f"{summary.n_patients} labelled patients of `{cohort.path.name}`. Their weighted log loss",
        f"was {before} before and is {after} after it, cross-fitted. Prediction sets",
        "stand on these patients. All that follows is the card of that run.",
        "",
        *(line.replace("# ", "## ", 1) if line.startswith("# ") else line
          for line in text.splitlines()),
    ]  # fmt: skip
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _plain(scores: Mapping[str, Interval]) -> dict[str, object]:
    return {metric: score.as_dict() for metric, score in scores.items()}
