"""Which head finds a signal in a few tiles, and at which cohort size.

Bags are generated: about 100 tiles of 64 numbers of falling variance, as embeddings have; a
patient's tiles share a shift of half their own spread, which no label explains. In every second
patient some tiles are moved by 4 standard deviations along a direction among the first 16. Each run
generates a cohort and trains one head, with the defaults otherwise; it is judged by the AUROC on
200 new patients. Beside the heads stand a logistic regression on mean tiles, and what somebody
reaches who knows the direction and the share: the likelihood ratio of each tile by itself. Prints
one JSON object:

``cells``
    By share of tiles, head and patients: mean AUROC over runs, and its 95 % interval (Student's t).
``seconds``
    Processor time of everything.

    python -m tests.benchmarks.planted_signal --figure planted-signal.png
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.data.bags import PatientBags
from mil.data.cohort import Cohort, Patient
from mil.data.splits import Fold
from mil.heads.ensemble import predict_members
from mil.training.config import TrainConfig
from mil.training.cross_validation import resolve_components
from mil.training.ensemble import train_ensemble
from tests.fakes import FINGERPRINT

__all__ = ["Cell", "World", "draw_cells", "generate", "main", "measure"]

Bag = npt.NDArray[np.float32]

_DIM = 64
_N_DIRECTIONS = 16
_DEVIATIONS = (1 + np.arange(_DIM)) ** -0.5
_STEP = 4.0  # standard deviations of a patient's tiles along the direction
_SHIFT = 0.5
_N_NEW = 200
_FOUND = 0.7
_HEADS = (
    "mean", "lse", "max", "attention", "gated", "additive", "clam", "dsmil", "tokens", "transmil",
)  # fmt: skip
_REGRESSION, _ORACLE = "mean + logistic", "direction known"


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Patients to learn from, new ones, and how the signal lies in them."""

    bags: tuple[Bag, ...]
    """To learn from, each of shape (tiles, dim); every second one has the signal."""
    new: tuple[Bag, ...]
    """To be judged; likewise."""
    projection: npt.NDArray[np.float64]
    """What shows the move best, shape (dim,): a patient's tiles have standard deviation 1 in it."""
    share: float
    """Share of a bag's tiles that are moved."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What some runs came to."""

    share: float
    """Share of tiles with the signal."""
    head: str
    """Kind of head, or what stands beside them."""
    n_patients: int
    """To learn from."""
    n_runs: int
    """Cohorts, each with a training of its own."""
    auroc: float
    """Mean over the runs."""
    low: float
    """Lower limit of the 95 % interval of that mean."""
    high: float
    """Upper limit."""


def generate(*, n_patients: int, share: float, n_new: int = _N_NEW, seed: int = 0) -> World:
    """Bags of 80 to 120 tiles; each bag with the signal has one moved tile at least."""
    rng = np.random.default_rng((seed, n_patients, round(1000 * share)))
    direction = np.zeros(_DIM)
    direction[:_N_DIRECTIONS] = rng.normal(size=_N_DIRECTIONS)
    direction /= np.linalg.norm(direction)

    def bag(label: int) -> Bag:
        tiles = rng.normal(size=(int(rng.integers(80, 121)), _DIM)) + _SHIFT * rng.normal(size=_DIM)
        if label:
            tiles[: max(1, round(share * len(tiles)))] += _STEP * direction
        return np.asarray(rng.permutation(tiles) * _DEVIATIONS, np.float32)

    return World(
        bags=tuple(bag(number % 2) for number in range(n_patients)),
        new=tuple(bag(number % 2) for number in range(n_new)),
        projection=direction / _DEVIATIONS,
        share=share,
    )


def measure(
    *, shares: Sequence[float], heads: Sequence[str], sizes: Sequence[int], n_runs: int
) -> list[Cell]:
    """AUROC on new patients of every head, and of what stands beside them, in each situation."""
    cells = []
    for share in shares:
        for n_patients in sizes:
            result: dict[str, list[float]] = {}
            for run in range(n_runs):
                world = generate(n_patients=n_patients, share=share, seed=run)
                truth = np.arange(len(world.new)) % 2
                for name in (*heads, _REGRESSION, _ORACLE):
                    score = _judge(world, name, seed=run)
                    result.setdefault(name, []).append(float(roc_auc_score(truth, score)))
            cells += [
                _summarise(values, share=share, head=name, n_patients=n_patients)
                for name, values in result.items()
            ]
    return cells


