"""The shortcut report: what predicts the label without looking at tissue.

Each of these columns alone is given to a small model, see :mod:`mil.evaluation.shortcut_model`,
under folds of patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.audit.digests import SlideDigest
from mil.audit.findings import Finding, Severity
from mil.data.cohort import Cohort, Patient
from mil.data.splits import patient_folds, stratified_fold_ids
from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.metrics import Interval, Metric, auroc, balanced_accuracy
from mil.evaluation.shortcut_model import ALL_SHORTCUTS, shortcut_features, shortcut_model

__all__ = ["LEAST_OF_A_CLASS", "ShortcutScore", "audit_shortcuts", "measure_shortcuts"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_OF_A_CLASS = 10
"""Patients of each class, or of a centre, below which a shortcut is not measured."""

_N_REPEATS = 3
_N_RESAMPLES = 1000
_N_PERMUTATIONS = 999
_LARGEST_P = 0.01
_MOST_COMPONENTS = 32


@dataclass(frozen=True, kw_only=True)
class ShortcutScore:
    """How well one thing predicts another, judged on patients the small model had not seen."""

    source: str
    """What predicts: ``centre``, ``slides``, ``tiles``, ``area``, ``aspect``, ``background``,
    ``all`` of these, or ``mean embedding``."""
    target: str
    """What is predicted: ``label`` or ``centre``."""
    metric: str
    """``auroc`` or ``balanced_accuracy``."""
    score: Interval
    """The score with its bootstrap interval over patients."""
    chance: float
    """What the metric gives without any information."""
    p_value: float
    """Share of 1,000 shufflings of the truth that score as high or higher; one-sided."""
    n_patients: int
    """Patients judged."""
    n_compared: int
    """Sources tried on this target; the p-value is held against 0.01 divided by it."""

    @property
    def is_above_chance(self) -> bool:
        """Whether chance is no likely reason for the score."""
        return self.p_value * self.n_compared <= _LARGEST_P

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "score": self.score.as_dict(),
            "is_above_chance": self.is_above_chance,
        }


def measure_shortcuts(
    cohort: Cohort, digests: Mapping[str, SlideDigest], *, n_folds: int, seed: int
) -> tuple[ShortcutScore, ...]:
    """Measure what predicts the label without tissue, and whether embeddings betray the centre.

    The small model is a logistic regression with squares and products, classes weighted equally.
    Predictions are out-of-fold means over three cross-validations. The shuffles of the p-value
    leave them as they are; a feature without information scores slightly below chance in
    cross-validation, so the test errs on the quiet side.

    Parameters
    ----------
    cohort
        Patients with labels.
    digests
        Their slides; empty if only the table is audited.
    n_folds, seed
        Folds of patients, and what decides everything random.

    Returns
    -------
    tuple
        One entry a source that varies at all; empty if a class has fewer than ten patients.
    """
    of_table = (
        (name, cohort, values) for name, values in shortcut_features(cohort.patients).items()
    )
    columns = [*of_table, *_slide_columns(cohort, digests)]
    if len(columns) > 1:
        shared = set(cohort.patient_ids).intersection(*(of.patient_ids for _, of, _ in columns))
        columns.append((ALL_SHORTCUTS, _only(cohort, shared), _side_by_side(columns, shared)))
    measurable = [c for c in columns if _smallest_class(c[1]) >= LEAST_OF_A_CLASS]
    found = [
        _label_from(
            values, of, source=source, n_folds=n_folds, seed=seed, n_compared=len(measurable)
        )
        for source, of, values in measurable
    ]
    found += _centre_from_embeddings(cohort, digests, n_folds=n_folds, seed=seed)
    return tuple(found)


def audit_shortcuts(measured: tuple[ShortcutScore, ...]) -> list[Finding]:
    """What the measured shortcuts mean."""
    found = [_about_label(m) for m in measured if m.target == "label" and m.is_above_chance]
    centre_tells = any(
        m.source == "centre" and m.target == "label" and m.is_above_chance for m in measured
    )
    found += [
        _about_centre(m, centre_tells=centre_tells)
        for m in measured
        if m.target == "centre" and m.is_above_chance
    ]
    return found


def _about_label(measured: ShortcutScore) -> Finding:
    score = measured.score
    return Finding(
        severity=Severity.warning,
        kind="shortcut",
        message=f"{_IN_WORDS[measured.source]} ranks classes with AUROC {score.value:.3f} "
        f"[{score.low:.3f}, {score.high:.3f}] on {measured.n_patients} patients "
        f"(p = {measured.p_value:.3f})",
        advice="A model must do clearly better than this to have learned anything of tissue; "
        "also train with --by centre.",
        subjects=(measured.source,),
    )


def _about_centre(measured: ShortcutScore, *, centre_tells: bool) -> Finding:
    score = measured.score
    message = (
        f"mean embeddings tell the centre: balanced accuracy {score.value:.3f} "
        f"[{score.low:.3f}, {score.high:.3f}] where chance gives {measured.chance:.3f}"
    )
    if not centre_tells:
        return Finding(
            severity=Severity.note,
            kind="centre_in_embeddings",
            message=message + "; the centre alone does not predict the label here",
            advice="",
        )
    return Finding(
        severity=Severity.warning,
        kind="centre_in_embeddings",
        message=message + ", and the centre predicts the label: heads can take this road",
        advice="Train with --by centre, too, and compare.",
    )


_IN_WORDS = {
    "centre": "the centre alone",
    "slides": "the number of slides alone",
    "tiles": "the number of tiles alone",
    "area": "the area of the slide alone",
    "aspect": "the aspect of the slide alone",
    "background": "the background colour alone",
    ALL_SHORTCUTS: "all that is not tissue together",
}

Column = tuple[str, Cohort, Floats]
"""Name, patients that have it, and values of shape (patients, columns)."""


def _slide_columns(cohort: Cohort, digests: Mapping[str, SlideDigest]) -> Iterator[Column]:
    """What the outside of slides tells, each thing of the patients of whom it is known."""
    slides = {p.patient_id: _slides_of(p, digests) for p in cohort.patients}
    # Bags of series and imported ones may not know how large their slide is.
    sized = {name: [s for s in of if s.width_px0 and s.height_px0] for name, of in slides.items()}
    for name, known, measure in (
        ("tiles", slides, _log_tiles), ("area", sized, _log_area), ("aspect", sized, _log_aspect),
        ("background", slides, _background),
    ):  # fmt: skip
        rows = {patient_id: measure(of) for patient_id, of in known.items() if of}
        values = np.array(list(rows.values()), np.float64)
        if rows and np.ptp(values, axis=0).max() > 0:
            yield name, _only(cohort, set(rows)), values


def _log_tiles(slides: list[SlideDigest]) -> list[float]:
    return [float(np.log1p(sum(slide.n_tiles for slide in slides)))]


def _log_area(slides: list[SlideDigest]) -> list[float]:
    return [float(np.mean([np.log(s.width_px0) + np.log(s.height_px0) for s in slides]))]


def _log_aspect(slides: list[SlideDigest]) -> list[float]:
    return [float(np.mean([np.log(s.width_px0 / s.height_px0) for s in slides]))]


def _background(slides: list[SlideDigest]) -> list[float]:
    rgb: list[float] = np.mean([slide.background_rgb for slide in slides], axis=0).tolist()
    return rgb


def _side_by_side(columns: list[Column], shared: set[str]) -> Floats:
    """All columns of the patients that have every one of them."""
    parts = []
    for _, of, values in columns:
        parts.append(values[[name in shared for name in of.patient_ids]])
    return np.concatenate(parts, axis=1)


def _slides_of(patient: Patient, digests: Mapping[str, SlideDigest]) -> list[SlideDigest]:
    return [digests[name] for name in patient.slide_ids if name in digests]


def _only(cohort: Cohort, patient_ids: set[str]) -> Cohort:
    patients = tuple(p for p in cohort.patients if p.patient_id in patient_ids)
    return replace(cohort, patients=patients)


def _smallest_class(cohort: Cohort) -> int:
    return min(cohort.class_counts().values()) if cohort.patients else 0


def _label_from(
    values: Floats, cohort: Cohort, *, source: str, n_folds: int, seed: int, n_compared: int
) -> ShortcutScore:
    folds = patient_folds(
        cohort, n_folds=min(n_folds, _smallest_class(cohort)), n_repeats=_N_REPEATS, seed=seed
    )
    places = {name: index for index, name in enumerate(cohort.patient_ids)}
    parts = np.empty((_N_REPEATS, len(places)), np.int64)
    for fold in folds:
        parts[fold.repeat, [places[name] for name in fold.test_ids]] = fold.index
    proba = _out_of_fold(shortcut_model(source), values, cohort.labels, parts)
    return ShortcutScore(
        source=source,
        target="label",
        metric="auroc",
        chance=0.5,
        n_compared=n_compared,
        **_judge(auroc, proba, cohort.labels, seed=seed),
    )


def _centre_from_embeddings(
    cohort: Cohort, digests: Mapping[str, SlideDigest], *, n_folds: int, seed: int
) -> Iterator[ShortcutScore]:
    """Whether the mean embedding of a patient tells the centre; of centres with ten patients."""
    means, centres = [], []
    for patient in cohort.patients:
        slides = [slide for slide in _slides_of(patient, digests) if slide.n_tiles]
        if slides and patient.center_id:
            weights = [slide.n_tiles for slide in slides]
            means.append(np.average([slide.mean for slide in slides], axis=0, weights=weights))
            centres.append(patient.center_id)
    _, indices, counts = np.unique(centres, return_inverse=True, return_counts=True)
    enough = counts >= LEAST_OF_A_CLASS
    if enough.sum() < 2:
        return
    kept = enough[indices]
    values = np.asarray(means, np.float64)[kept]
    truth = np.unique(indices[kept], return_inverse=True)[1].astype(np.int64)
    n_parts = min(n_folds, int(counts[enough].min()))
    parts = np.stack(
        [stratified_fold_ids(truth, n_folds=n_parts, seed=(seed, r)) for r in range(_N_REPEATS)]
    )
    n_components = min(_MOST_COMPONENTS, values.shape[1], len(values) // 2)
    model = make_pipeline(
        StandardScaler(),
        PCA(n_components, whiten=True, random_state=seed),
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000),
    )
    yield ShortcutScore(
        source="mean embedding",
        target="centre",
        metric="balanced_accuracy",
        chance=1 / int(enough.sum()),
        n_compared=1,
        **_judge(balanced_accuracy, _out_of_fold(model, values, truth, parts), truth, seed=seed),
    )


def _out_of_fold(model: Any, values: Floats, labels: Ints, parts: Ints) -> Floats:
    """Mean over repeats of out-of-fold probabilities, shape (n, classes).

    ``parts`` of shape (repeats, n) says in which part a patient is judged.
    """
    proba = np.zeros((len(labels), labels.max() + 1))
    for of_repeat in parts:
        for index in np.unique(of_repeat):
            judged = of_repeat == index
            model.fit(values[~judged], labels[~judged])
            proba[judged] += model.predict_proba(values[judged]) / len(parts)
    return proba


def _judge(metric: Metric, proba: Floats, labels: Ints, *, seed: int) -> dict[str, Any]:
    """Score with interval, and how often shuffled labels score as high."""
    score = stratified_bootstrap(
        {"score": metric}, proba, labels, n_resamples=_N_RESAMPLES, seed=seed
    )["score"]
    rng = np.random.default_rng(seed)
    shuffled = [metric(proba, rng.permutation(labels)) for _ in range(_N_PERMUTATIONS)]
    as_high = np.asarray(shuffled) >= score.value
    return {
        "score": score,
        "p_value": float((1 + as_high.sum()) / (1 + _N_PERMUTATIONS)),
        "n_patients": len(labels),
    }
