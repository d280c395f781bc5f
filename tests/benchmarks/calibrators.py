"""Which calibrator suits logits of unknown size and lean, from few patients.

Each seed draws a cohort: 30 to 600 patients, a half or a quarter of the second class, with evidence
of any strength. Its logits are that evidence made 0.5 to 4 times as large, moved towards a class,
and in half of the cohorts bent, so that one class is overconfident and the other is not. Each
calibrator is fitted on them and judged on 4,000 new patients. Prints a JSON list, one object a
calibrator:

``excess``
    Weighted log loss above that of the evidence itself, which nobody can beat; mean over cohorts.
``by_patients``
    The same for cohorts of 30 to 79, 80 to 199, and 200 or more patients.
``difference``
    The mean less that of the default, and its standard error over cohorts.
``picks``
    Of ``auto``: how often it took which.

    python -m tests.benchmarks.calibrators --cohorts 400
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from mil.evaluation.metrics import weighted_log_loss
from tests.benchmarks._calibrators import AutoCalibrator, build_any_calibrator

__all__ = ["Distortion", "main", "measure"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DEFAULT = "platt"
_NAMES = ("auto", "beta", "none", "platt", "temperature")
_N_NEW = 4000
_FEW, _SOME = 80, 200
_LEAST_OF_A_CLASS = 7
_LEAST_COHORTS = 40  # so that each size occurs


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """What the logits of a cohort have in place of its evidence."""

    strength: float
    """Standard deviation of the evidence within a class; its square lies between the means."""
    scale: float
    """Factor."""
    lean: float
    """Added afterwards."""
    bend: float
    """Factor of the logits that speak for the second class."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Distortion:
        """Another at each call."""
        return cls(
            strength=float(rng.uniform(0, 2)),
            scale=float(np.exp(rng.uniform(np.log(0.5), np.log(4)))),
            lean=float(rng.normal(0, 0.7)),
            bend=float(np.exp(rng.uniform(-0.7, 0.7))) if rng.random() < 0.5 else 1.0,
        )

    def patients(self, labels: Ints, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Evidence (the log odds at equal class shares) and logits, each of shape (n, 2)."""
        means = (labels - 0.5) * self.strength**2
        evidence = means + self.strength * rng.normal(size=len(labels))
        logits = self.scale * evidence * np.where(evidence > 0, self.bend, 1.0) + self.lean
        return _two_sided(evidence), _two_sided(logits)


def measure(*, n_cohorts: int) -> list[dict[str, object]]:
    """Fit every calibrator on every cohort; what is printed."""
    sizes, excess = np.zeros(n_cohorts, np.int64), np.zeros((n_cohorts, len(_NAMES)))
    picks: Counter[str] = Counter()
    for seed in range(n_cohorts):
        rng = np.random.default_rng(seed)
        distortion = Distortion.draw(rng)
        sizes[seed] = round(np.exp(rng.uniform(np.log(30), np.log(600))))
        n_rare = max(_LEAST_OF_A_CLASS, int(sizes[seed] * rng.choice([0.25, 0.5])))
        labels = (np.arange(sizes[seed]) < n_rare).astype(np.int64)
        _, logits = distortion.patients(labels, rng)
        truth = np.arange(_N_NEW) % 2
        evidence, new = distortion.patients(truth, rng)
        best = weighted_log_loss(softmax(evidence, axis=1), truth)
        for index, name in enumerate(_NAMES):
            fitted = build_any_calibrator(name).fit(logits, labels)
            excess[seed, index] = weighted_log_loss(fitted.predict_proba(new), truth) - best
            if isinstance(fitted, AutoCalibrator):
                picks[fitted.name_] += 1
    return [
        _summary(name, excess[:, index], excess[:, _NAMES.index(_DEFAULT)], sizes)
        | ({"picks": dict(picks)} if name == "auto" else {})
        for index, name in enumerate(_NAMES)
    ]


def _summary(name: str, excess: Floats, default: Floats, sizes: Ints) -> dict[str, object]:
    gains = excess - default
    parts = np.digitize(sizes, [_FEW, _SOME])
    return {
        "calibrator": name,
        "excess": float(excess.mean()),
        "by_patients": [float(excess[parts == part].mean()) for part in range(3)],
        "difference": {
            "mean": float(gains.mean()),
            "standard_error": float(gains.std(ddof=1) / len(gains) ** 0.5),
        },
        "n_cohorts": len(excess),
    }


def _two_sided(log_odds: Floats) -> Floats:
    return np.stack([-log_odds / 2, log_odds / 2], axis=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints a JSON list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cohorts", type=int, default=400, help=f"{_LEAST_COHORTS} or more")
    given = parser.parse_args(arguments)
    if given.cohorts < _LEAST_COHORTS:
        parser.error(f"at least {_LEAST_COHORTS} cohorts")
    sys.stdout.write(json.dumps(measure(n_cohorts=given.cohorts), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
