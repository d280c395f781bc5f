"""Does attention come from what a head has learned? Sanity checks after Adebayo et al. (2018).

Bags are generated: each patient is a slide of 12 × 12 tiles, and the second class has a patch of 14
tiles moved along one direction. Held-out patients of that class are looked at by heads that were
trained, trained again from other starts, never trained (random weights behind the same whitening),
and trained on shuffled labels. Prints one JSON object, by kind of head:

``rank_correlation``
    Spearman's between the map of the trained heads and that of the others, mean over the held-out
    patients; with the lowest and the highest mean of the repeats.
``auroc``
    How well attention alone tells moved tiles from the others, mean over the held-out patients and
    repeats; 0.5 is chance.

    python -m tests.benchmarks.attention_sanity --figure attention-sanity.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from mil.data.bags import PatientBags
from mil.heads import Head, build_head
from mil.heads.ensemble import predict_members
from mil.inference.attention import percentiles
from mil.training.config import TrainConfig
from mil.training.ensemble import train_ensemble
from tests.fakes import FINGERPRINT

__all__ = ["World", "generate", "main", "measure"]

Floats = npt.NDArray[np.float64]
Maps = list[Floats]
"""By held-out patient: attention, shape (tiles,)."""

_SIDE = 12
_PATCH = (slice(3, 5), slice(4, 11))
_STEP = 2.5  # standard deviations of a tile along the direction
_DIM = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Patients to learn from and patients to look at."""

    bags: PatientBags
    """To learn from."""
    labels: dict[str, int]
    """Theirs."""
    held_out: list[npt.NDArray[np.float16]]
    """Patients of the second class, each of shape (144, dim)."""
    planted: npt.NDArray[np.bool_]
    """Shape (144,): the tiles that were moved."""


def generate(*, n_patients: int, n_held_out: int, seed: int = 0) -> World:
    """Bags of which every second one has moved tiles, and as many more as are held out."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=_DIM)
    direction /= np.linalg.norm(direction)
    planted = np.zeros((_SIDE, _SIDE), bool)
    planted[_PATCH] = True

    def bag(label: int) -> npt.NDArray[np.float16]:
        tiles = rng.normal(size=(_SIDE * _SIDE, _DIM))
        tiles[planted.ravel()] += label * _STEP * direction
        return tiles.astype(np.float16)

    labels = {f"{number:04d}": number % 2 for number in range(n_patients)}
    features = {name: bag(label) for name, label in labels.items()}
    return World(
        bags=PatientBags(features=features, fingerprint=replace(FINGERPRINT, dim=_DIM), slides=()),
        labels=labels,
        held_out=[bag(1) for _ in range(n_held_out)],
        planted=planted.ravel(),
    )


def measure(
    world: World, *, head: str, n_repeats: int, settings: TrainConfig
) -> tuple[dict[str, object], dict[str, Maps]]:
    """Rank correlations and AUROCs, and the maps of the first repeat by what the heads learned."""
    settings = replace(settings, head=head)
    first = _train(world, settings, seed=0)
    maps = {"trained": [_look(first, world)], "trained again": [], "random": [], "shuffled": []}
    rng = np.random.default_rng(1)
    for repeat in range(1, n_repeats + 1):
        maps["trained again"].append(_look(_train(world, settings, seed=repeat), world))
        maps["random"].append(_look(_untrained(first, settings, seed=repeat), world))
        shuffled = dict(
            zip(world.labels, rng.permutation(list(world.labels.values())), strict=True)
        )
        other = replace(world, labels={name: int(label) for name, label in shuffled.items()})
        maps["shuffled"].append(_look(_train(other, settings, seed=repeat), world))
    reference = maps["trained"][0]
    result = {
        "rank_correlation": {
            kind: _spread([_agreement(reference, each) for each in some])
            for kind, some in maps.items()
            if kind != "trained"
        },
        "auroc": {
            kind: round(float(np.mean([_auroc(each, world.planted) for each in some])), 3)
            for kind, some in maps.items()
        },
    }
    return result, {kind: some[0] for kind, some in maps.items()}


def _train(world: World, settings: TrainConfig, *, seed: int) -> Sequence[Head]:
    return train_ensemble(
        world.bags, world.labels, n_classes=2, config=settings, seed=(seed,)
    ).heads


def _untrained(trained: Sequence[Head], settings: TrainConfig, *, seed: int) -> Sequence[Head]:
    """Heads with random weights behind the whitening of trained ones."""
    torch.manual_seed(seed)
    n_components = trained[0].whitening.matrix.shape[1]
    heads = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for other in trained:
            head = build_head(settings.head, dim=_DIM, n_components=n_components, n_classes=2)
            head.whitening.load_state_dict(other.whitening.state_dict())
            heads.append(head.eval())
    return heads


def _look(heads: Sequence[Head], world: World) -> Maps:
    return [predict_members(heads, tiles)[1].mean(axis=0) for tiles in world.held_out]


def _agreement(some: Maps, others: Maps) -> float:
    return float(np.mean([spearmanr(a, b).statistic for a, b in zip(some, others, strict=True)]))


def _auroc(maps: Maps, planted: npt.NDArray[np.bool_]) -> float:
    return float(np.mean([roc_auc_score(planted, each) for each in maps]))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        name: round(float(of(values)), 3)
        for name, of in (("mean", np.mean), ("lowest", np.min), ("highest", np.max))
    }


def _draw(path: Path, maps: dict[str, Maps], planted: npt.NDArray[np.bool_]) -> None:
    """The first held-out patient as each kind of heads sees it, as percentiles."""
    figure = Figure(figsize=(8.6, 2.1), layout="constrained")
    axes = figure.subplots(1, 1 + len(maps))
    panels = {"moved tiles": 100.0 * planted} | {
        k: percentiles(some[0]) for k, some in maps.items()
    }
    for panel, (title, values) in zip(axes, panels.items(), strict=True):
        image = panel.imshow(values.reshape(_SIDE, _SIDE), cmap="viridis", vmin=0, vmax=100)
        panel.set_title(title, fontsize=9.5)
        panel.set_xticks([])
        panel.set_yticks([])
    figure.colorbar(image, ax=axes, shrink=0.9, label="percentile")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and draw where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default="gated,additive")
    parser.add_argument("--patients", type=int, default=80)
    parser.add_argument("--held-out", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--figure", type=Path, help="PNG of the maps of the first head")
    asked = parser.parse_args(arguments)
    world = generate(n_patients=asked.patients, n_held_out=asked.held_out)
    results: dict[str, object] = {}
    for head in asked.heads.split(","):
        results[head], maps = measure(
            world, head=head, n_repeats=asked.repeats, settings=TrainConfig(n_components=_DIM)
        )
        if asked.figure and len(results) == 1:
            _draw(asked.figure, maps, world.planted)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
