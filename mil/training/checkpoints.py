"""Checkpoints of finished folds beside a run in progress, and the lock of a run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from features.errors import CONTENT_ERRORS
from features.parallel.locks import FolderLocks
from features.utils.files import atomic_write, make_folder
from mil.arrays import Floats
from mil.base_learners import STACK, head_kind
from mil.base_learners.storage import base_learners_from_tensors, base_learners_to_tensors
from mil.data.bags import PatientBags
from mil.errors import RunError
from mil.heads.storage import heads_from_state_dict, heads_to_state_dict
from mil.training.fold_jobs import FoldJob, FoldResult
from mil.training.trainer import EpochRecord

__all__ = ["Checkpoints", "run_lock"]

_LOGITS, _AVERAGED, _METADATA, _BASE = "logits", "averaged", "metadata", "base."


class Checkpoints:
    """A folder of fold results, each named after a hash of everything that determines it.

    Bags, tile filter, labels, configuration, seed and the program itself are in the hash, so that a
    result of other inputs is never read. The folder is made with the first result.

    Parameters
    ----------
    folder
        Folder of the results.
    bags
        Bags of all patients, shape (tiles, dim) each.
    """

    def __init__(self, folder: Path, bags: PatientBags) -> None:
        self._folder = folder
        self._contents = _contents(bags)
        self._filter = "" if bags.tile_filter is None else bags.tile_filter.sha256
        self._unlabelled = _contents(bags.unlabelled) if bags.unlabelled else {}

    def keys(self, job: FoldJob) -> list[str]:
        """Return the name of the result of each fold of a job.

        The last bits of a result may depend on the folds that are trained with it, so each name
        does, too. Within an outer fold, a tile filter is fitted again without the outer fold's test
        patients, so the names depend on these as well.
        """
        outside = () if job.outer_fold is None else job.outer_fold.test_ids
        inputs = [
            {
                "code": _code(),
                "train": [(p, self._contents[p], job.labels[p]) for p in fold.train_ids],
                "test": [(p, self._contents[p]) for p in fold.test_ids],
                "outside": [(p, self._contents[p]) for p in outside],
                "unlabelled": list(self._unlabelled.items()),
                "n_classes": job.n_classes,
                "filter": self._filter,
                "config": asdict(job.config),
                "seed": list(seed),
            }
            for fold, seed in zip(job.folds, job.seeds, strict=True)
        ]
        together = json.dumps(inputs, sort_keys=True)
        return [
            hashlib.sha256(f"{number} of {together}".encode()).hexdigest()
            for number in range(len(job.folds))
        ]

    def read(self, key: str, *, head: str, n_classes: int) -> FoldResult | None:
        """Return the result of that name, or None if it is missing or cannot be read.

        ``head`` is the learner, a kind of head or a stack; logits have shape (``n_classes``,) per
        patient, or (learners, ``n_classes``).
        """
        try:
            with safe_open(self._path(key), framework="pt") as file:
                stored = json.loads((file.metadata() or {})[_METADATA])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            logits, averaged = (tensors.pop(name).numpy() for name in (_LOGITS, _AVERAGED))
            of_base = {n: tensors.pop(n) for n in list(tensors) if n.startswith(_BASE)}
            heads = heads_from_state_dict(
                tensors, name=head_kind(head), n_heads=stored["n_heads"], n_classes=n_classes
            )
            dim, n_components = heads[0].whitening.matrix.shape
            return FoldResult(
                logits=dict(zip(stored["patients"], logits, strict=True)),
                averaged=dict(zip(stored["averaged"], averaged, strict=True)),
                heads=heads,
                base_learners=base_learners_from_tensors(
                    {name.removeprefix(_BASE): value for name, value in of_base.items()},
                    dim=dim,
                    n_components=n_components,
                    n_classes=n_classes,
                )
                if head == STACK
                else None,
                history=tuple(
                    EpochRecord(member=member, epoch=epoch, train_loss=train, val_loss=val)
                    for member, epoch, train, val in stored["history"]
                ),
            )
        except (*CONTENT_ERRORS, SafetensorError):
            return None

    def write(self, key: str, result: FoldResult) -> None:
        """Write a result, complete or not at all: logits of shape (classes,) without rounding.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        stored = {
            "patients": list(result.logits),
            "averaged": list(result.averaged),
            "n_heads": len(result.heads),
            "history": [astuple(record) for record in result.history],
        }
        tensors = {
            _LOGITS: _as_table(result.logits),
            _AVERAGED: _as_table(result.averaged),
            **heads_to_state_dict(result.heads),
        }
        if result.base_learners is not None:
            of_base = base_learners_to_tensors(result.base_learners)
            tensors |= {f"{_BASE}{name}": value for name, value in of_base.items()}
        make_folder(self._folder)
        with atomic_write(self._path(key)) as temporary:
            temporary.write_bytes(save(tensors, metadata={_METADATA: json.dumps(stored)}))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def discard(self) -> None:
        """Remove the folder, once the run is complete."""
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Lock a run against other trainings, also on other machines, in a hidden folder beside it.

    The lock of a killed training expires, see :class:`features.parallel.locks.FolderLocks`.

    Raises
    ------
    RunError
        If another training is writing the run.
    OutputError
        If the parent folder cannot be written to.
    """
    with FolderLocks(run_dir.with_name(f".{run_dir.name}.claims")) as locks:
        if not locks.acquire("training"):
            raise RunError(
                run_dir,
                actual="another training is writing it",
                expected="one at a time",
                hint="Wait until it has ended, or name another folder with --run.",
            )
        _remove_unfinished(run_dir)
        yield


def _remove_unfinished(run_dir: Path) -> None:
    """Remove folders that trainings killed while they wrote the run have left beside it."""
    of_run = re.compile(rf"\.{re.escape(run_dir.name)}\.\d+\.part")
    parent = run_dir.parent
    for path in list(parent.iterdir()) if os.access(parent, os.R_OK) else []:
        if not of_run.fullmatch(path.name):
            continue
        # A run named with a dot and a number has checkpoints, tensors only, under such a name.
        if any(file.suffix == ".csv" for file in path.glob("*")):
            shutil.rmtree(path, ignore_errors=True)


def _as_table(logits: Mapping[str, Floats]) -> torch.Tensor:
    """Return the rows as one tensor, shape (patients, classes), float64."""
    return torch.from_numpy(np.array(list(logits.values()), np.float64))


def _contents(bags: PatientBags) -> dict[str, str]:
    """Return a hash of each patient's embeddings, of all their versions, and of image labels.

    Hashes of the slides are used where these are known and no tile was dropped.
    """
    slides: dict[str, list[tuple[str, int]]] = {}
    for record in bags.slides:
        hashes = f"{record.features_sha256} {record.views_sha256}".rstrip()
        slides.setdefault(record.patient_id, []).append((hashes, record.n_tiles))
    contents = {}
    for patient_id, n_tiles in bags.n_tiles.items():
        own = slides.get(patient_id, [])
        if own and sum(n_of_slide for _, n_of_slide in own) == n_tiles:
            contents[patient_id] = " ".join(hashes for hashes, _ in own)
        else:
            tiles = bags.features[patient_id]
            digest = hashlib.sha256(f"{tiles.dtype} {tiles.shape}".encode())
            digest.update(np.ascontiguousarray(tiles).data)
            if bags.views:
                digest.update(np.ascontiguousarray(bags.views[patient_id]).data)
            contents[patient_id] = digest.hexdigest()
        if bags.instance_labels:
            images = hashlib.sha256(bags.instance_labels[patient_id].tobytes()).hexdigest()
            contents[patient_id] += f" images {images}"
    return contents


@cache
def _code() -> str:
    """Return a hash of the sources of this package and of the versions of numpy and torch."""
    digest = hashlib.sha256()
    for name in ("numpy", "torch"):
        digest.update(f"{name} {metadata.version(name)}".encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
