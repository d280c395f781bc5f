"""Shortcut scores: how well properties other than tissue predict the label.

Each property alone is given to a small model, see :mod:`mil.evaluation.shortcut_model`, in
cross-validation over patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from features.bags.digest import BagDigest
from mil.arrays import Floats, Ints
from mil.audit.findings import Finding, Severity
from mil.data.cohort import Cohort, Patient
from mil.data.splits import can_leave_centres_out, patient_folds, stratified_fold_ids
from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.metrics import Interval, Metric, auroc, balanced_accuracy
from mil.evaluation.shortcut_model import ALL_SHORTCUTS, shortcut_features, shortcut_model

__all__ = ["MIN_CLASS_SIZE", "ShortcutScore", "audit_shortcuts", "measure_shortcuts"]


MIN_CLASS_SIZE = 10
"""Minimum number of patients per class, or per centre, for a shortcut to be measured."""

_N_REPEATS = 3
_N_PERMUTATIONS = 999
_ALPHA = 0.01
_MAX_COMPONENTS = 32


@dataclass(frozen=True, kw_only=True)
class ShortcutScore:
    """Out-of-fold score of a small model that predicts the label or centre from one property.

    Attributes
    ----------
    source
        Predictor: ``centre``, ``slides``, ``tiles``, ``area``, ``aspect``, ``background``, ``all``
        of these, or ``mean embedding``.
    target, metric
        ``label`` by ``auroc``, or ``centre`` by ``balanced_accuracy``.
    chance
        Value of the metric without any information.
    p_value
        One-sided p-value of a permutation test with 1,000 shuffled labels.
    n_compared
        Number of sources tried on this target, for the Bonferroni correction at 0.01.
    """

    source: str
    target: str
    metric: str
    score: Interval
    chance: float
    p_value: float
    n_patients: int
    n_compared: int

    @property
    def is_above_chance(self) -> bool:
        """Whether the score is significantly better than chance."""
        return self.p_value * self.n_compared <= _ALPHA

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            **asdict(self),
            "score": self.score.as_dict(),
            "is_above_chance": self.is_above_chance,
        }


def measure_shortcuts(
    cohort: Cohort,
    digests: Mapping[str, BagDigest],
    *,
    n_folds: int,
    n_resamples: int,
    seed: int,
) -> tuple[ShortcutScore, ...]:
    """Measure which shortcuts predict the label, and whether embeddings predict the centre.

    The small model is a logistic regression with squares and products and equal class weights.
    Predictions, shape (patients, classes), are out-of-fold means over three cross-validations. The
    permutation test shuffles the labels without refitting; a feature without information scores
    slightly below chance in cross-validation, so the test is conservative. Without ``digests`` of
    bags only the table is audited.

    Returns
    -------
    tuple
        One score per source that varies; empty if a class has fewer than ten patients.
    """
    of_table = (
        (name, cohort, values) for name, values in shortcut_features(cohort.patients).items()
    )
    columns = [*of_table, *_slide_columns(cohort, digests)]
    if len(columns) > 1:
        shared = set(cohort.patient_ids).intersection(*(of.patient_ids for _, of, _ in columns))
        parts = [values[[p in shared for p in of.patient_ids]] for _, of, values in columns]
        columns.append((ALL_SHORTCUTS, cohort.subset(shared), np.concatenate(parts, axis=1)))
    measurable = [c for c in columns if _smallest_class(c[1]) >= MIN_CLASS_SIZE]
    n_compared, settings = len(measurable), {"n_resamples": n_resamples, "seed": seed}
    scores = [
        _score_label(values, of, source=source, n_folds=n_folds, n_compared=n_compared, **settings)
        for source, of, values in measurable
    ]
    scores += _score_centre(cohort, digests, n_folds=n_folds, **settings)
    return tuple(scores)


def audit_shortcuts(scores: tuple[ShortcutScore, ...], cohort: Cohort) -> Iterator[Finding]:
    """Yield findings on the shortcuts that predict a cohort better than chance."""
    by_centre = can_leave_centres_out(cohort)
    significant = [score for score in scores if score.is_above_chance]
    centre_predicts_label = any((s.source, s.target) == ("centre", "label") for s in significant)
    for measured in significant:
        score = measured.score
        values = f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
        if measured.target == "label":
            yield Finding(
                Severity.warning, "shortcut",
                f"{_SOURCE_TEXTS[measured.source]} ranks classes with AUROC {values} on "
                f"{measured.n_patients} patients (p = {measured.p_value:.3f})",
                "A model must do clearly better than this to have learned anything from tissue"
                + ("; also use 'mil train --by centre'." if by_centre else "."),
                (measured.source,),
            )  # fmt: skip
            continue
        message = (
            f"mean embeddings predict the centre: balanced accuracy {values} where chance gives "
            f"{measured.chance:.3f}"
        )
        if centre_predicts_label:
            yield Finding(
                Severity.warning, "centre_in_embeddings",
                f"{message}, and the centre predicts the label: heads can use it as a shortcut",
                "Also use 'mil train --by centre', and compare."
                if by_centre
                else "Patients of each class from two centres or more would tell.",
            )  # fmt: skip
        else:
            message += "; the centre alone does not predict the label here"
            yield Finding(Severity.note, "centre_in_embeddings", message)


_SOURCE_TEXTS = {
    "centre": "the centre alone",
    "slides": "the number of slides alone",
    "tiles": "the number of tiles alone",
    "area": "the area of the slide alone",
    "aspect": "the aspect ratio of the slide alone",
    "background": "the background colour alone",
    ALL_SHORTCUTS: "all of these shortcuts together",
}

Column = tuple[str, Cohort, Floats]
"""Name, patients with known values, and values of shape (patients, columns)."""


def _slide_columns(cohort: Cohort, digests: Mapping[str, BagDigest]) -> Iterator[Column]:
    """Yield properties of slides other than tissue, for the patients with known values."""
    slides = {p.patient_id: _slides_of(p, digests) for p in cohort.patients}
    # Bags of series and imported bags may not state the size of their slide.
    sized = {
        name: [s for s in of if s.meta.width_px0 and s.meta.height_px0]
        for name, of in slides.items()
    }
    properties: dict[str, tuple[dict[str, list[BagDigest]], Callable[..., Any]]] = {
        "tiles": (slides, lambda own: [np.log1p(sum(s.n_tiles for s in own))]),
        "area": (
            sized,
            lambda own: [
                np.mean([np.log(s.meta.width_px0) + np.log(s.meta.height_px0) for s in own])
            ],
        ),
        "aspect": (
            sized,
            lambda own: [np.mean([np.log(s.meta.width_px0 / s.meta.height_px0) for s in own])],
        ),
        "background": (slides, lambda own: np.mean([s.meta.background_rgb for s in own], axis=0)),
    }
    for name, (known, measure) in properties.items():
        rows = {patient_id: measure(own) for patient_id, own in known.items() if own}
        values = np.array(list(rows.values()), np.float64)
        if rows and np.ptp(values, axis=0).max() > 0:
            yield name, cohort.subset(rows), values


def _slides_of(patient: Patient, digests: Mapping[str, BagDigest]) -> list[BagDigest]:
    return [digests[name] for name in patient.slide_ids if name in digests]


def _smallest_class(cohort: Cohort) -> int:
    return min(cohort.class_counts().values()) if cohort.patients else 0


def _score_label(
    values: Floats,
    cohort: Cohort,
    *,
    source: str,
    n_folds: int,
    n_compared: int,
    n_resamples: int,
    seed: int,
) -> ShortcutScore:
    folds = patient_folds(
        cohort, n_folds=min(n_folds, _smallest_class(cohort)), n_repeats=_N_REPEATS, seed=seed
    )
    positions = {name: index for index, name in enumerate(cohort.patient_ids)}
    fold_ids = np.empty((_N_REPEATS, len(positions)), np.int64)
    for fold in folds:
        fold_ids[fold.repeat, [positions[name] for name in fold.test_ids]] = fold.index
    proba = _out_of_fold(shortcut_model(source), values, cohort.labels, fold_ids)
    return ShortcutScore(
        source=source,
        target="label",
        metric="auroc",
        chance=0.5,
        n_compared=n_compared,
        **_evaluate(auroc, proba, cohort.labels, n_resamples=n_resamples, seed=seed),
    )


def _score_centre(
    cohort: Cohort, digests: Mapping[str, BagDigest], *, n_folds: int, n_resamples: int, seed: int
) -> Iterator[ShortcutScore]:
    """Yield the score of the mean embedding as predictor of centres with ten patients or more."""
    means, centres = [], []
    for patient in cohort.patients:
        slides = [slide for slide in _slides_of(patient, digests) if slide.n_tiles]
        if slides and patient.center_id:
            weights = [slide.n_tiles for slide in slides]
            means.append(np.average([slide.mean for slide in slides], axis=0, weights=weights))
            centres.append(patient.center_id)
    _, indices, counts = np.unique(centres, return_inverse=True, return_counts=True)
    enough = counts >= MIN_CLASS_SIZE
    if enough.sum() < 2:
        return
    kept = enough[indices]
    values = np.asarray(means, np.float64)[kept]
    truth = np.unique(indices[kept], return_inverse=True)[1].astype(np.int64)
    n_parts = min(n_folds, int(counts[enough].min()))
    fold_ids = np.stack(
        [stratified_fold_ids(truth, n_folds=n_parts, seed=(seed, r)) for r in range(_N_REPEATS)]
    )
    n_components = min(_MAX_COMPONENTS, values.shape[1], len(values) // 2)
    model = make_pipeline(
        StandardScaler(),
        PCA(n_components, whiten=True, random_state=seed),
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000),
    )
    proba = _out_of_fold(model, values, truth, fold_ids)
    yield ShortcutScore(
        source="mean embedding",
        target="centre",
        metric="balanced_accuracy",
        chance=1 / int(enough.sum()),
        n_compared=1,
        **_evaluate(balanced_accuracy, proba, truth, n_resamples=n_resamples, seed=seed),
    )


def _out_of_fold(model: Any, values: Floats, labels: Ints, fold_ids: Ints) -> Floats:
    """Return mean out-of-fold probabilities over repeats, shape (patients, classes).

    ``fold_ids``, shape (repeats, patients), is the fold in which each patient is tested.
    """
    proba = np.zeros((len(labels), labels.max() + 1))
    for of_repeat in fold_ids:
        for index in np.unique(of_repeat):
            test = of_repeat == index
            model.fit(values[~test], labels[~test])
            proba[test] += model.predict_proba(values[test]) / len(fold_ids)
    return proba


def _evaluate(
    metric: Metric, proba: Floats, labels: Ints, *, n_resamples: int, seed: int
) -> dict[str, Any]:
    """Return the score with its interval, and the p-value of a permutation test."""
    score = stratified_bootstrap(
        {"score": metric}, proba, labels, n_resamples=n_resamples, seed=seed
    )["score"]
    rng = np.random.default_rng(seed)
    shuffled = [metric(proba, rng.permutation(labels)) for _ in range(_N_PERMUTATIONS)]
    as_high = np.asarray(shuffled) >= score.value
    return {
        "score": score,
        "p_value": float((1 + as_high.sum()) / (1 + _N_PERMUTATIONS)),
        "n_patients": len(labels),
    }
