"""What ``mil train``, ``mil infer`` and ``mil score`` do where patients have several labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cli.console import notes, print_json, progress_bar, results, step

if TYPE_CHECKING:
    from mil.data import PatientBags
    from mil.inference import PatientPrediction
    from mil.labels.runs import LabelRun, LabelSummary
    from mil.labels.table import LabelTable
    from mil.metrics import Interval

__all__ = ["infer_labels", "read_labels", "score_label_files", "train_labels"]


def read_labels(cohort: Path, labels: str) -> LabelTable:
    """Patients of a table and the labels that an option names."""
    from mil.labels.table import parse_labels, read_label_table

    return read_label_table(cohort, parse_labels(labels))


def train_labels(
    table: LabelTable, bags: PatientBags, run_dir: Path, *, as_json: bool, **options: Any
) -> None:
    """Train one run a label and print what they came to; ``options`` go to ``fit_labels``."""
    from mil.labels.runs import fit_labels

    with progress_bar("heads") as bars:
        tasks = {name: bars.add_task(name, total=None, visible=False) for name in table.names}

        def on_head(label: str, done: int, total: int) -> None:
            bars.update(tasks[label], completed=done, total=total, visible=True)

        summary = fit_labels(table, bags, run_dir, on_head=on_head, **options)
    for note in dict.fromkeys(note for found in summary.labels.values() for note in found.notes):
        notes.print(f"note: {note}", style="yellow", markup=False)
    if as_json:
        print_json(summary.as_dict())
    else:
        _print_training(summary)


def infer_labels(
    run: LabelRun, patients: Path, bags_dir: Path, out: Path, *, prior: str, as_json: bool
) -> list[PatientPrediction]:
    """Write one column a label, and the details beside it; gives what the first label said."""
    from mil.cohort import read_cohort
    from mil.labels.inference import (
        label_prior,
        predict_labels,
        write_label_details,
        write_label_predictions,
    )

    shares = label_prior(prior, run)
    with step("predicting"):
        cohort = read_cohort(patients, labelled=False)
        predictions = predict_labels(run, cohort, bags_dir, prior=shares)
    details = out.with_name(f"{out.stem}.details.csv")
    write_label_predictions(out, predictions)
    write_label_details(details, predictions)
    first = predictions[run.names[0]]
    stated = dict(zip(run.names, map(float, shares), strict=True))
    if as_json:
        print_json({
            "run": str(run.path),
            "out": str(out),
            "details": str(details),
            "labels": list(run.names),
            "n_patients": len(first),
            "status": dict(Counter(p.status for p in first)),
            "n_seen_in_training": sum(bool(p.seen_as) for p in first),
            "prior_asked_for": prior,
            "prior": stated,
        })  # fmt: skip
    else:
        told = ", ".join(f"{name} {share:.3f}" for name, share in stated.items())
        results.print(f"{len(first)} patients into {out} (run {run.path})", markup=False)
        results.print(f"One column a label, for shares of {told} ({prior}).", markup=False)
        results.print(f"Status and spread of each patient: {details}", markup=False)
    return first


def score_label_files(
    files: list[Path], table: LabelTable, *, n_resamples: int, seed: int, as_json: bool
) -> None:
    """Score files with one column a label."""
    from mil.labels.scoring import read_label_predictions, score_labels

    with step("scoring"):
        scored = {
            str(path): score_labels(
                read_label_predictions(path, table), table, n_resamples=n_resamples, seed=seed
            )
            for path in files
        }
    counts = dict(zip(table.names, table.truth.sum(axis=0).tolist(), strict=True))
    if as_json:
        print_json({
            "n_patients": len(table.truth),
            "label_counts": counts,
            "files": [{"name": name, **found.as_dict()} for name, found in scored.items()],
        })  # fmt: skip
        return
    for name, found in scored.items():
        _print_losses(f"{name}, {len(table.truth)} patients", found.losses)
        _print_labels(found.labels, counts)
    results.print(
        "Weighted log loss: mean over labels at the shares of these patients, 'any' twice. Of a "
        "single label it weighs both answers alike, so that a constant has 0.6931. Intervals: "
        "95 %, bootstrap over patients."
    )


def _print_training(summary: LabelSummary) -> None:
    _print_losses("all labels, out-of-fold", summary.losses)
    scores = {name: found.scores["calibrated"] for name, found in summary.labels.items()}
    _print_labels(scores, None)
    results.print(
        f"The run lies in {summary.path}; each label has its own in labels/", markup=False
    )


def _print_losses(title: str, losses: Mapping[str, Interval]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("weighted log loss", justify="right")
    for kind, loss in losses.items():
        table.add_row(kind, str(loss))
    results.print(table)


def _print_labels(
    scores: Mapping[str, Mapping[str, Interval]], counts: Mapping[str, int] | None
) -> None:
    """One row a label: those scores that every label has."""
    shown = [name for name in next(iter(scores.values())) if not name.startswith("calibration_")]
    table = Table(title_justify="left")
    table.add_column("label")
    if counts is not None:
        table.add_column("with it", justify="right")
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    for label, found in scores.items():
        told = [] if counts is None else [f"{counts[label]:,}"]
        table.add_row(label, *told, *(str(found[name]) for name in shown))
    results.print(table)
