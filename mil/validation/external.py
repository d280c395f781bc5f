"""External validation: the scores of a locked model on labelled patients of another cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from features.utils.text import list_names, pluralize
from mil.arrays import Floats, Ints
from mil.calibration.priors import balanced, parse_prior
from mil.data.cohort import Cohort
from mil.errors import CohortError
from mil.evaluation.bootstrap import MIN_RESAMPLED_PATIENTS, stratified_bootstrap
from mil.evaluation.metrics import Interval, auroc, weighted_log_loss, wilson_interval
from mil.evaluation.scoring import ScoreSettings, score_predictions
from mil.inference.output import describe_typicality, unlike_caveats
from mil.inference.predict import PatientPrediction

__all__ = [
    "ExternalValidation",
    "GroupScores",
    "SetCoverage",
    "check_labels",
    "reason_to_leave_out",
    "validate",
]

_GROUP_METRICS = {"weighted_log_loss": weighted_log_loss, "auroc": auroc}
_REASONS = {
    "no_bag": "no bag of any slide",
    "no_tissue": "no tissue on any slide",
    "bag_refused": "no bag that can be used",
    "out_of_range": "embeddings of another scale than those of the training",
}


@dataclass(frozen=True, kw_only=True)
class SetCoverage:
    """Prediction sets of the patients of one class.

    ``n_held`` of ``n_patients`` sets hold the class, ``n_single`` hold it alone. ``low`` and
    ``high`` are the 95 % interval of the coverage (Wilson, 1927), and ``guaranteed`` is what was
    guaranteed for patients like those of the training, None for nothing.
    """

    name: str
    n_patients: int
    n_held: int
    n_single: int
    low: float
    high: float
    guaranteed: float | None

    @property
    def coverage(self) -> float:
        """Share of the sets that hold the class, 0 to 1."""
        return self.n_held / self.n_patients


@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """Scores of the patients of one group of a column.

    ``counts`` are the patients per class, shape (classes,); ``scores`` are empty where a class does
    not occur. ``covered`` is the share of prediction sets that hold the true class, 0 to 1, and
    ``n_unlike`` the number of patients unlike those of the training.
    """

    column: str
    name: str
    counts: tuple[int, ...]
    scores: Mapping[str, Interval]
    covered: float
    n_unlike: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ExternalValidation:
    """Scores of a model on patients it was not trained on.

    Attributes
    ----------
    classes, patient_ids
        Classes in the order of the columns, and the scored patients.
    labels, proba
        Class index, shape (patients,), and probabilities at the balanced prior, shape (patients,
        classes).
    predictions
        Of the scored patients.
    left_out
        Reason why patients of the table are not scored, by patient.
    priors, scores
        Class shares by name, shape (classes,), and the scores at each, by metric.
    sets, coverage
        Prediction sets of each class, and the coverage that they aim at.
    groups
        Scores of centres and subgroups.
    notes
        What limits the result.
    """

    classes: tuple[str, ...]
    patient_ids: tuple[str, ...]
    labels: Ints
    proba: Floats
    predictions: tuple[PatientPrediction, ...]
    left_out: Mapping[str, str]
    priors: Mapping[str, Floats]
    scores: Mapping[str, Mapping[str, Interval]]
    sets: tuple[SetCoverage, ...]
    coverage: float
    groups: tuple[GroupScores, ...]
    notes: tuple[str, ...]

    @property
    def shares(self) -> Floats:
        """Share of each class among the scored patients, shape (classes,)."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return np.asarray(counts / len(self.labels), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        return {
            "n_patients": len(self.patient_ids),
            "class_counts": dict(zip(self.classes, counts, strict=True)),
            "left_out": dict(self.left_out),
            "priors": {
                name: {
                    "shares": dict(zip(self.classes, shares.tolist(), strict=True)),
                    **{metric: of.as_dict() for metric, of in self.scores[name].items()},
                }
                for name, shares in self.priors.items()
            },
            "coverage": self.coverage,
            "sets": [{**asdict(one), "coverage": one.coverage} for one in self.sets],
            "typicality": describe_typicality(self.predictions),
            "groups": [
                {
                    "column": one.column,
                    "group": one.name,
                    "class_counts": dict(zip(self.classes, one.counts, strict=True)),
                    **{metric: of.as_dict() for metric, of in one.scores.items()},
                    "covered": one.covered,
                    "n_unlike_training": one.n_unlike,
                }
                for one in self.groups
            ],
            "notes": list(self.notes),
        }


