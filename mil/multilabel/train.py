"""A run of several labels: one ordinary run a label, on the same folds of patients."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import OutputError
from features.utils.files import make_folder
from features.utils.tables import write_table
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.instance_labels import InstanceLabels
from mil.data.splits import Fold, SplitBy
from mil.errors import RunError
from mil.evaluation.metrics import Interval
from mil.inference.bundle import ModelBundle, load_bundle, write_json
from mil.multilabel.checkpoints import LabelCheckpoints
from mil.multilabel.metrics import shift_labels, weighted_label_loss
from mil.multilabel.page import write_label_page
from mil.multilabel.splits import label_folds
from mil.multilabel.table import LabelTable
from mil.reporting.run_report.data import read_report_data
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.fold_jobs import ExecutorFactory, local_fold_executor
from mil.training_run import TrainingSummary, train_run

__all__ = [
    "LabelSummary",
    "MultiLabelBundle",
    "is_multilabel_bundle",
    "load_multilabel_bundle",
    "train_labels",
]

_FORMAT = "mil-label-run"
_FORMAT_VERSION = 1  # that is written; newer ones are refused
_FILE = "labels.json"
_FOLDER = "labels"
_FINISHED = "finished"
_N_RESAMPLES = 1000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelSummary:
    """What a training on several labels came to."""

    path: Path
    """Folder of the run."""
    losses: Mapping[str, Interval]
    """Weighted log loss of all labels at the cohort's shares, in nats: ``calibrated``, out-of-fold,
    the mean over repeats, and ``cohort prior``, of the shares themselves."""
    labels: Mapping[str, TrainingSummary]
    """What each label came to."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "run": str(self.path),
            "weighted_label_loss": {kind: loss.as_dict() for kind, loss in self.losses.items()},
            "labels": {name: found.as_dict() for name, found in self.labels.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLabelBundle:
    """The runs of several labels; all were trained on the same patients and bags."""

    path: Path
    """Their folder."""
    runs: Mapping[str, ModelBundle]
    """Run of each label, in the order of the labels; its second class is the label."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self.runs)

    @property
    def shares(self) -> Floats:
        """Share of the training cohort that has each label, shape (labels,)."""
        counts = [run.cohort_counts for run in self.runs.values()]
        return np.array([count[1] / sum(count) for count in counts], np.float64)


def _say_nothing(_label: str, _what: str) -> None:
    """For callers without an eye on it."""


def train_labels(
    table: LabelTable,
    bags: PatientBags,
    run_dir: Path,
    *,
    n_folds: int,
    n_repeats: int,
    seed: int,
    config: TrainConfig,
    calibrator: str = "platt",
    on_head: Callable[[str, int, int], None],
    on_step: Callable[[str, str], None] = _say_nothing,
    by: SplitBy = "patient",
    nested: bool = False,
    executor: ExecutorFactory = local_fold_executor,
    failures: Mapping[str, str] | None = None,
    image_labels: Mapping[str, InstanceLabels] | None = None,
) -> LabelSummary:
    """Train, calibrate and write one run a label, with the same folds for all.

    Each label has heads of its own, whose two logits make a sigmoid, and a calibrator of its own:
    probabilities of different labels need not sum to 1, and each has its own report. Folds are
    stratified over all labels at once. The folder appears whole when all is done; the same call
    after a kill goes on at the label it was in, and there at the fold.

    Parameters
    ----------
    table
        Patients and labels.
    bags
        Their bags.
    run_dir
        Folder of the run.
    n_folds, n_repeats, seed, config, calibrator, by, nested, executor, failures
        As for :func:`mil.training_run.train_run`.
    on_head
        Called with the label, heads done, and heads in all.
    on_step
        Called with the label and what begins when all its heads are done.
    image_labels
        By label, labels of single images, which teach the attention besides.

    Raises
    ------
    SplitError
        If a label has too few patients with tiles.
    CalibrationError
        As :func:`mil.training_run.train_run`.
    OutputError
        If the folder cannot be written.
    """
    usable = table.subset(bags.nonempty())
    folds = None
    if by == "patient":
        folds = label_folds(
            usable, n_folds=n_folds, n_repeats=n_repeats, seed=seed, linked=bags.linked_patients()
        )
    beside = make_folder(run_dir.with_name(f".{run_dir.name}.labels"))
    finished = LabelCheckpoints(beside / _FINISHED)
    options: dict[str, Any] = {
        "n_folds": n_folds, "n_repeats": n_repeats, "seed": seed, "config": config,
        "calibrator": calibrator, "by": by, "nested": nested, "failures": failures,
    }  # fmt: skip
    found = {}
    for name in table.names:

        def one_more(done: int, total: int, *, label: str = name) -> None:
            on_head(label, done, total)

        def one_step(what: str, *, label: str = name) -> None:
            on_step(label, what)

        cohort, place = table.cohort_of(name), make_folder(beside / _FOLDER) / name
        taught = bags.with_instance_labels(image_labels[name]) if image_labels else bags
        decided_by = _hash_of(cohort, taught, folds or (), options)
        done = finished.read(name, place, decided_by=decided_by)
        if done is None:
            done = train_run(
                cohort, taught, place, folds=folds, executor=executor, on_head=one_more,
                on_step=one_step, **options,
            )  # fmt: skip
            finished.note(name, done, decided_by=decided_by)
        found[name] = done
    _drop_others(beside / _FOLDER, table.names)
    summary = _summarise(usable, beside, run_dir, found, seed=seed)
    write_label_page(beside / "report.html", run_dir.name, found, usable, summary.losses)
    write_json(
        beside / _FILE,
        {
            "format": _FORMAT, "format_version": _FORMAT_VERSION, "labels": list(table.names),
            "scores": summary.as_dict() | {"run": run_dir.name},
        },
    )  # fmt: skip
    finished.discard()
    _move(beside, run_dir)
    return summary


def is_multilabel_bundle(path: Path) -> bool:
    """Whether a folder is a finished run of several labels."""
    return (path / _FILE).is_file()


def load_multilabel_bundle(path: Path) -> MultiLabelBundle:
    """Read the runs of all labels.

    Raises
    ------
    RunError
        If one of them is missing or damaged, or a later version wrote them.
    """
    try:
        described = json.loads((path / _FILE).read_text(encoding="utf-8"))
        version, names = int(described["format_version"]), list(map(str, described["labels"]))
    except (OSError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise RunError(
            path / _FILE, actual=f"cannot be read ({type(error).__name__})",
            expected="as 'mil train --labels' wrote it", hint="Train again.",
        ) from error  # fmt: skip
    if described.get("format") != _FORMAT or version > _FORMAT_VERSION:
        raise RunError(
            path / _FILE, actual=f"{described.get('format')!r} version {version}",
            expected=f"{_FORMAT!r}, at most version {_FORMAT_VERSION}",
        )  # fmt: skip
    if any("/" in name or name.startswith(".") for name in names):
        raise RunError(path / _FILE, actual=f"labels {names}", expected="names of folders")
    return MultiLabelBundle(
        path=path, runs={name: load_bundle(path / _FOLDER / name) for name in names}
    )


def _hash_of(
    cohort: Cohort, bags: PatientBags, folds: Sequence[Fold], options: Mapping[str, Any]
) -> str:
    """A hash of all that decides the run of a label."""
    everyone = Fold(repeat=0, index=0, train_ids=bags.nonempty(), test_ids=())
    parts = (everyone, *folds)
    names = Checkpoints(cohort.path, bags).keys(
        parts,
        dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True)),
        n_classes=len(cohort.classes),
        config=options["config"],
        seeds=[(options["seed"], part.repeat, part.index) for part in parts],
    )
    about = {name: value for name, value in options.items() if name != "config"}
    patients = [(p.patient_id, p.slide_ids, p.label, p.center_id) for p in cohort.patients]
    told = json.dumps([names, patients, bags.missing_slides, about], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _drop_others(folder: Path, names: Sequence[str]) -> None:
    """Drop what an earlier training on other labels left."""
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def _summarise(
    table: LabelTable,
    beside: Path,
    run_dir: Path,
    found: Mapping[str, TrainingSummary],
    *,
    seed: int,
) -> LabelSummary:
    """All labels in one number, and the table of what was said of every patient."""
    columns = []
    for name in table.names:
        folder = beside / _FOLDER / name
        evidence = read_report_data(folder, classes=table.cohort_of(name).classes)
        places = {patient: place for place, patient in enumerate(evidence.patient_ids)}
        order = [places[patient] for patient in table.patients.patient_ids]
        columns.append(evidence.proba["calibrated"][:, order, 1])
    balanced = np.stack(columns, axis=-1)  # (repeats, patients, labels)
    shares = table.truth.mean(axis=0)
    proba = shift_labels(balanced, old=np.full(len(shares), 0.5), new=shares)
    # The first repeat averages as many heads as are deployed; a mean over repeats, more.
    _write_out_of_fold(beside / "out_of_fold.csv", table, proba[0])
    kinds = {"calibrated": proba, "cohort prior": np.broadcast_to(shares, proba.shape)}
    losses = {
        kind: weighted_label_loss(
            values, table.truth, names=table.names, n_resamples=_N_RESAMPLES, seed=seed
        )
        for kind, values in kinds.items()
    }
    # They lie beside until all is done; what is told is where they will be found.
    labels = {name: replace(each, path=run_dir / _FOLDER / name) for name, each in found.items()}
    return LabelSummary(path=run_dir, losses=losses, labels=labels)


def _write_out_of_fold(path: Path, table: LabelTable, proba: Floats) -> None:
    rows = pd.DataFrame(proba, columns=list(table.names))
    rows.insert(0, "patient_id", list(table.patients.patient_ids))
    write_table(path, rows)


def _move(beside: Path, run_dir: Path) -> None:
    try:
        if run_dir.exists():
            shutil.rmtree(run_dir)
        beside.rename(run_dir)
    except OSError as error:
        raise OutputError(
            run_dir, actual=f"cannot be replaced ({error.strerror or error})"
        ) from error  # fmt: skip
