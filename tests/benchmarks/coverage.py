"""How many patients prediction sets really cover, over whole trainings on generated cohorts.

Every cohort is generated, trained on by cross-validation, and judged on new patients by the sets
that came of it; nothing is drawn but tiles. A third of the patients are of the second class, whose
tiles are all moved a little. Each centre moves all its tiles by a vector of its own, which has
nothing to do with the class. New patients come from the centres of the cohort, or from as many
others. Prints a JSON list, one object a situation:

``covered``
    Share of new patients whose set holds their class, by class: mean over cohorts, with its
    standard error.
``lowest_tenth``
    A tenth of the cohorts cover less than this of the class, by class.
``one_class``
    Share of new patients whose set holds exactly one class.
``guaranteed``
    What is guaranteed of each class; null with folds by centre.
``auroc``
    Of the mean of all folds' heads on new patients.

    python -m tests.benchmarks.coverage --head mean --cohorts 200
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mil.data.bags import PatientBags
from mil.data.cohort import Cohort, Patient
from mil.data.splits import SplitBy, make_folds
from mil.evaluation.metrics import auroc
from mil.inference.conformal import COVERAGE, CrossConformal
from mil.inference.prediction_sets import fit_sets
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate, resolve_components
from mil.training.pair_folds import pair_calibrators, pair_folds
from tests.fakes import FINGERPRINT

__all__ = ["SITUATIONS", "Situation", "main", "simulate", "train_and_predict"]

Floats = npt.NDArray[np.float64]

_DIM = 16
_N_NEW = {"stack": 240, "mean": 60, "gated": 60}
_SETTINGS = {
    "stack": TrainConfig(),
    "mean": TrainConfig(
        head="mean", n_members=1, n_components=_DIM, fixed_steps=40, learning_rate=1e-2
    ),
    "gated": TrainConfig(head="gated", n_components=_DIM),
}


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What cohorts are like and how sets are made."""

    head: str = "mean"
    """``stack``: the default learner. ``mean``: one quick head per fold. ``gated``: five heads."""
    n_patients: int = 60
    """To learn from."""
    signal: float = 0.15
    """How far the second class is moved, in standard deviations of a tile's numbers."""
    centre_shift: float = 0.0
    """Standard deviation of a centre's own move."""
    n_centres: int = 6
    """Centres of a cohort."""
    new_centres: bool = False
    """New patients come from other centres."""
    by: SplitBy = "patient"
    """How folds are made."""
    coverage: float = COVERAGE
    """Aimed at."""


_CENTRES: tuple[tuple[bool, SplitBy], ...] = (
    (False, "patient"),
    (True, "patient"),
    (True, "centre"),
)
SITUATIONS = (
    *(Situation(n_patients=n) for n in (30, 60, 120, 240)),
    Situation(signal=0.0),
    Situation(coverage=0.8),
    *(
        Situation(n_patients=120, centre_shift=shift, new_centres=new, by=by)
        for shift in (0.25, 0.5, 1.0)
        for new, by in _CENTRES
    ),
    *(Situation(head="stack", n_patients=n) for n in (30, 60, 100)),
    Situation(head="stack", signal=0.0),
    Situation(head="gated", n_patients=120),
    *(
        Situation(head="gated", n_patients=120, centre_shift=0.5, new_centres=new, by=by)
        for new, by in _CENTRES
    ),
)
"""All that are looked at."""


def simulate(situation: Situation, *, n_cohorts: int, seed: int = 0) -> dict[str, Any]:
    """Train on so many cohorts of a situation, and count what sets cover.

    Parameters
    ----------
    situation
        Which.
    n_cohorts
        Whole trainings.
    seed
        Other cohorts.
    """
    covered, one_class, ranked, guaranteed = [], [], [], []
    for number in range(n_cohorts):
        conformal, logits, labels = train_and_predict(situation, (seed, number))
        sets = conformal.sets(logits, coverage=situation.coverage)
        holds = sets[np.arange(len(labels)), labels]
        covered.append([holds[labels == label].mean() for label in range(2)])
        one_class.append((sets.sum(axis=1) == 1).mean())
        ranked.append(auroc(logits.mean(axis=0), labels))
        guaranteed.append(conformal.guaranteed_coverage(situation.coverage))
    shares = np.array(covered)
    return {
        **asdict(situation),
        "n_cohorts": n_cohorts,
        "covered": [
            {"mean": float(of.mean()), "standard_error": float(of.std(ddof=1) / n_cohorts**0.5)}
            for of in shares.T
        ],
        "lowest_tenth": np.quantile(shares, 0.1, axis=0).tolist(),
        "one_class": float(np.mean(one_class)),
        "guaranteed": np.mean(guaranteed, axis=0).tolist() if situation.by == "patient" else None,
        "auroc": float(np.mean(ranked)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what was found in each situation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--head", choices=list(_SETTINGS), help="only situations with it")
    parser.add_argument("--cohorts", type=int, default=60, help="whole trainings a situation")
    asked = parser.parse_args(arguments)
    result = [
        simulate(situation, n_cohorts=asked.cohorts)
        for situation in SITUATIONS
        if asked.head in (None, situation.head)
    ]
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def train_and_predict(
    situation: Situation, seed: tuple[int, ...]
) -> tuple[CrossConformal, Floats, npt.NDArray[np.int64]]:
    """Return the predictor of a cohort, and of new patients logits by fold and labels.

    Logits have shape (folds, patients, classes), labels shape (patients,).
    """
    rng = np.random.default_rng(seed)
    moves = situation.centre_shift * rng.normal(size=(2 * situation.n_centres, _DIM))
    taught, others = np.split(moves, 2)
    bags, cohort = _generate(situation.n_patients, taught, situation, rng)
    new, asked = _generate(
        _N_NEW[situation.head], others if situation.new_centres else taught, situation, rng
    )
    folds = make_folds(cohort, by=situation.by, n_folds=5, n_repeats=1, seed=0)
    config = _SETTINGS[situation.head]
    if config.is_stack:
        config = resolve_components(config, folds)
    result = cross_validate(bags, cohort, folds, config=config, seed=0)
    weights = {}
    if config.is_stack:
        weights = pair_calibrators(
            bags, cohort, folds, pair_folds(cohort, folds), config=config, seed=0,
            calibrator="platt", on_head=lambda: None,
        )  # fmt: skip
    of_folds = {fold: fitted for (_, fold), fitted in weights.items()}
    sets = fit_sets(result, of_folds or None, are_nested=True)
    logits = np.stack([sets.fold_logits(new.features[name]) for name in asked.patient_ids], axis=1)
    return sets.conformal, logits, asked.labels


def _generate(
    n_patients: int, moves: Floats, situation: Situation, rng: np.random.Generator
) -> tuple[PatientBags, Cohort]:
    """Patients of centres that move their tiles; every third is of the second class."""
    features, patients = {}, []
    for number in range(n_patients):
        name, label, centre = f"{number:03d}", number % 3 == 0, int(rng.integers(len(moves)))
        tiles = rng.normal(size=(int(rng.integers(5, 15)), _DIM)) + situation.signal * label
        features[name] = (tiles + moves[centre]).astype(np.float32)
        patients.append(
            Patient(patient_id=name, slide_ids=(), label="AB"[label], center_id=str(centre))
        )
    cohort = Cohort(path=Path("generated.csv"), patients=tuple(patients), classes=("A", "B"))
    return PatientBags(
        features=features, fingerprint=replace(FINGERPRINT, dim=_DIM), slides=()
    ), cohort


if __name__ == "__main__":
    main()