def validate(
    predictions: Sequence[PatientPrediction],
    cohort: Cohort,
    *,
    classes: Sequence[str],
    priors: Sequence[str] = ("balanced", "cohort"),
    coverage: float,
    guaranteed: Mapping[str, float] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> ExternalValidation:
    """Score the predictions of a model for patients of another cohort.

    Patients that the model was trained on are left out, by id or by the content of a slide, and so
    are those it could not predict.

    Parameters
    ----------
    predictions
        From :func:`mil.inference.predict.predict`, at the balanced prior and ``coverage``.
    cohort
        Labelled patients, in the order of the predictions.
    classes
        Of the model.
    priors
        Class shares at which scores are stated, see :func:`mil.calibration.priors.parse_prior`;
        ``cohort`` is that of the scored patients.
    coverage, guaranteed
        Coverage that the sets aim at, and what is guaranteed for each class, if anything.
    groups
        Group of each patient of the cohort, by name of the column.
    n_resamples, seed
        Of the bootstrap.

    Raises
    ------
    CohortError
        If a label is none of the classes, or fewer than five patients of a class can be scored.
    MilError
        If the text of a prior cannot be parsed.
    """
    check_labels(cohort, classes)
    left_out = {
        p.patient_id: reason for p in predictions if (reason := reason_to_leave_out(p)) is not None
    }
    kept = np.array([p.patient_id not in left_out for p in predictions], np.bool_)
    scored = tuple(p for p in predictions if p.patient_id not in left_out)
    labels = np.array([list(classes).index(str(p.label)) for p in cohort.patients], np.int64)[kept]
    counts = np.bincount(labels, minlength=len(classes))
    _check_counts(cohort, classes, counts, left_out)
    proba = np.stack([p.probabilities for p in scored])
    of_class = dict(zip(classes, counts.tolist(), strict=True))
    shares = {text: parse_prior(text, classes, of_class) for text in dict.fromkeys(priors)}
    return ExternalValidation(
        classes=tuple(classes),
        patient_ids=tuple(p.patient_id for p in scored),
        labels=labels,
        proba=proba,
        predictions=scored,
        left_out=left_out,
        priors=shares,
        scores={
            text: score_predictions(
                proba,
                labels,
                ScoreSettings(
                    file_prior=balanced(classes), prior=prior, calibrator=None, n_folds=0,
                    n_repeats=0, reliability=False, n_resamples=n_resamples, seed=seed,
                ),
            )
            for text, prior in shares.items()
        },
        sets=tuple(
            _coverage(name, [p for p, own in zip(scored, labels, strict=True) if own == index],
                      None if guaranteed is None else guaranteed[name])
            for index, name in enumerate(classes)
        ),
        coverage=coverage,
        groups=tuple(
            _score_group(column, name, np.array(values)[kept] == name, scored, proba, labels,
                         classes, n_resamples=n_resamples, seed=seed)
            for column, values in (groups or {}).items()
            for name in sorted(set(np.array(values)[kept].tolist()))
        ),
        notes=_notes(scored, left_out),
    )  # fmt: skip


def check_labels(cohort: Cohort, classes: Sequence[str]) -> None:
    """Raise CohortError for a label that is none of a run's classes."""
    if unknown := sorted(set(cohort.classes) - set(classes)):
        raise CohortError(
            cohort.path,
            actual=f"label {unknown[0]!r}",
            expected=f"the classes of the run: {', '.join(classes)}",
            hint="Give the labels the run's names, and leave out patients of other classes.",
        )


def _check_counts(
    cohort: Cohort, classes: Sequence[str], counts: Ints, left_out: Mapping[str, str]
) -> None:
    smallest = int(counts.argmin())
    if counts[smallest] < MIN_RESAMPLED_PATIENTS:
        few = next(iter(left_out.items()), None)
        why = f"; {len(left_out)} are left out, first {few[0]}: {few[1]}" if few else ""
        raise CohortError(
            cohort.path,
            actual=f"{pluralize(int(counts[smallest]), 'patients')} of class "
            f"{classes[smallest]!r} that can be scored{why}",
            expected=f"at least {MIN_RESAMPLED_PATIENTS} of each class",
            hint="Add patients that the run was not trained on, and check --bags.",
        )


def reason_to_leave_out(prediction: PatientPrediction) -> str | None:
    """Return why a prediction says nothing of how a run does on new patients; None if it does."""
    if prediction.matched_training_patient:
        return f"the run was trained on it (as {prediction.matched_training_patient!r})"
    if prediction.used_for_filter:
        return "the run's tile filter was fitted on its slides"
    return _REASONS.get(prediction.status)


def _coverage(
    name: str, predictions: Sequence[PatientPrediction], guaranteed: float | None
) -> SetCoverage:
    held = [name in p.prediction_set for p in predictions]
    low, high = wilson_interval(float(np.mean(held)), len(held))
    return SetCoverage(
        name=name, n_patients=len(held), n_held=sum(held),
        n_single=sum(p.prediction_set == (name,) for p in predictions), low=low, high=high,
        guaranteed=guaranteed,
    )  # fmt: skip


def _score_group(
    column: str,
    name: str,
    inside: np.ndarray,
    predictions: Sequence[PatientPrediction],
    proba: Floats,
    labels: Ints,
    classes: Sequence[str],
    *,
    n_resamples: int,
    seed: int,
) -> GroupScores:
    rows = np.flatnonzero(inside).tolist()
    counts = np.bincount(labels[rows], minlength=len(classes))
    return GroupScores(
        column=column,
        name=name,
        counts=tuple(counts.tolist()),
        scores=stratified_bootstrap(
            _GROUP_METRICS, proba[rows], labels[rows], n_resamples=n_resamples, seed=seed
        )
        if counts.all()
        else {},
        covered=float(
            np.mean([classes[labels[row]] in predictions[row].prediction_set for row in rows])
        ),
        n_unlike=sum(predictions[row].unlike_training for row in rows),
    )


def _notes(scored: Sequence[PatientPrediction], left_out: Mapping[str, str]) -> tuple[str, ...]:
    notes = []
    n_trained = sum(reason.startswith("the run was trained") for reason in left_out.values())
    if n_trained:
        notes.append(
            f"{pluralize(n_trained, 'patients')} of the training, by id or by the content of a "
            "slide, left out of all scores"
        )
    others = [name for name, why in left_out.items() if not why.startswith("the run was trained")]
    if others:
        some = list_names([f"{name}: {left_out[name]}" for name in others])
        notes.append(f"{pluralize(len(others), 'patients')} left out of all scores ({some})")
    if n_partly := sum(p.status == "slides_missing" for p in scored):
        notes.append(f"{pluralize(n_partly, 'patients')} predicted from part of their slides")
    if n_whitened := sum(p.used_for_whitening for p in scored):
        notes.append(
            f"the run's whitening was fitted on {pluralize(n_whitened, 'patients')} of these, "
            "without labels: their prediction sets hold all classes"
        )
    notes += [caveat.removeprefix("warning: ") for caveat in unlike_caveats(scored)]
    return tuple(notes)
