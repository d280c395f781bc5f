"""How far cross-fitted scores are from nested ones, which cost several times as much.

Generated cohorts of 60 patients, 20 of the second class, of 5 to 15 tiles of 16 numbers, all of
which differ by class or none does; five folds, five heads, all by default. Prints a JSON list, one
object with a signal and one without:

``auroc``
    Cross-fitted; mean over cohorts, as the rest.
``raw``, ``cross_fitted``, ``nested``
    Weighted log loss without calibration and with either.
``difference``
    Nested minus cross-fitted: mean, its standard error and the deviation over cohorts.
``cost``
    Seconds of both cross-validations over those of the outer one.

    python -m tests.benchmarks.nested --cohorts 20
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from mil.data.splits import patient_folds
from mil.evaluation.metrics import auroc, weighted_log_loss
from mil.training.config import TrainConfig
from mil.training.cross_validation import (
    calibrated_probabilities,
    cross_fitted_probabilities,
    cross_validate,
    inner_folds,
    nested_calibrators,
    resolve_components,
)
from tests.benchmarks.training import generate

__all__ = ["main", "measure"]

_N_PATIENTS = 60
_SIGNALS = (1.0, 0.0)  # standard deviations of the projection that tiles are moved along


def measure(*, signal: float, seeds: Sequence[int]) -> dict[str, object]:
    """What is printed of one signal.

    Parameters
    ----------
    signal
        How far all tiles of the second class are moved.
    seeds
        One a cohort.
    """
    result = np.array([_one_cohort(signal, seed) for seed in seeds])  # (cohorts, figures)
    ranked, raw, cross_fitted, nested, cost = result.mean(axis=0).tolist()
    gaps = result[:, 3] - result[:, 2]
    return {
        "signal": signal,
        "n_cohorts": len(seeds),
        "auroc": ranked,
        "raw": raw,
        "cross_fitted": cross_fitted,
        "nested": nested,
        "difference": {
            "mean": float(gaps.mean()),
            "standard_error": float(gaps.std(ddof=1) / len(seeds) ** 0.5),
            "deviation": float(gaps.std(ddof=1)),
        },
        "cost": cost,
    }


def _one_cohort(signal: float, seed: int) -> tuple[float, float, float, float, float]:
    """AUROC; log loss raw, cross-fitted and nested; cost."""
    bags, cohort = generate(
        n_patients=_N_PATIENTS, n_tiles=10, dim=16, seed=seed, signal=signal, share=1.0
    )
    folds = patient_folds(cohort, n_folds=5, n_repeats=1, seed=0)
    inner = inner_folds(cohort, folds, by="patient", n_folds=5, seed=0)
    smallest = [fold for of_fold in inner for fold in of_fold]
    settings = resolve_components(TrainConfig(), [*folds, *smallest])
    started = time.perf_counter()
    out = cross_validate(bags, cohort, folds, config=settings, seed=0)
    outer_s = time.perf_counter() - started
    cross_fitted = cross_fitted_probabilities(out)[0]
    fitted = nested_calibrators(bags, cohort, folds, inner=inner, config=settings, seed=0)
    nested = calibrated_probabilities(out, fitted)[0]
    both_s = time.perf_counter() - started
    raw = softmax(out.raw_logits[0], axis=1)
    losses = [weighted_log_loss(proba, out.labels) for proba in (raw, cross_fitted, nested)]
    return auroc(cross_fitted, out.labels), losses[0], losses[1], losses[2], both_s / outer_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints a JSON list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cohorts", type=int, default=20, help="two or more, of each signal")
    given = parser.parse_args(arguments)
    if given.cohorts < 2:
        parser.error("at least 2 cohorts")
    result = [measure(signal=signal, seeds=range(given.cohorts)) for signal in _SIGNALS]
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
