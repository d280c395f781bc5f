"""Prediction sets of a bundle: the learners of every fold and their nonconformity scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import load_file, save
from torch import Tensor

from features.utils.files import atomic_write
from mil.arrays import Bools, Floats
from mil.base_learners import STACK, head_kind
from mil.base_learners.covariates import CovariateModel, with_covariate_logits
from mil.base_learners.learners import BaseLearners
from mil.base_learners.stack import predict_learners
from mil.base_learners.storage import base_learners_from_tensors, base_learners_to_tensors
from mil.calibration import Calibrator, calibrator_from_dict, clipped_log
from mil.data.features import Features
from mil.heads import Head
from mil.heads.storage import heads_from_state_dict, heads_to_state_dict
from mil.inference.conformal import CrossConformal
from mil.training.cross_validation import OutOfFoldPredictions

__all__ = ["HeldOut", "PredictionSets", "fit_sets", "read_sets", "write_sets"]

_HEADS, _BASE = "fold_heads.safetensors", "fold_base_learners.safetensors"
_CONFORMAL = "sets.json"


class HeldOut(NamedTuple):
    """Fold that held a patient out, and the logits by that fold's learners, shape (classes,)."""

    fold: int
    logits: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionSets:
    """Prediction sets of new patients, by the ensembles of each fold of one cross-validation.

    ``conformal`` holds nonconformity scores, shape (patients,), of those that each fold held out.
    Sets of a stack have ``base_learners`` and a calibrator per fold, which were all fitted on
    patients of other folds; ``weights_are_nested`` is whether the logits that the calibrators were
    fitted on are, too, of heads trained without the fold's patients. With covariates there is a
    model of them per fold in ``covariates``. ``held_out`` has the patients whose scores
    ``conformal`` holds, by id, from which runs are combined; it is empty in earlier runs.
    """

    heads: tuple[tuple[Head, ...], ...]
    conformal: CrossConformal
    base_learners: tuple[BaseLearners, ...] = ()
    calibrators: tuple[Calibrator, ...] = ()
    weights_are_nested: bool = True
    covariates: tuple[CovariateModel, ...] = ()
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)

    def predict_set(self, fold_logits: Floats, *, coverage: float) -> Bools:
        """Return which classes cannot be ruled out, shape (classes,).

        ``fold_logits`` are of :meth:`fold_logits`; ``coverage`` is above 0 and below 1.
        """
        return np.asarray(self.conformal.sets(fold_logits[:, None], coverage=coverage)[0])

    def fold_logits(self, tiles: Features, *, covariates: Sequence[str] = ()) -> Floats:
        """Return the logits that sets compare, by fold, shape (folds, classes).

        ``tiles`` are embeddings, shape (tiles, dim), at least one, ``covariates`` the patient's
        cells; of a stack they are log probabilities.
        """
        of_base = self.base_learners or (None,) * len(self.heads)
        logits = [
            predict_learners(heads, own, tiles)[0].mean(axis=0)
            for heads, own in zip(self.heads, of_base, strict=True)
        ]
        if self.covariates:
            logits = [
                with_covariate_logits(own, model.logits([covariates])[0])
                for own, model in zip(logits, self.covariates, strict=True)
            ]
        if self.calibrators:
            logits = [
                _calibrated_logits(calibrator, own[None])[0]
                for calibrator, own in zip(self.calibrators, logits, strict=True)
            ]
        return np.stack(logits)


def fit_sets(
    oof: OutOfFoldPredictions,
    calibrators: Mapping[int, Calibrator] | None = None,
    *,
    are_nested: bool = False,
) -> PredictionSets:
    """Return prediction sets from the first cross-validation and its heads.

    See :mod:`mil.inference.conformal`: the guarantee holds for a single cross-validation. They use
    its raw logits, shape (patients, classes), and no calibrator. A stack needs ``calibrators`` by
    fold, each fitted on patients of other folds, ``are_nested`` if on nested logits.
    """
    n_folds = 1 + int(oof.fold[0].max())
    logits = oof.logits[0]
    if calibrators is not None:
        logits = np.empty(oof.proba_shape[1:])
        for fold in range(n_folds):
            held_out = oof.fold[0] == fold
            logits[held_out] = _calibrated_logits(calibrators[fold], oof.logits[0, held_out])
    return PredictionSets(
        heads=tuple(oof.heads[0, index] for index in range(n_folds)),
        conformal=CrossConformal.fit(logits, oof.labels, oof.fold[0]),
        base_learners=tuple(oof.base_learners[0, index] for index in range(n_folds))
        if oof.base_learners
        else (),
        calibrators=()
        if calibrators is None
        else tuple(calibrators[index] for index in range(n_folds)),
        weights_are_nested=calibrators is None or are_nested,
        covariates=tuple(oof.covariates[0, index] for index in range(n_folds))
        if oof.covariates
        else (),
        held_out={
            name: HeldOut(int(fold), own)
            for name, fold, own in zip(oof.patient_ids, oof.fold[0], logits, strict=True)
        },
    )


