"""What lies beside a run until it is whole: what finished folds said, and who is writing it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from features.parallel.locks import FolderLocks
from features.utils.files import atomic_write, make_folder
from mil.data.bags import PatientBags
from mil.data.splits import Fold
from mil.errors import RunError
from mil.heads import Head
from mil.heads.storage import heads_from_state_dict, heads_to_state_dict
from mil.training.config import TrainConfig
from mil.training.trainer import EpochRecord

__all__ = ["Checkpoints", "FoldResult", "run_lock"]

_LOGITS, _AVERAGED, _SAID = "logits", "averaged", "said"


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldResult:
    """What a fold's ensemble said of the patients it was kept from, and how it learned."""

    logits: Mapping[str, npt.NDArray[np.float64]]
    """By patient id: mean logit of the ensemble, shape (classes,)."""
    heads: tuple[Head, ...]
    """The ensemble."""
    history: tuple[EpochRecord, ...]
    """Learning curves of its heads."""
    averaged: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """As ``logits``, averaged over all looks at the tiles; empty where they have no views."""


class Checkpoints:
    """A folder of judgements, each named after a hash of all that decided it.

    Bags, tile filter, labels, config, seed, and the program itself are in that name: what was
    made otherwise is not found, and nothing has to be told apart.

    Parameters
    ----------
    folder
        Where they lie; made when the first is written.
    bags
        Bags of all patients.
    """

    def __init__(self, folder: Path, bags: PatientBags) -> None:
        self._folder = folder
        self._contents = _contents(bags)
        self._filter = "" if bags.tile_filter is None else bags.tile_filter.sha256
        self._unlabelled = _contents(bags.unlabelled) if bags.unlabelled else {}

    def keys(
        self,
        folds: Sequence[Fold],
        labels: Mapping[str, int],
        *,
        n_classes: int,
        config: TrainConfig,
        seeds: Sequence[Sequence[int]],
        outer_fold: Fold | None = None,
    ) -> list[str]:
        """Names of the judgements of folds that are trained together.

        Parameters
        ----------
        folds
            Patients to learn from and to judge. The last bit of what one learns may depend on the
            others, so their names do, too.
        labels
            Class index by patient id, of at least those to learn from.
        n_classes
            Number of classes.
        settings
            How their ensembles are trained.
        seeds
            Numbers that decide everything random, for each fold.
        outer_fold
            The fold in whose training part all this happens: a tile filter is fitted again without
            the patients that it judges.
        """
        outside = () if outer_fold is None else outer_fold.test_ids
        decided = [
            {
                "code": _code(),
                "learned": [(p, self._contents[p], labels[p]) for p in fold.train_ids],
                "judged": [(p, self._contents[p]) for p in fold.test_ids],
                "outside": [(p, self._contents[p]) for p in outside],
                "unlabelled": list(self._unlabelled.items()),
                "n_classes": n_classes,
                "filter": self._filter,
                "settings": asdict(config),
                "seed": list(seed),
            }
            for fold, seed in zip(folds, seeds, strict=True)
        ]
        together = json.dumps(decided, sort_keys=True)
        return [
            hashlib.sha256(f"{number} of {together}".encode()).hexdigest()
            for number in range(len(folds))
        ]

    def read(self, name: str, *, head: str, n_classes: int) -> FoldResult | None:
        """The judgement of that name; None where there is none, or it cannot be read.

        Parameters
        ----------
        name
            From :meth:`keys`.
        head
            Kind of head.
        n_classes
            Number of classes.
        """
        try:
            with safe_open(self._path(name), framework="pt") as file:
                said = json.loads((file.metadata() or {})[_SAID])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            logits, averaged = (tensors.pop(key).numpy() for key in (_LOGITS, _AVERAGED))
            return FoldResult(
                logits=dict(zip(said["patients"], logits, strict=True)),
                averaged=dict(zip(said["averaged"], averaged, strict=True)),
                heads=heads_from_state_dict(
                    tensors, name=head, n_heads=said["n_heads"], n_classes=n_classes
                ),
                history=tuple(
                    EpochRecord(member=member, epoch=epoch, train_loss=train, val_loss=stop)
                    for member, epoch, train, stop in said["history"]
                ),
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, name: str, judgement: FoldResult) -> None:
        """Keep a judgement, whole or not at all; numbers come back to the last bit.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        said = {
            "patients": list(judgement.logits),
            "averaged": list(judgement.averaged),
            "n_heads": len(judgement.heads),
            "history": [astuple(record) for record in judgement.history],
        }
        tensors = {
            _LOGITS: _rows(judgement.logits),
            _AVERAGED: _rows(judgement.averaged),
            **heads_to_state_dict(judgement.heads),
        }
        make_folder(self._folder)
        with atomic_write(self._path(name)) as beside:
            beside.write_bytes(save(tensors, metadata={_SAID: json.dumps(said)}))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def discard(self) -> None:
        """Remove the folder: the run is whole."""
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Keep other trainings, also those on other machines, from writing a run meanwhile.

    A training that was killed keeps nobody away: see :class:`features.parallel.locks.FolderLocks`.

    Parameters
    ----------
    run_dir
        Folder of the run; the claim lies in a hidden folder beside it.

    Raises
    ------
    RunError
        If another training is at work on it.
    OutputError
        If its parent cannot be written to.
    """
    with FolderLocks(run_dir.with_name(f".{run_dir.name}.claims")) as claims:
        if not claims.acquire("training"):
            raise RunError(
                run_dir,
                actual="another training is writing it",
                expected="one at a time",
                hint="Wait until it has ended, or name another folder with --run.",
            )
        yield


def _rows(logits: Mapping[str, npt.NDArray[np.float64]]) -> torch.Tensor:
    return torch.from_numpy(np.array(list(logits.values()), np.float64))


def _contents(bags: PatientBags) -> dict[str, str]:
    """By patient, a hash of its embeddings, of those of their views, and of labels of its images.

    They come from those of its slides where they are known.
    """
    slides: dict[str, list[tuple[str, int]]] = {}
    for note in bags.slides:
        hashes = f"{note.features_sha256} {note.views_sha256}".rstrip()
        slides.setdefault(note.patient_id, []).append((hashes, note.n_tiles))
    contents = {}
    for patient_id, n_tiles in bags.n_tiles.items():
        noted = slides.get(patient_id, [])
        if noted and sum(n_noted for _, n_noted in noted) == n_tiles:
            contents[patient_id] = " ".join(hashes for hashes, _ in noted)
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
    """A hash of this package's sources and of the versions it stands on."""
    digest = hashlib.sha256()
    for name in ("numpy", "torch"):
        digest.update(f"{name} {metadata.version(name)}".encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
