"""Model bundle: the folder of a trained run, without executable code."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from features.bags.bag import Bag, Fingerprint, check_format
from features.errors import CONTENT_ERRORS
from features.filters.classifier import TileFilter, apply_filter, read_filter, write_filter
from features.utils.files import atomic_write
from features.utils.tables import read_table, write_table
from features.utils.text import normalize_name
from mil.arrays import Floats
from mil.base_learners import STACK, head_kind
from mil.base_learners.covariates import COVARIATES, CovariateModel, with_covariate_logits
from mil.base_learners.learners import BaseLearners
from mil.base_learners.stack import predict_learners
from mil.base_learners.storage import base_learners_from_tensors, base_learners_to_tensors
from mil.calibration import Calibrator, calibrator_from_dict
from mil.calibration.priors import parse_prior
from mil.data.copies import SlideIdentity
from mil.errors import RunError
from mil.evaluation.abstention import AbstentionPoint
from mil.evaluation.run_predictions import several_labels_error
from mil.heads import Head, build_head
from mil.heads.storage import load_stored_state, stored_state_dict
from mil.inference.conformal import COVERAGE
from mil.inference.prediction_sets import PredictionSets, read_sets, write_sets
from mil.inference.training_slides import (
    read_training_slides,
    write_training_slides,
)
from mil.part_digests import DAMAGE, check_digests, damaged_run, no_run_error, with_digests
from mil.typicality import TypicalityReference, read_reference, write_reference
from mil.typicality.provenance import Provenance, read_provenance, write_provenance

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "ModelBundle",
    "check_apart",
    "load_bundle",
    "save_bundle",
    "write_json",
]

FORMAT = "mil-run"
FORMAT_VERSION = 8
"""Version of new bundles; later versions are refused. In version 1 logits are not divided."""

_FILTER, _BASE = "filter.safetensors", "base_learners.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelBundle:
    """Trained and calibrated model, with its settings and training patients.

    Attributes
    ----------
    path
        Folder of the run.
    classes
        Classes in the order of the logits.
    fingerprint
        Settings of the bags; bags with other settings are refused.
    head_name
        Kind of the heads, or ``stack``.
    heads
        Heads of the deployed ensemble; its logit is their mean.
    base_learners
        Base learners of a stack beside the heads; None without.
    calibrator, view_calibrator
        Calibrators of the ensemble's logits, and of logits averaged over the views of tiles, to
        probabilities at the balanced prior; without views in training there is only the first.
    cohort_counts
        Patients of each class in the training cohort, shape (classes,).
    training_slides, unlabelled_slides
        Slides of the training cohort, and further ones that the whitening was fitted on.
    out_of_fold
        Cross-fitted (or nested) probabilities of each training patient at the balanced prior, shape
        (classes,), mean over repeats.
    settings, versions
        Training settings and seed, and versions of the software, as plain values.
    sets
        Fold heads and nonconformity scores behind the prediction sets.
    tile_filter
        Filter that drops tiles of the bags, if any.
    abstention
        Confidence below which patients need review; None where none halves the errors.
    covariates
        Model of clinical covariates, the last learner of a stack; None without.
    provenance
        Scanners, resolutions and software of the training slides; None in earlier runs.
    typicality
        Training patients that new ones are compared with; None in runs of earlier versions.
    """

    path: Path
    classes: tuple[str, ...]
    fingerprint: Fingerprint
    head_name: str
    heads: tuple[Head, ...]
    calibrator: Calibrator
    cohort_counts: tuple[int, ...]
    training_slides: tuple[SlideIdentity, ...]
    unlabelled_slides: tuple[SlideIdentity, ...]
    out_of_fold: Mapping[str, Floats]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    sets: PredictionSets
    view_calibrator: Calibrator | None = None
    tile_filter: TileFilter | None = None
    typicality: TypicalityReference | None = None
    base_learners: BaseLearners | None = None
    abstention: AbstentionPoint | None = None
    provenance: Provenance | None = None
    covariates: CovariateModel | None = None

    def add_covariates(self, logits: Floats, cells: Sequence[str]) -> Floats:
        """Return logits (..., learners, classes) with those of a patient's covariates, if any."""
        if self.covariates is None:
            return logits
        return with_covariate_logits(logits, self.covariates.logits([cells])[0])

    @property
    def learner_names(self) -> tuple[str, ...]:
        """Names of the learners in the order of their logits; of a single head its own."""
        of_base = () if self.base_learners is None else tuple(self.base_learners.models)
        of_covariates = () if self.covariates is None else (COVARIATES,)
        return (head_kind(self.head_name), *of_base, *of_covariates)

    def parse_prior(self, text: str) -> Floats:
        """Return the class shares, shape (classes,), that a text names.

        It is read by :func:`mil.calibration.priors.parse_prior`; ``cohort`` is that of training.

        Raises
        ------
        MilError
            If the text is no prior.
        """
        counts = dict(zip(self.classes, self.cohort_counts, strict=True))
        return parse_prior(text, self.classes, counts)

    def guaranteed_coverage(self, coverage: float) -> dict[str, float] | None:
        """Return the guaranteed coverage of each class, see :mod:`mil.inference.conformal`.

        None where nothing is guaranteed: patients of folds by centre are not exchangeable, a filter
        that is refitted in each fold differs from the one for new patients, and the weights of a
        stack that are not nested were fitted on logits of heads that saw the fold's patients.
        """
        if not self.patients_are_exchangeable:
            return None
        return self._by_class(self.sets.conformal.guaranteed_coverage(coverage))

    def coverage_of_most_cohorts(self, coverage: float) -> dict[str, float] | None:
        """Return the coverage of each class to plan with, see :mod:`mil.inference.conformal`.

        None where :meth:`guaranteed_coverage` is.
        """
        if not self.patients_are_exchangeable:
            return None
        return self._by_class(self.sets.conformal.coverage_of_most_cohorts(coverage))

    @property
    def patients_are_exchangeable(self) -> bool:
        """Whether new patients are for the sets as those of the folds, see above."""
        drops_tiles = self.tile_filter is not None and not self.fingerprint.filter_sha256
        by_patient = self.settings["by"] == "patient"
        # Those of a recalibrated run had no part in heads or filter.
        is_local = "recalibration" in self.settings
        return self.sets.weights_are_nested and (is_local or (by_patient and not drops_tiles))

    def _by_class(self, values: Floats) -> dict[str, float]:
        return dict(zip(self.classes, values.tolist(), strict=True))

    def apply_filter(self, bag: Bag) -> Bag:
        """Return the bag without the tiles that the run's filter drops, shape (tiles, dim).

        A filter that was applied when the bags were made has nothing left to drop.
        """
        if self.tile_filter is None or self.fingerprint.filter_sha256:
            return bag
        return apply_filter(self.tile_filter, bag)

    def with_view_calibrator(self) -> ModelBundle:
        """Return the bundle with the calibrator of logits, shape (n, classes), averaged over views.

        Raises
        ------
        RunError
            If the run was trained on bags without views.
        """
        if self.view_calibrator is None:
            raise RunError(
                self.path,
                actual="a run trained on bags without views",
                expected="views to average",
                hint="Leave --tta out, or make bags with 'mil embed --views' and train on them.",
            )
        return replace(self, calibrator=self.view_calibrator)