def write_sets(folder: Path, sets: PredictionSets, *, classes: Sequence[str]) -> None:
    """Write ``fold_heads.safetensors`` and ``sets.json`` into the folder of a run.

    The second holds scores, shape (patients,), by class and fold, and of a stack the calibrators.
    Base learners are in ``fold_base_learners.safetensors``.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    _write_tensors(folder / _HEADS, [heads_to_state_dict(heads) for heads in sets.heads])
    described: dict[str, object] = {
        "method": "cross-conformal (CV+), by class",
        "strangeness": sets.conformal.as_dict(classes),
    }
    if sets.base_learners:
        _write_tensors(folder / _BASE, [base_learners_to_tensors(b) for b in sets.base_learners])
    if sets.calibrators:
        described["calibrators"] = [calibrator.as_dict() for calibrator in sets.calibrators]
        described["weights_are_nested"] = sets.weights_are_nested
    if sets.covariates:
        described["covariates"] = [model.as_dict() for model in sets.covariates]
    if sets.held_out:
        described["held_out"] = {
            name: [fold, *logits.tolist()] for name, (fold, logits) in sets.held_out.items()
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
    n_folds, n_classes = len(conformal.scores), len(classes)
    ensembles = tuple(
        heads_from_state_dict(own, name=head_kind(head), n_heads=n_heads, n_classes=n_classes)
        for own in _read_tensors(folder / _HEADS, n_folds)
    )
    held_out = {
        name: HeldOut(int(fold), np.array(logits, np.float64))
        for name, (fold, *logits) in described.get("held_out", {}).items()
    }
    if any(not 0 <= fold < n_folds or len(own) != n_classes for fold, own in held_out.values()):
        raise ValueError("held-out patients of other folds or classes")
    if head != STACK:
        return PredictionSets(heads=ensembles, conformal=conformal, held_out=held_out)
    calibrators = tuple(calibrator_from_dict(values) for values in described["calibrators"])
    covariates = tuple(
        CovariateModel.from_dict(values, n_classes=n_classes)
        for values in described.get("covariates", ())
    )
    if len(calibrators) != n_folds or len(covariates) not in {0, n_folds}:
        raise ValueError(f"{len(calibrators)} calibrators of {n_folds} folds")
    of_base = []
    for heads, own in zip(ensembles, _read_tensors(folder / _BASE, n_folds), strict=True):
        dim, n_components = heads[0].whitening.matrix.shape
        of_base.append(
            base_learners_from_tensors(own, dim=dim, n_components=n_components, n_classes=n_classes)
        )
    return PredictionSets(
        heads=ensembles,
        conformal=conformal,
        base_learners=tuple(of_base),
        calibrators=calibrators,
        weights_are_nested=described["weights_are_nested"] is True,
        covariates=covariates,
        held_out=held_out,
    )


def _calibrated_logits(calibrator: Calibrator, logits: Floats) -> Floats:
    """Return log probabilities, shape (n, classes), from logits (n, learners, classes)."""
    return clipped_log(calibrator.predict_proba(logits))


def _write_tensors(path: Path, of_folds: Sequence[Mapping[str, Tensor]]) -> None:
    tensors = {
        f"{fold}.{name}": value for fold, own in enumerate(of_folds) for name, value in own.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors))


def _read_tensors(path: Path, n_folds: int) -> list[dict[str, Tensor]]:
    tensors = load_file(path)
    starts = [f"{fold}." for fold in range(n_folds)]
    return [
        {name.removeprefix(start): v for name, v in tensors.items() if name.startswith(start)}
        for start in starts
    ]
