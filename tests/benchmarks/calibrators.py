"""What calibrators do to logits of unknown size and lean, from few patients.

Each seed draws a cohort of a kind; its logits are the evidence (the log odds at equal class shares)
times a factor, moved towards a class. Each calibrator is fitted on them and judged on 4,000 new
patients. Kinds:

``dense``, ``sparse``, ``weak``, ``none``, ``separable``
    30 to 100 patients, a half to a quarter of the second class. Of ``dense`` cohorts the AUROC is
    0.71 to 0.96; of ``sparse`` ones 40 to 80 % of the second class show it and the others show
    nothing; ``weak``: 0.53 to 0.66; ``none``: 0.5; ``separable``: above 0.99. Logits are 0.4 to
    4 times as large as the evidence in most cohorts of the first two and the last; of ``weak`` and
    ``none`` they vary by 0.5 to 3, as much as a head's logits do where it learned noise.
``three classes``
    As ``dense``, with three classes.
``right``
    As ``dense``, but the logits are the evidence: there is nothing to calibrate.
``mixed``
    30 to 600 patients with evidence of any strength, whose logits are in half of the cohorts bent,
    so that one class is overconfident and the other is not.

Prints a JSON list, one object a kind and calibrator:

``log_loss``
    Weighted log loss of new patients, mean over cohorts.
``above_raw``
    The same less that of the uncalibrated logits: mean, its standard error, and the value that a
    twentieth of the cohorts exceed.
``excess``
    Weighted log loss above that of the evidence itself, which nobody can beat; mean over cohorts.
``slope``
    Calibration slope on new patients, median over cohorts; 1 is perfect, less is overconfident.

Calibrators: ``none``, ``temperature``, ``platt``, the default, and from the benchmark ``plain
platt``, which is not averaged with anything, ``beta`` and ``auto``.

Seeds from 10,000 on are for reporting: nothing was chosen on them.

    python -m tests.benchmarks.calibrators --cohorts 400
    python -m tests.benchmarks.calibrators --kinds mixed --calibrators platt,beta,auto
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from mil.evaluation.calibration_slope import calibration_slope_and_intercepts
from mil.evaluation.metrics import weighted_log_loss
from tests.benchmarks._calibrators import build_any_calibrator

__all__ = ["CALIBRATORS", "KINDS", "CohortLogits", "Distortion", "draw", "main", "measure"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

KINDS = ("dense", "sparse", "weak", "none", "separable", "three classes", "right", "mixed")
CALIBRATORS = ("none", "temperature", "plain platt", "platt", "beta", "auto")

_QUICK = CALIBRATORS[:4]
_REPORTING_SEED = 10_000
_N_NEW = 4000
_LEAST_OF_A_CLASS = 7


@dataclass(frozen=True, kw_only=True, eq=False)
class CohortLogits:
    """Logits of a cohort and of new patients, shape (n, classes), and labels, shape (n,).

    ``evidence`` has the log odds of the new patients at equal class shares, shape (n, classes).
    """

    logits: Floats
    labels: Ints
    new: Floats
    new_labels: Ints
    evidence: Floats


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """What patients show, and what their logits have in its place."""

    strength: float
    """Standard deviation of the evidence within a class; its square lies between the means."""
    scale: float
    """Factor."""
    lean: float
    """Added afterwards."""
    bend: float = 1.0
    """Factor of the logits that speak for the second class."""
    share: float = 1.0
    """Share of the second class that shows anything."""
    noise: float = 0.0
    """Standard deviation of logits without any evidence."""

    @classmethod
    def draw(cls, kind: str, rng: np.random.Generator) -> Distortion:
        """Return another at each call, of a kind with two classes."""
        if kind == "mixed":
            return cls(
                strength=float(rng.uniform(0, 2)),
                scale=float(np.exp(rng.uniform(np.log(0.5), np.log(4)))),
                lean=float(rng.normal(0, 0.7)),
                bend=float(np.exp(rng.uniform(-0.7, 0.7))) if rng.random() < 0.5 else 1.0,
            )
        size = float(np.exp(rng.uniform(np.log(0.5), np.log(3))))
        scale = float(np.exp(rng.normal(0.2, 0.6)))
        lean = float(rng.normal(0, 0.3 if rng.random() < 0.8 else 1.0))
        if kind == "none":
            return cls(strength=0.0, scale=1.0, lean=lean, noise=size)
        low, high = {"sparse": (2.0, 4.0), "weak": (0.1, 0.6), "separable": (4.0, 7.0)}.get(
            kind, (0.8, 2.4)
        )
        strength = float(rng.uniform(low, high))
        if kind == "right":
            return cls(strength=strength, scale=1.0, lean=0.0)
        return cls(
            strength=strength,
            scale=size / strength if kind == "weak" else scale,
            lean=lean,
            share=float(rng.uniform(0.4, 0.8)) if kind == "sparse" else 1.0,
        )

    def patients(self, labels: Ints, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Return evidence and logits of new patients, each of shape (n, 2)."""
        shows = labels == 1
        if self.share < 1:
            shows &= rng.random(len(labels)) < self.share
        evidence = (shows - 0.5) * self.strength**2 + self.strength * rng.normal(size=len(labels))
        if self.share < 1:
            evidence = np.logaddexp(np.log(1 - self.share), np.log(self.share) + evidence)
        logits = self.scale * evidence * np.where(evidence > 0, self.bend, 1.0) + self.lean
        if self.noise:
            logits += self.noise * rng.normal(size=len(labels))
        return _two_sided(evidence), _two_sided(logits)