def save_bundle(bundle: ModelBundle) -> None:
    """Write a bundle to its path; ``model.json`` comes last and marks the run as complete.

    It holds the digests of all tables and tensors that are in the folder by then.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    with atomic_write(bundle.path / "heads.safetensors") as temporary:
        tensors = {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, head in enumerate(bundle.heads)
            for name, value in stored_state_dict(head).items()
        }
        # The writer of safetensors hides the reason of a failed write.
        temporary.write_bytes(save(tensors))
    if bundle.base_learners is not None:
        with atomic_write(bundle.path / _BASE) as temporary:
            temporary.write_bytes(save(base_learners_to_tensors(bundle.base_learners)))
    if bundle.tile_filter is not None:
        write_filter(bundle.path / _FILTER, bundle.tile_filter)
    write_training_slides(bundle.path / "slides.csv", bundle.training_slides)
    if bundle.unlabelled_slides:
        write_training_slides(bundle.path / "unlabelled.csv", bundle.unlabelled_slides)
    rows = [[patient_id, *proba] for patient_id, proba in bundle.out_of_fold.items()]
    table = pd.DataFrame(rows, columns=["patient_id", *bundle.classes])
    write_table(bundle.path / "out_of_fold.csv", table)
    write_sets(bundle.path, bundle.sets, classes=bundle.classes)
    if bundle.typicality is not None:
        write_reference(bundle.path, bundle.typicality)
    if bundle.provenance is not None:
        write_provenance(bundle.path, bundle.provenance)
    write_json(bundle.path / "model.json", with_digests(_describe(bundle), bundle.path))


def check_apart(run_dir: Path, sources: Sequence[Path]) -> None:
    """Raise RunError for a new run in the folder of one that it is made from, or within it."""
    for source in sources:
        if Path(os.path.realpath(run_dir)).is_relative_to(os.path.realpath(source)):
            raise RunError(
                run_dir,
                actual=f"the folder of the run {source}, or one in it",
                expected="a folder of its own, as the run that it is made from stays",
                hint="Name another with --run.",
            )


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write one JSON object atomically.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_bundle(path: str | Path) -> ModelBundle:
    """Read a model bundle; no code in it is executed.

    Raises
    ------
    RunError
        If the folder is not a finished run, is damaged, or was written by a later version.
    """
    path = Path(path)
    _require_plain_files(path)
    described = _read_description(path)
    try:
        check_digests(path, described)
        classes = _read_classes(described["classes"])
        fingerprint = Fingerprint(**described["fingerprint"])
        bundle = ModelBundle(
            path=path,
            classes=classes,
            fingerprint=fingerprint,
            head_name=described["head"],
            heads=_read_heads(path, described, fingerprint.dim),
            base_learners=_read_base_learners(path, described, fingerprint.dim),
            calibrator=calibrator_from_dict(described["calibrator"]),
            cohort_counts=tuple(described["cohort_counts"]),
            training_slides=read_training_slides(path / "slides.csv"),
            unlabelled_slides=read_training_slides(path / "unlabelled.csv")
            if (path / "unlabelled.csv").is_file()
            else (),
            out_of_fold=_read_out_of_fold(path / "out_of_fold.csv", classes),
            settings=described["settings"],
            versions=described["versions"],
            sets=read_sets(
                path, classes=classes, head=described["head"], n_heads=described["n_heads"]
            ),
            tile_filter=_read_filter(path, described.get("filter_sha256")),
            abstention=AbstentionPoint.from_dict(point)
            if (point := described.get("abstention"))
            else None,
            provenance=read_provenance(path),
            covariates=None
            if (of_covariates := described.get("covariates")) is None
            else CovariateModel.from_dict(of_covariates, n_classes=len(classes)),
            typicality=read_reference(path) if described.get("typicality") else None,
            view_calibrator=None
            if (of_views := described.get("view_calibrator")) is None
            else calibrator_from_dict(of_views),
        )
        _check_consistent(bundle)
    except DAMAGE as error:
        raise damaged_run(path, str(error)) from error
    return bundle


def _describe(bundle: ModelBundle) -> dict[str, object]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "classes": bundle.classes,
        "head": bundle.head_name,
        "n_heads": len(bundle.heads),
        "n_components": bundle.heads[0].whitening.matrix.shape[1],
        "fingerprint": asdict(bundle.fingerprint),
        "calibrator": bundle.calibrator.as_dict(),
        "view_calibrator": bundle.view_calibrator and bundle.view_calibrator.as_dict(),
        "calibrated_at_prior": "balanced",
        "filter_sha256": None if bundle.tile_filter is None else bundle.tile_filter.sha256,
        "cohort_counts": bundle.cohort_counts,
        "abstention": bundle.abstention and bundle.abstention.as_dict(),
        "typicality": bundle.typicality and bundle.typicality.describe(),
        **({"covariates": bundle.covariates.as_dict()} if bundle.covariates else {}),
        "settings": dict(bundle.settings),
        "versions": dict(bundle.versions),
    }


def _require_plain_files(path: Path) -> None:
    """Refuse files on which opening would block, such as named pipes."""
    for file in path.glob("*"):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise damaged_run(path, f"{file.name} is no plain file")


def _read_description(path: Path) -> dict[str, Any]:
    file = path / "model.json"
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if (path / "combination.json").is_file():
            raise RunError(
                path,
                actual="a combination of runs",
                expected="a single run",
                hint=f"Name one of those in {shlex.quote(str(path / 'members'))}.",
            ) from error
        if (path / "labels").is_dir():
            raise several_labels_error(path) from error
        raise no_run_error(path) from error
    except CONTENT_ERRORS as error:
        raise damaged_run(path, f"model.json: {error}") from error
    if not isinstance(described, dict):
        described = {}
    check_format(file, described, name=FORMAT, newest=FORMAT_VERSION, error=RunError)
    return described


def _read_classes(names: object) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("classes that are not names")
    if len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(f"classes {names}")
    return tuple(names)


def _check_consistent(bundle: ModelBundle) -> None:
    """Predict a blank tile, shape (1, dim), so that inconsistent parts fail here and not in use.

    Raises
    ------
    AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError
        If parts have different sizes, or a part is incomplete.
    """
    if len(bundle.cohort_counts) != len(bundle.classes) or min(bundle.cohort_counts) < 1:
        raise ValueError(f"{bundle.cohort_counts} patients of classes {bundle.classes}")
    tile = np.zeros((1, bundle.fingerprint.dim), np.float32)
    logits, _ = predict_learners(bundle.heads, bundle.base_learners, tile)
    missing = () if bundle.covariates is None else ("",) * len(bundle.covariates.columns)
    logits = bundle.add_covariates(logits, missing)
    for calibrator in (bundle.calibrator, bundle.view_calibrator or bundle.calibrator):
        proba = calibrator.predict_proba(logits)
        if proba.shape != (len(bundle.heads), len(bundle.classes)) or not np.isfinite(proba).all():
            raise ValueError("a calibrator of another number of classes, or not finite")
    if bool(bundle.sets.covariates) != bool(missing):
        raise ValueError("covariates in the model or the sets alone")
    fold_logits = bundle.sets.fold_logits(tile, covariates=missing)
    bundle.sets.predict_set(fold_logits, coverage=COVERAGE)
    if bundle.typicality is not None:
        bundle.typicality.score(tile)
    int(bundle.settings["seed"])
    bundle.guaranteed_coverage(COVERAGE)


def _read_heads(path: Path, described: Mapping[str, Any], dim: int) -> tuple[Head, ...]:
    try:
        tensors = load_file(path / "heads.safetensors")
    except (OSError, SafetensorError) as error:
        raise damaged_run(path, f"heads.safetensors: {error}") from error
    # The file is checked before memory of the size in the description is allocated.
    shape, expected = tensors["0.whitening.matrix"].shape, (dim, described["n_components"])
    if shape != expected or not all(shape):
        raise damaged_run(path, f"heads.safetensors: whitening of {tuple(shape)}, not {expected}")
    heads = []
    for index in range(described["n_heads"]):
        head = build_head(
            head_kind(described["head"]),
            dim=dim,
            n_components=described["n_components"],
            n_classes=len(described["classes"]),
        )
        state = {
            name.removeprefix(f"{index}."): value
            for name, value in tensors.items()
            if name.startswith(f"{index}.")
        }
        try:
            load_stored_state(head, state)
        except RuntimeError as error:
            raise damaged_run(path, f"heads.safetensors: {error}") from error
        heads.append(head.eval())
    if any(not torch.isfinite(value).all() for value in tensors.values()):
        raise damaged_run(path, "heads.safetensors holds NaN or infinity")
    return tuple(heads)


def _read_base_learners(path: Path, described: Mapping[str, Any], dim: int) -> BaseLearners | None:
    if described["head"] != STACK:
        return None
    return base_learners_from_tensors(
        load_file(path / _BASE), dim=dim, n_components=described["n_components"],
        n_classes=len(described["classes"]),
    )  # fmt: skip


def _read_filter(path: Path, sha256: str | None) -> TileFilter | None:
    if sha256 is None:
        return None
    tile_filter = read_filter(path / _FILTER)
    if tile_filter.sha256 != sha256:
        raise damaged_run(path, f"{_FILTER} is another filter than model.json names")
    return tile_filter


def _read_out_of_fold(path: Path, classes: tuple[str, ...]) -> dict[str, Floats]:
    table = read_table(path)
    values = table[list(classes)].astype(np.float64).to_numpy()
    return dict(zip(table["patient_id"].map(normalize_name), values, strict=True))
