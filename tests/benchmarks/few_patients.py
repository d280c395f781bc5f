"""How heads should learn from few patients, where nothing stops them early.

Each seed draws a kind of cohort and a cohort of it: 30 to 90 patients of 10 to 120 tiles of 256
numbers; every second or third patient is of the second class, which differs in all of its tiles,
in a fifth or in a twentieth of them, by more or less, along a direction among the first 8, 32 or
128 factors. On each, the default is tried, then other numbers of steps, then of components: five
folds, never stopped early, everything else by default. Prints a JSON list, one object a setting:

``log_loss``
    Cross-fitted weighted log loss, mean over the cohorts.
``difference``
    The same minus that of the default, mean and standard error over the cohorts.
``by_share``
    The mean log loss by the share of tiles that differ.

    python -m tests.benchmarks.few_patients --cohorts 48
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mil.data.splits import patient_folds
from mil.evaluation.metrics import weighted_log_loss
from mil.training.config import TrainConfig
from mil.training.cross_validation import (
    cross_fitted_probabilities,
    cross_validate,
    resolve_components,
)
from tests.benchmarks.training import generate

__all__ = ["TRIED", "Kind", "Setting", "main", "measure"]

Floats = npt.NDArray[np.float64]

_SIGNALS = {1.0: (0.4, 1.2), 0.2: (1.5, 3.5), 0.05: (3.0, 5.0)}  # by share: standard deviations


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a cohort is like; see :func:`tests.benchmarks.training.generate`."""

    n_patients: int
    n_tiles: int
    share: float
    signal: float
    n_moved: int
    every: int

    @classmethod
    def draw(cls, seed: int) -> Kind:
        """Another for each seed."""
        rng = np.random.default_rng((seed, 7))
        n_patients = int(rng.integers(30, 91))
        share = float(rng.choice(list(_SIGNALS)))
        return cls(
            n_patients=n_patients,
            share=share,
            n_moved=int(rng.choice([8, 32, 128])),
            signal=float(rng.uniform(*_SIGNALS[share])),
            n_tiles=int(rng.choice([20, 40, 80])),
            every=int(rng.choice([2, 3])),
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is tried; the defaults where nothing is given."""

    fixed_steps: int | None = None
    """Steps of a head."""
    patients_a_component: float | None = None
    """Patients of the smallest ensemble for each component that is kept, of 8 to 64 in all."""

    def settings(self, rule: TrainConfig, *, n_patients: int) -> TrainConfig:
        """The rule's settings, with what is given here instead."""
        given: dict[str, int] = {}
        if self.fixed_steps is not None:
            given["fixed_steps"] = self.fixed_steps
        if self.patients_a_component is not None:
            n_components = max(8, int(n_patients // self.patients_a_component))
            given["n_components"] = min(TrainConfig().n_components, n_components)
        return replace(rule, **given)


TRIED = (
    Setting(),
    *(Setting(fixed_steps=n_steps) for n_steps in (30, 60, 240)),
    *(Setting(patients_a_component=ratio) for ratio in (6.0, 1.5, 0.1)),  # 0.1: as many as allowed
)
"""The default first."""


def measure(seeds: Sequence[int], *, tried: Sequence[Setting] = TRIED) -> list[dict[str, object]]:
    """Cross-validate every setting on every cohort; what is printed.

    Parameters
    ----------
    seeds
        One a cohort.
    tried
        Settings; differences are to the first.
    """
    kinds = [Kind.draw(seed) for seed in seeds]
    shares = np.array([kind.share for kind in kinds])
    losses = np.array([
        _losses(kind, seed, tried) for kind, seed in zip(kinds, seeds, strict=True)
    ])  # (cohorts, settings)  # fmt: skip
    gains = losses - losses[:, :1]
    errors = gains.std(axis=0, ddof=1) / len(seeds) ** 0.5
    return [
        {
            "fixed_steps": setting.fixed_steps or "default",
            "patients_a_component": setting.patients_a_component or "default",
            "log_loss": float(losses[:, place].mean()),
            "difference": {
                "mean": float(gains[:, place].mean()),
                "standard_error": float(errors[place]),
            },
            "by_share": {
                str(share): float(losses[shares == share, place].mean())
                for share in np.unique(shares)
            },
            "n_cohorts": len(seeds),
        }
        for place, setting in enumerate(tried)
    ]


def _losses(kind: Kind, seed: int, tried: Sequence[Setting]) -> list[float]:
    """Of each setting, on one cohort."""
    bags, cohort = generate(
        n_patients=kind.n_patients, n_tiles=kind.n_tiles, dim=256, seed=seed, signal=kind.signal,
        share=kind.share, n_moved=kind.n_moved, every=kind.every,
    )  # fmt: skip
    folds = patient_folds(cohort, n_folds=5, n_repeats=1, seed=0)
    rule = resolve_components(TrainConfig(head="gated"), folds)
    fewest = min(len(fold.train_ids) for fold in folds)
    result = []
    for setting in tried:
        settings = setting.settings(rule, n_patients=fewest)
        out = cross_validate(bags, cohort, folds, config=settings, seed=0)
        result.append(weighted_log_loss(cross_fitted_probabilities(out)[0], out.labels))
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints a JSON list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cohorts", type=int, default=48, help="two or more")
    parser.add_argument("--first-seed", type=int, default=2000, help="of the first cohort")
    given = parser.parse_args(arguments)
    if given.cohorts < 2:
        parser.error("at least 2 cohorts")
    result = measure(range(given.first_seed, given.first_seed + given.cohorts))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