def draw(kind: str, seed: int) -> CohortLogits:
    """Return the cohort of a kind of :data:`KINDS` and a seed."""
    rng = np.random.default_rng((seed, KINDS.index(kind)))
    n = round(np.exp(rng.uniform(np.log(30), np.log(600 if kind == "mixed" else 100))))
    n_rare = max(_LEAST_OF_A_CLASS, n // int(rng.choice([2, 3, 4])))
    if kind == "three classes":
        labels = np.maximum(np.arange(n) % 3, (np.arange(n) >= 2 * n_rare) * 2)
        strength, scale = rng.uniform(0.8, 2.0), np.exp(rng.normal(0.2, 0.6))
        lean = rng.normal(0, 0.3, size=3)
        new_labels = np.arange(_N_NEW) % 3
        known, evidence = (
            # Unit normals at the corners of a simplex: log densities differ by the coordinates.
            strength * (rng.normal(size=(len(own), 3)) + strength * np.eye(3)[own])
            for own in (labels, new_labels)
        )
        logits, new = scale * known + lean, scale * evidence + lean
    else:
        distortion = Distortion.draw(kind, rng)
        labels = (np.arange(n) < n_rare).astype(np.int64)
        new_labels = np.arange(_N_NEW) % 2
        _, logits = distortion.patients(labels, rng)
        evidence, new = distortion.patients(new_labels, rng)
    return CohortLogits(
        logits=logits, labels=labels, new=new, new_labels=new_labels, evidence=evidence
    )


def measure(
    kind: str, *, calibrators: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, object]]:
    """Fit the calibrators on every cohort of a kind; what is printed."""
    shape = (len(seeds), len(calibrators))
    losses, slopes = np.zeros(shape), np.zeros(shape)
    raw, best = np.zeros(len(seeds)), np.zeros(len(seeds))
    for row, seed in enumerate(seeds):
        cohort = draw(kind, seed)
        raw[row] = weighted_log_loss(softmax(cohort.new, axis=1), cohort.new_labels)
        best[row] = weighted_log_loss(softmax(cohort.evidence, axis=1), cohort.new_labels)
        for column, name in enumerate(calibrators):
            fitted = build_any_calibrator(name).fit(cohort.logits, cohort.labels)
            proba = fitted.predict_proba(cohort.new)
            losses[row, column] = weighted_log_loss(proba, cohort.new_labels)
            slopes[row, column] = calibration_slope_and_intercepts(proba, cohort.new_labels)[0]
    return [
        {
            "kind": kind,
            "calibrator": name,
            "log_loss": float(own.mean()),
            "above_raw": {
                "mean": float((own - raw).mean()),
                "standard_error": float((own - raw).std(ddof=1) / len(own) ** 0.5),
                "highest_twentieth": float(np.quantile(own - raw, 0.95)),
            },
            "excess": float((own - best).mean()),
            "slope": float(np.nanmedian(slope)),
            "n_cohorts": len(seeds),
        }
        for name, own, slope in zip(calibrators, losses.T, slopes.T, strict=True)
    ]


def _two_sided(log_odds: Floats) -> Floats:
    return np.stack([-log_odds / 2, log_odds / 2], axis=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints a JSON list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cohorts", type=int, default=400, help="of each kind, 2 or more")
    parser.add_argument("--first-seed", type=int, default=_REPORTING_SEED)
    for name, known, usual in (("kinds", KINDS, KINDS), ("calibrators", CALIBRATORS, _QUICK)):
        parser.add_argument(
            f"--{name}", default=",".join(usual), help=f"some of {', '.join(known)}"
        )
    given = parser.parse_args(arguments)
    kinds, calibrators = given.kinds.split(","), given.calibrators.split(",")
    if unknown := {*kinds} - {*KINDS} | {*calibrators} - {*CALIBRATORS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if given.cohorts < 2:
        parser.error("at least 2 cohorts")
    seeds = range(given.first_seed, given.first_seed + given.cohorts)
    results = [row for kind in kinds for row in measure(kind, calibrators=calibrators, seeds=seeds)]
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
