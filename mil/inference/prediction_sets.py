"""Prediction sets of a bundle: the heads of every fold and their nonconformity scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save

from features.utils.files import atomic_write
from mil.arrays import Bools
from mil.data.features import Features
from mil.heads import Head
from mil.heads.ensemble import predict_members
from mil.heads.storage import heads_from_state_dict, heads_to_state_dict
from mil.inference.conformal import CrossConformal
from mil.training.cross_validation import OutOfFoldPredictions

__all__ = ["PredictionSets", "fit_sets", "read_sets", "write_sets"]

_HEADS, _CONFORMAL = "fold_heads.safetensors", "sets.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionSets:
    """Prediction sets of new patients, by the ensembles of each fold of one cross-validation.

    ``conformal`` holds nonconformity scores, shape (patients,), of those that each fold held out.
    """

    heads: tuple[tuple[Head, ...], ...]
    conformal: CrossConformal

    def predict_set(self, tiles: Features, *, coverage: float) -> Bools:
        """Return which classes cannot be ruled out, shape (classes,), from tiles (tiles, dim).

        ``coverage`` is above 0 and below 1, and there is at least one tile.
        """
        logits = [predict_members(heads, tiles)[0].mean(axis=0) for heads in self.heads]
        kept = self.conformal.sets(np.stack(logits)[:, None], coverage=coverage)
        return np.asarray(kept[0])


def fit_sets(oof: OutOfFoldPredictions) -> PredictionSets:
    """Return prediction sets from the first cross-validation and its heads.

    See :mod:`mil.inference.conformal`: the guarantee holds for a single cross-validation. They use
    its raw logits, shape (patients, classes), and no calibrator.
    """
    n_folds = 1 + int(oof.fold[0].max())
    return PredictionSets(
        heads=tuple(oof.heads[0, index] for index in range(n_folds)),
        conformal=CrossConformal.fit(oof.logits[0], oof.labels, oof.fold[0]),
    )


def write_sets(folder: Path, sets: PredictionSets, *, classes: Sequence[str]) -> None:
    """Write ``fold_heads.safetensors`` and ``sets.json`` into the folder of a run.

    The second holds scores, shape (patients,), by class and fold.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    tensors = {
        f"{fold}.{name}": value
        for fold, heads in enumerate(sets.heads)
        for name, value in heads_to_state_dict(heads).items()
    }
    with atomic_write(folder / _HEADS) as temporary:
        temporary.write_bytes(save(tensors))
    described = {
        "method": "cross-conformal (CV+), by class",
        "strangeness": sets.conformal.as_dict(classes),
    }
    with atomic_write(folder / _CONFORMAL) as temporary:
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def read_sets(folder: Path, *, classes: Sequence[str], head: str, n_heads: int) -> PredictionSets:
    """Read the files of :func:`write_sets`, with ensembles of ``n_heads`` heads of one kind.

    Raises
    ------
    CalibrationError, OSError, SafetensorError, KeyError, TypeError, ValueError
        If a file is missing or damaged.
    """
    described: Mapping[str, Any] = json.loads((folder / _CONFORMAL).read_text(encoding="utf-8"))
    conformal = CrossConformal.from_dict(described["strangeness"], classes)
    tensors = load_file(folder / _HEADS)
    ensembles = []
    for fold in range(len(conformal.scores)):
        start = f"{fold}."
        own = {name.removeprefix(start): v for name, v in tensors.items() if name.startswith(start)}
        ensembles.append(
            heads_from_state_dict(own, name=head, n_heads=n_heads, n_classes=len(classes))
        )
    return PredictionSets(heads=tuple(ensembles), conformal=conformal)
