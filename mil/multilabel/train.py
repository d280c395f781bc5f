"""Training on several labels: one ordinary run per label, on the same folds of patients."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.errors import CONTENT_ERRORS, OutputError
from features.utils.files import atomic_write, make_folder
from features.utils.tables import write_table
from mil.arrays import Floats
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
from mil.part_digests import check_digests, damaged_run, hash_file, with_digests
from mil.reporting.run_report.data import read_report_data
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.fold_jobs import ExecutorFactory, FoldJob, local_fold_executor
from mil.training_run import TrainingSummary, train_run

__all__ = [
    "LabelSummary",
    "MultiLabelBundle",
    "is_multilabel_bundle",
    "load_multilabel_bundle",
    "train_labels",
]

_FORMAT = "mil-label-run"
_FORMAT_VERSION = 2  # that is written; newer ones are refused
_FILE = "labels.json"
_FOLDER = "labels"
_FINISHED = "finished"


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelSummary:
    """Summary of a training on several labels.

    ``losses`` are weighted log losses of all labels at the cohort's shares, shape (labels,), in
    nats: ``calibrated`` (out-of-fold, mean over repeats), and ``cohort prior`` (the shares as
    predictions).
    """

    path: Path
    losses: Mapping[str, Interval]
    labels: Mapping[str, TrainingSummary]

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "run": str(self.path),
            "weighted_label_loss": {kind: loss.as_dict() for kind, loss in self.losses.items()},
            "labels": {name: label.as_dict() for name, label in self.labels.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLabelBundle:
    """Bundles of several labels, trained on the same patients and bags.

    Each predicts probabilities of shape (patients, 2), of which the second is of the label.
    ``scores`` are plain values of a :class:`LabelSummary`.
    """

    path: Path
    bundles: Mapping[str, ModelBundle]
    scores: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self.bundles)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of the runs, one per label."""
        return tuple(bundle.path for bundle in self.bundles.values())

    @property
    def shares(self) -> Floats:
        """Share of training patients with each label, shape (labels,)."""
        counts = [bundle.cohort_counts for bundle in self.bundles.values()]
        return np.array([count[1] / sum(count) for count in counts], np.float64)


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
    on_step: Callable[[str, str], None] = lambda _label, _step: None,
    by: SplitBy = "patient",
    nested: bool = False,
    n_resamples: int = 1000,
    executor: ExecutorFactory = local_fold_executor,
    failures: Mapping[str, str] | None = None,
    image_labels: Mapping[str, InstanceLabels] | None = None,
    settings: str = "",
    report: bool | Callable[[Path], object] = True,
) -> LabelSummary:
    """Train, calibrate and write one run per label, with the same folds for all.

    Each label has its own heads, calibrator and report, and its probability is a sigmoid of two
    logits, so those of different labels need not sum to 1. Folds are stratified over all labels,
    truth of shape (patients, labels), at once. The folder appears when the training is complete;
    after a kill, the same call resumes at the interrupted fold of the interrupted label.

    Parameters
    ----------
    table, bags, run_dir
        Patients and labels, their bags, and the folder of the run.
    n_folds, n_repeats, seed, config, calibrator, by, nested, n_resamples, executor, failures
        As for :func:`mil.training_run.train_run`.
    on_head, on_step
        Called with the label, heads done, and heads in all; after its heads, with the label and the
        name of each step.
    image_labels
        Labels of single images by label, which also supervise the attention.
    settings
        Text of ``settings.toml``; empty for no such file.
    report
        Write the report of each label; or a function that writes the reports of all, as for that
        function.

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
    temporary = make_folder(run_dir.with_name(f".{run_dir.name}.labels"))
    finished = LabelCheckpoints(temporary / _FINISHED)
    options: dict[str, Any] = {
        "n_folds": n_folds, "n_repeats": n_repeats, "seed": seed, "config": config,
        "calibrator": calibrator, "by": by, "nested": nested, "failures": failures,
    }  # fmt: skip
    summaries = {}
    for name in table.names:
        cohort, label_dir = table.cohort_of(name), make_folder(temporary / _FOLDER) / name
        label_bags = bags.with_instance_labels(image_labels[name]) if image_labels else bags
        config_hash = _hash_of(cohort, label_bags, folds or (), options)
        summary = finished.read(name, label_dir, config_hash=config_hash)
        if summary is None:
            summary = train_run(
                cohort, label_bags, label_dir, folds=folds, executor=executor,
                on_head=partial(on_head, name), on_step=partial(on_step, name),
                n_resamples=n_resamples, report=report is True, **options,
            )  # fmt: skip
            finished.write(name, summary, config_hash=config_hash)
        summaries[name] = summary
    _remove_others(temporary / _FOLDER, table.names)
    result = _summarize(usable, temporary, run_dir, summaries, n_resamples=n_resamples, seed=seed)
    # Without the folders above it, the run has the same bytes elsewhere.
    scores = _with_path(result, Path(run_dir.name)).as_dict()
    counts = dict(zip(table.names, map(int, usable.truth.sum(axis=0)), strict=True))
    write_label_page(
        temporary / "report.html", run_dir.name, scores, counts, n_patients=len(usable.truth)
    )
    if settings:
        with atomic_write(temporary / "settings.toml") as file:
            file.write_text(settings, encoding="utf-8")
    described = {
        "format": _FORMAT, "format_version": _FORMAT_VERSION, "labels": list(table.names),
        "runs_sha256": {
            name: hash_file(temporary / _FOLDER / name / "model.json") for name in table.names
        },
        "scores": scores,
    }  # fmt: skip
    write_json(temporary / _FILE, with_digests(described, temporary))
    if callable(report):
        report(temporary)
    finished.discard()
    _move(temporary, run_dir)
    return result


def is_multilabel_bundle(path: Path) -> bool:
    """Return whether a folder is a finished run of several labels."""
    return (path / _FILE).is_file()


def load_multilabel_bundle(path: Path) -> MultiLabelBundle:
    """Read the bundles of all labels.

    Raises
    ------
    RunError
        If one of them is missing, damaged, or written by a later version.
    """
    try:
        described = json.loads((path / _FILE).read_text(encoding="utf-8"))
        version, names = int(described["format_version"]), list(map(str, described["labels"]))
        scores = dict(described["scores"])
    except CONTENT_ERRORS as error:
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
    check_digests(path, described)
    bundles = {name: load_bundle(path / _FOLDER / name) for name in names}
    for name, sha256 in described.get("runs_sha256", {}).items():
        if hash_file(path / _FOLDER / name / "model.json") != sha256:
            raise damaged_run(path, f"the run of {name} is another than it was after training")
    return MultiLabelBundle(path=path, bundles=bundles, scores=scores)


def _hash_of(
    cohort: Cohort, bags: PatientBags, folds: Sequence[Fold], options: Mapping[str, Any]
) -> str:
    """Return a hash of everything that determines the run of a label."""
    everyone = Fold(repeat=0, index=0, train_ids=bags.nonempty(), test_ids=())
    parts = (everyone, *folds)
    job = FoldJob(
        folds=parts,
        labels=dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True)),
        n_classes=len(cohort.classes),
        config=options["config"],
        seeds=[(options["seed"], part.repeat, part.index) for part in parts],
    )
    names = Checkpoints(cohort.path, bags).keys(job)
    about = {name: value for name, value in options.items() if name != "config"}
    patients = [
        (p.patient_id, p.slide_ids, p.label, p.center_id, p.covariates) for p in cohort.patients
    ]
    about["covariates"] = [own.name for own in cohort.covariates]
    text = json.dumps([names, patients, bags.missing_slides, about], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _remove_others(folder: Path, names: Sequence[str]) -> None:
    """Remove the runs of an earlier training on other labels."""
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def _summarize(
    table: LabelTable,
    temporary: Path,
    run_dir: Path,
    summaries: Mapping[str, TrainingSummary],
    *,
    n_resamples: int,
    seed: int,
) -> LabelSummary:
    """Return the combined scores of all labels, and write their out-of-fold probabilities."""
    columns = []
    for name in table.names:
        data = read_report_data(temporary / _FOLDER / name, classes=table.cohort_of(name).classes)
        index = {patient: row for row, patient in enumerate(data.patient_ids)}
        order = [index[patient] for patient in table.patients.patient_ids]
        columns.append(data.proba["calibrated"][:, order, 1])
    balanced = np.stack(columns, axis=-1)  # (repeats, patients, labels)
    shares = table.truth.mean(axis=0)
    proba = shift_labels(balanced, old=np.full(len(shares), 0.5), new=shares)
    # One repeat averages as many heads as the deployed run; a mean over repeats averages more.
    _write_out_of_fold(temporary / "out_of_fold.csv", table, proba[0])
    kinds = {"calibrated": proba, "cohort prior": np.broadcast_to(shares, proba.shape)}
    losses = {
        kind: weighted_label_loss(
            values, table.truth, names=table.names, n_resamples=n_resamples, seed=seed
        )
        for kind, values in kinds.items()
    }
    # The runs are still in a temporary folder; the summary names their final one.
    return _with_path(LabelSummary(path=run_dir, losses=losses, labels=summaries), run_dir)


def _with_path(summary: LabelSummary, run_dir: Path) -> LabelSummary:
    labels = {
        name: replace(label, path=run_dir / _FOLDER / name)
        for name, label in summary.labels.items()
    }
    return replace(summary, path=run_dir, labels=labels)


def _write_out_of_fold(path: Path, table: LabelTable, proba: Floats) -> None:
    rows = pd.DataFrame(proba, columns=list(table.names))
    rows.insert(0, "patient_id", list(table.patients.patient_ids))
    write_table(path, rows)


def _move(temporary: Path, run_dir: Path) -> None:
    try:
        if run_dir.exists():
            shutil.rmtree(run_dir)
        temporary.rename(run_dir)
    except OSError as error:
        raise OutputError(
            run_dir, actual=f"cannot be replaced ({error.strerror or error})"
        ) from error  # fmt: skip