def draw_cells(path: Path, cells: Sequence[Cell]) -> None:
    """One panel a share: heads by cohort sizes, mean AUROC and half its interval in each cell.

    Lightness alone tells the colours apart; what surely exceeds 0.7 is bold.
    """
    shares = sorted({cell.share for cell in cells})
    sizes = sorted({cell.n_patients for cell in cells})
    names = list(dict.fromkeys(cell.head for cell in cells))
    figure = Figure(figsize=(10.5, 0.9 + 0.4 * len(names)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(shares), sharey=True))
    for panel, share in zip(panels, shares, strict=True):
        of = {(cell.head, cell.n_patients): cell for cell in cells if cell.share == share}
        values = np.array([[of[name, size].auroc for size in sizes] for name in names])
        image = panel.imshow(values, cmap="cividis", vmin=0.5, vmax=1, aspect="auto")
        for row, name in enumerate(names):
            for column, size in enumerate(sizes):
                cell = of[name, size]
                panel.text(
                    column, row, f"{cell.auroc:.2f}\n± {(cell.high - cell.low) / 2:.2f}",
                    ha="center", va="center", fontsize=7.5, linespacing=0.95,
                    color="black" if cell.auroc > 0.75 else "white",
                    weight="bold" if cell.low > _FOUND else "normal",
                )  # fmt: skip
        panel.set_title(f"{100 * share:g} % of tiles carry the signal", fontsize=9.5)
        panel.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        panel.set_yticks(range(len(names)), names)
        panel.set_xlabel("patients to learn from")
        panel.tick_params(length=0)
    figure.colorbar(image, ax=panels, shrink=0.9, label="AUROC on new patients")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and draw where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shares", default="0.01,0.05,0.2")
    parser.add_argument("--heads", default=",".join(_HEADS))
    parser.add_argument("--sizes", default="30,60,120,240")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--figure", type=Path, help="PNG")
    asked = parser.parse_args(arguments)
    started = time.process_time()
    cells = measure(
        shares=[float(share) for share in asked.shares.split(",")],
        heads=asked.heads.split(","),
        sizes=[int(size) for size in asked.sizes.split(",")],
        n_runs=asked.runs,
    )
    if asked.figure:
        draw_cells(asked.figure, cells)
    result = {"cells": [asdict(c) for c in cells], "seconds": time.process_time() - started}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def _judge(world: World, name: str, *, seed: int) -> npt.NDArray[np.float64]:
    """Scores of the new patients, higher for the signal, shape (patients,)."""
    if name == _ORACLE:
        return np.array([_log_likelihood_ratio(bag, world) for bag in world.new])
    if name == _REGRESSION:
        return _score_by_means(world)
    names = [f"{number:04d}" for number in range(len(world.bags))]
    labels = {name: number % 2 for number, name in enumerate(names)}
    bags = PatientBags(
        features=dict(zip(names, world.bags, strict=True)),
        fingerprint=replace(FINGERPRINT, dim=_DIM),
        slides=(),
    )
    ensemble = train_ensemble(
        bags, labels, n_classes=2, config=_settings(name, labels), seed=(seed,)
    )
    logits = [predict_members(ensemble.heads, bag)[0].mean(axis=0) for bag in world.new]
    return np.array([logit[1] - logit[0] for logit in logits])


def _settings(head: str, labels: Mapping[str, int]) -> TrainConfig:
    """The defaults with a single head, and what the number of patients decides."""
    patients = tuple(
        Patient(patient_id=name, slide_ids=(), label=str(label), center_id=None)
        for name, label in labels.items()
    )
    cohort = Cohort(path=Path("generated.csv"), patients=patients, classes=("0", "1"))
    everyone = Fold(repeat=0, index=0, train_ids=cohort.patient_ids, test_ids=())
    return resolve_components(TrainConfig(head=head, n_members=1), [everyone])


def _score_by_means(world: World) -> npt.NDArray[np.float64]:
    means, new = (np.array([bag.mean(axis=0) for bag in some]) for some in (world.bags, world.new))
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    regression.fit(means, np.arange(len(means)) % 2)
    return np.asarray(regression.decision_function(new), np.float64)


def _log_likelihood_ratio(bag: Bag, world: World) -> float:
    """That tiles are a mixture with moved ones, each tile taken by itself."""
    variance = 1 + _SHIFT**2
    along = bag.astype(np.float64) @ world.projection
    ratio = np.exp((_STEP * along - _STEP**2 / 2) / variance)
    return float(np.log1p(world.share * (ratio - 1)).sum())


def _summarise(values: Sequence[float], *, share: float, head: str, n_patients: int) -> Cell:
    mean, n_runs = float(np.mean(values)), len(values)
    half = 0.0
    if n_runs > 1:
        half = float(student.ppf(0.975, n_runs - 1) * np.std(values, ddof=1) / n_runs**0.5)
    return Cell(
        share=share, head=head, n_patients=n_patients, n_runs=n_runs,
        auroc=round(mean, 4), low=round(mean - half, 4), high=round(mean + half, 4),
    )  # fmt: skip


if __name__ == "__main__":
    main()
