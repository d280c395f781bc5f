"""Errors that the chosen point of abstention states, and those of new patients.

Each seed draws a cohort of a kind of :mod:`tests.benchmarks.calibrators`; its probabilities are
cross-fitted in five folds, a point is chosen on them, and its threshold is applied to 4,000 new
patients. Prints a JSON list, one object per kind:

``chosen``
    Share of the cohorts that have a point. The next five are means over those.
``risk_of_all``, ``risk``, ``risk_at_most``
    As stated: errors without abstaining, errors of the patients kept, and their upper limit.
``new_risk_of_all``, ``new_risk``
    Those of new patients.
``within``
    Share of the cohorts with a point whose new patients have at most the stated limit.
``wrong``
    Share of all cohorts that have a point whose new patients have more.

    python -m tests.benchmarks.abstention --cohorts 300
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mil.calibration import build_calibrator
from mil.evaluation.abstention import choose_abstention, risk_coverage
from tests.benchmarks.calibrators import draw

__all__ = ["main", "measure"]

_KINDS = ("dense", "sparse", "weak", "none", "separable")
_N_FOLDS = 5


def measure(kind: str, seeds: range) -> dict[str, Any]:
    """Return what the chosen points of cohorts of a kind state, and what new patients have."""
    found = np.array([row for seed in seeds if (row := _point_and_truth(kind, seed))])
    n = len(seeds)
    if not len(found):
        return {"kind": kind, "n_cohorts": n, "chosen": 0.0, "wrong": 0.0}
    names = ("risk_of_all", "risk", "risk_at_most", "new_risk_of_all", "new_risk")
    is_within = found[:, 4] <= found[:, 2]
    return {
        "kind": kind,
        "n_cohorts": n,
        "chosen": len(found) / n,
        **dict(zip(names, found.mean(axis=0).tolist(), strict=True)),
        "within": float(is_within.mean()),
        "wrong": float((~is_within).sum()) / n,
    }


def _point_and_truth(kind: str, seed: int) -> tuple[float, ...] | None:
    cohort, rng = draw(kind, seed), np.random.default_rng(seed)
    labels, folds = cohort.labels, np.empty(len(cohort.labels), np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        folds[rng.permutation(own)] = np.arange(len(own)) % _N_FOLDS
    proba = np.empty(cohort.logits.shape)
    for fold in range(_N_FOLDS):
        inside = folds == fold
        calibrator = build_calibrator("platt").fit(cohort.logits[~inside], labels[~inside])
        proba[inside] = calibrator.predict_proba(cohort.logits[inside])
    point = choose_abstention(proba, labels, folds)
    if point is None or point.risk_at_most is None:
        return None
    new = build_calibrator("platt").fit(cohort.logits, labels).predict_proba(cohort.new)
    curve = risk_coverage(new, cohort.new_labels)
    kept = np.flatnonzero(curve.threshold >= point.threshold)
    return (
        point.risk_of_all, point.risk, point.risk_at_most,
        float(curve.risk[-1]), float(curve.risk[kept[-1]]) if len(kept) else 0.0,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kinds", default=",".join(_KINDS), help="comma-separated")
    parser.add_argument("--cohorts", type=int, default=300, help="per kind")
    parser.add_argument("--seed", type=int, default=30_000, help="of the first cohort")
    asked = parser.parse_args(arguments)
    seeds = range(asked.seed, asked.seed + asked.cohorts)
    result = [measure(kind, seeds) for kind in asked.kinds.split(",")]
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
