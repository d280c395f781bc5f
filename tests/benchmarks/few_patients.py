"""How long heads should learn from few patients, where nothing stops them early.

Cohorts of 60 generated patients, a third of the second class, about 30 tiles of 256 numbers, a
fifth of the tiles of the second class moved; five folds, everything else by default. Prints a JSON
list, one object for each number of steps and learning rate:

``log_loss``
    Cross-fitted weighted log loss, mean over the cohorts.
``difference``
    The same minus that of the default, mean and standard error over the cohorts.

    python -m tests.benchmarks.fixed_steps --signal 3
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mil.metrics import weighted_log_loss
from mil.settings import TrainSettings
from mil.splits import patient_folds
from mil.validation import cross_fitted_probabilities, cross_validate, with_stopping_rule
from tests.benchmarks.training import generate

__all__ = ["main", "measure"]

_N_PATIENTS = 60
_SHARE = 0.2
_DEFAULT = TrainSettings()
_TRIED = ((_DEFAULT.fixed_steps, _DEFAULT.rate), (120, 1e-3), (60, 3e-3), (30, 3e-3))


def measure(*, signal: float, seeds: Sequence[int]) -> list[dict[str, object]]:
    """Cross-validate every setting on every cohort; what is printed.

    Parameters
    ----------
    signal
        How far tiles are moved, in standard deviations of the projection they move along.
    seeds
        One a cohort.
    """
    losses = np.array([_losses(signal, seed) for seed in seeds])  # (cohorts, settings)
    gains = losses - losses[:, :1]
    errors = gains.std(axis=0, ddof=1) / len(seeds) ** 0.5
    return [
        {
            "fixed_steps": n_steps,
            "learning_rate": rate,
            "log_loss": float(losses[:, place].mean()),
            "difference": {
                "mean": float(gains[:, place].mean()),
                "standard_error": float(errors[place]),
            },
            "n_cohorts": len(seeds),
            "signal": signal,
        }
        for place, (n_steps, rate) in enumerate(_TRIED)
    ]


def _losses(signal: float, seed: int) -> list[float]:
    """Of each setting, on one cohort."""
    bags, cohort = generate(
        n_patients=_N_PATIENTS, n_tiles=30, dim=256, seed=seed, signal=signal, share=_SHARE
    )
    folds = patient_folds(cohort, n_folds=5, n_repeats=1, seed=0)
    found = []
    for n_steps, rate in _TRIED:
        asked = TrainSettings(fixed_steps=n_steps, learning_rate=rate)
        settings = replace(with_stopping_rule(asked, cohort, folds), early_stopping=False)
        out = cross_validate(bags, cohort, folds, settings=settings, seed=0)
        found.append(weighted_log_loss(cross_fitted_probabilities(out)[0], out.labels))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints a JSON list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signal", type=float, default=3.0, help="standard deviations")
    parser.add_argument("--cohorts", type=int, default=6, help="two or more")
    parser.add_argument("--first-seed", type=int, default=201, help="of the first cohort")
    given = parser.parse_args(arguments)
    if given.cohorts < 2:
        parser.error("at least 2 cohorts")
    seeds = range(given.first_seed, given.first_seed + given.cohorts)
    found = measure(signal=given.signal, seeds=seeds)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
