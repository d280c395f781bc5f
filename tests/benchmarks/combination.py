"""Optimism of a combination's scores, and the coverage of its prediction sets.

Each seed draws 60 training and 2,000 new patients of two classes, and three runs that see features
of their own, with noise in common: penalised logistic regressions, five folds. Kinds: ``none``,
``weak`` and ``equal`` runs (a shift of 0, 0.2 and 0.5), and ``unlike`` ones (0.6, 0, 0). Runs and
weights are what ``mil combine`` makes; nested runs and weights are fitted a second time for every
fold, on nothing that its patients have a part in (models without two folds). Prints
one JSON object per kind:

``reported``, ``nested``, ``new``
    Weighted log loss, mean over cohorts: as reported, of nested weights, and of new patients by the
    deployed combination.
``nested_above_reported``, ``new_above_reported``
    Mean of the paired differences, and its standard error.
``coverage``, ``one_class``
    Of new patients' sets at 0.9, mean over cohorts and classes, of the combination; and the share
    of sets with one class, of the combination and of the first run.
``least_coverage``
    A tenth of the cohorts and classes have less.

    python -m tests.benchmarks.combination --cohorts 40
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from scipy.special import log_softmax

from mil.arrays import Floats, Ints
from mil.base_learners.logistic import LinearModel
from mil.calibration import Calibrator, build_calibrator, clipped_log, cross_fit
from mil.combination.weights import fit_weights
from mil.data.splits import stratified_fold_ids
from mil.evaluation.metrics import weighted_log_loss
from mil.inference.conformal import CrossConformal

KINDS = {
    "none": (0.0, 0.0, 0.0), "weak": (0.2, 0.2, 0.2), "equal": (0.5, 0.5, 0.5),
    "unlike": (0.6, 0.0, 0.0),
}  # fmt: skip
N_TRAIN, N_NEW, N_FOLDS, DIM, COMMON, COVERAGE = 60, 2000, 5, 12, 0.5, 0.9


def _calibrate(logits: Floats, labels: Ints) -> Calibrator:
    return build_calibrator("platt", stacked=False).fit(logits, labels)


def _draw(shifts: tuple[float, ...], seed: int) -> tuple[Floats, Ints]:
    """Return features, shape (patients, runs, dim), and labels, training patients first."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N_TRAIN + N_NEW) % 2
    common = COMMON * rng.normal(size=(len(labels), 1, DIM))
    noise = common + rng.normal(size=(len(labels), len(shifts), DIM))
    directions = np.abs(rng.normal(size=(len(shifts), DIM)))
    return noise + np.array(shifts)[:, None] * directions * labels[:, None, None], labels


def measure_cohort(shifts: tuple[float, ...], seed: int) -> dict[str, float | list[float]]:
    """Return the losses and coverages of one cohort, see the module."""
    features, every_label = _draw(shifts, seed)
    labels, truth = every_label[:N_TRAIN], every_label[N_TRAIN:]
    fold = stratified_fold_ids(labels, n_folds=N_FOLDS, seed=(seed,))
    n_runs = len(shifts)

    def logits_without(run: int, left_out: tuple[int, ...]) -> Floats:
        """Return the logits of all patients by a model that was trained without some folds."""
        rows = ~np.isin(fold, left_out)
        model = LinearModel.fit(
            features[:N_TRAIN][rows, run], labels[rows], n_classes=2, balanced=True,
            standardise=True,
        )  # fmt: skip
        return model.logits(features[:, run])

    without = {
        (run, *pair): logits_without(run, pair)
        for run in range(n_runs)
        for pair in {(min(a, b), max(a, b)) for a in range(N_FOLDS) for b in range(N_FOLDS)}
    }
    oof = np.empty((N_TRAIN, n_runs, 2))
    for run in range(n_runs):
        for k in range(N_FOLDS):
            oof[fold == k, run] = without[run, k, k][:N_TRAIN][fold == k]
    proba = np.stack(
        [cross_fit(oof[None, :, r], labels, fold[None], calibrator="platt")[0]
         for r in range(n_runs)], axis=1,
    )  # fmt: skip
    reported = cross_fit(clipped_log(proba)[None], labels, fold[None], calibrator=fit_weights)
    deployed = fit_weights(clipped_log(proba), labels)
    of_runs = np.stack(
        [_calibrate(oof[:, r], labels).predict_proba(logits_without(r, ())[N_TRAIN:])
         for r in range(n_runs)], axis=1,
    )  # fmt: skip
    new = deployed.predict_proba(clipped_log(of_runs))

    nested = np.empty((N_TRAIN, 2))
    of_folds = np.empty((N_FOLDS, N_NEW, n_runs, 2))
    held_out = np.empty((N_TRAIN, n_runs, 2))
    for k in range(N_FOLDS):
        inner = np.empty((N_TRAIN, n_runs, 2))
        for run in range(n_runs):
            for j in set(range(N_FOLDS)) - {k}:
                inner[fold == j, run] = without[run, min(j, k), max(j, k)][:N_TRAIN][fold == j]
            calibrator = _calibrate(inner[fold != k, run], labels[fold != k])
            own = clipped_log(calibrator.predict_proba(without[run, k, k]))
            held_out[fold == k, run] = own[:N_TRAIN][fold == k]
            of_folds[k, :, run] = own[N_TRAIN:]
        others = fold != k
        calibrated = np.stack(
            [cross_fit(inner[None, others, r], labels[others], fold[None, others],
                       calibrator="platt")[0] for r in range(n_runs)], axis=1,
        )  # fmt: skip
        weights = fit_weights(clipped_log(calibrated), labels[others])
        nested[fold == k] = weights.predict_proba(held_out[fold == k])

    sets = []
    for rows in (slice(None), slice(0, 1)):  # the combination, and its first run
        scores = log_softmax(held_out[:, rows], axis=-1).mean(axis=1)
        conformal = CrossConformal.fit(scores, labels, fold)
        mean = log_softmax(of_folds[:, :, rows], axis=-1).mean(axis=2)
        sets.append(conformal.sets(mean, coverage=COVERAGE))
    covered = sets[0][np.arange(N_NEW), truth]
    return {
        "reported": weighted_log_loss(reported[0], labels),
        "nested": weighted_log_loss(nested, labels),
        "new": weighted_log_loss(new, truth),
        "coverage": [float(covered[truth == c].mean()) for c in (0, 1)],
        "one_class": [float((own.sum(axis=1) == 1).mean()) for own in sets],
    }


def measure(kind: str, *, n_cohorts: int, seed: int) -> dict[str, object]:
    """Return the means over the cohorts of a kind."""
    cohorts = [measure_cohort(KINDS[kind], seed + number) for number in range(n_cohorts)]
    of = {name: np.array([cohort[name] for cohort in cohorts]) for name in cohorts[0]}

    def above(name: str) -> list[float]:
        paired = of[name] - of["reported"]
        return [round(float(v), 4) for v in (paired.mean(), paired.std() / np.sqrt(n_cohorts))]

    return {
        "kind": kind,
        **{name: round(float(of[name].mean()), 4) for name in ("reported", "nested", "new")},
        "nested_above_reported": above("nested"),
        "new_above_reported": above("new"),
        "coverage": of["coverage"].mean(axis=0).round(3).tolist(),
        "least_coverage": round(float(np.quantile(of["coverage"], 0.1)), 3),
        "one_class": of["one_class"].mean(axis=0).round(3).tolist(),
    }


def main() -> None:
    """Print the measures of each kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cohorts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    for kind in given.kinds.split(","):
        json.dump(measure(kind, n_cohorts=given.cohorts, seed=given.seed), sys.stdout)
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
