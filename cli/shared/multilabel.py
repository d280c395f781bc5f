"""Branches of ``mil train``, ``mil infer`` and ``mil score`` for several labels per patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cli.console import print_json, print_next, print_numbers, progress_bar, spinner, stdout, warn
from cli.shared.arguments import path_beside
from cli.shared.output import (
    calibration_as_dict,
    print_calibration_note,
    print_caveats,
    print_comparison,
    print_reliability,
    warn_of_reversed,
)
from cli.shared.runs import report_of
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.bags.bag import BagRef
    from mil.arrays import Floats
    from mil.data.bags import PatientBags
    from mil.data.cohort import Cohort
    from mil.evaluation.classification import ClassScores
    from mil.evaluation.metrics import Interval
    from mil.multilabel.table import LabelTable
    from mil.multilabel.train import LabelSummary, MultiLabelBundle

__all__ = ["infer_labels", "read_labels", "score_label_files", "shares_of", "train_labels"]


def read_labels(cohort: Path, labels: str, columns: Mapping[str, str]) -> LabelTable:
    """Read the patients of a table and the labels that an option names."""
    from mil.multilabel.table import parse_labels, read_label_table

    return read_label_table(cohort, parse_labels(labels), columns=columns)


def train_labels(
    table: LabelTable,
    bags: PatientBags,
    run_dir: Path,
    *,
    bags_dir: Path | str,
    image_labels: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train one run per label and print the scores; ``options`` go to ``train_labels``."""
    from cli.shared.report_tissue import draw_report
    from mil.data.instance_labels import read_instance_labels
    from mil.multilabel.train import train_labels

    if image_labels is not None:
        options["image_labels"] = {
            name: read_instance_labels(image_labels, [name]) for name in table.names
        }
    with progress_bar("heads") as bars:
        tasks = {name: bars.add_task(name, total=None, visible=False) for name in table.names}

        def on_head(label: str, done: int, total: int) -> None:
            bars.update(tasks[label], completed=done, total=total, visible=True)

        def on_step(label: str, what: str) -> None:
            bars.update(tasks[label], description=f"{label}: {what}")

        summary = train_labels(
            table, bags, run_dir, on_head=on_head, on_step=on_step,
            report=partial(draw_report, bags=Path(bags_dir), name=run_dir.name), **options,
        )  # fmt: skip
    for note in dict.fromkeys(note for label in summary.labels.values() for note in label.notes):
        warn(f"note: {note}")
    if as_json:
        print_json(summary.as_dict())
    else:
        _print_training(summary, bags_dir)


def shares_of(run: MultiLabelBundle, stated: str) -> Floats:
    """Return the share of patients with each label that ``--prior`` names, shape (labels,)."""
    from mil.multilabel.table import parse_label_prior

    return parse_label_prior(stated, run.names, cohort=run.shares)


def infer_labels(
    run: MultiLabelBundle,
    cohort: Cohort,
    refs: Mapping[str, BagRef],
    out: Path,
    prior: tuple[str, Floats],
    *,
    typicality: float | None,
    as_json: bool,
) -> bool:
    """Write one column per label, and the details of each patient; print a summary.

    ``prior`` is the text of the option, and its shares as :func:`shares_of` returns them;
    ``typicality`` the largest p-value of patients marked as unlike the training patients. Return
    whether all slides of all patients could be used.
    """
    from mil.inference.output import (
        covariate_caveats,
        describe_typicality,
        missing_bag_caveats,
        patient_caveats,
        typicality_caveats,
    )
    from mil.inference.predict import check_any_used
    from mil.multilabel.predict import predict_labels, write_label_details, write_label_predictions

    stated, shares = prior
    with spinner("predicting"):
        predictions = predict_labels(run, cohort, refs, prior=shares, typicality=typicality)
    check_any_used(predictions[run.names[0]], refs, source=cohort.path)
    details = path_beside(out, ".details.csv")
    write_label_predictions(out, predictions)
    write_label_details(details, predictions)
    first = predictions[run.names[0]]
    of_labels = dict(zip(run.names, map(float, shares), strict=True))
    if as_json:
        print_json({
            "run": str(run.path),
            "out": str(out),
            "details": str(details),
            "labels": list(run.names),
            "n_patients": len(first),
            "status": dict(Counter(p.status for p in first)),
            "n_seen_in_training": sum(bool(p.matched_training_patient) for p in first),
            "prior_asked_for": stated,
            "prior": of_labels,
            "typicality": describe_typicality(first),
        })  # fmt: skip
    else:
        shares_text = ", ".join(f"{name} {share:.3f}" for name, share in of_labels.items())
        stdout.print(f"{pluralize(len(first), 'patients')} into {out} (run {run.path})")
        stdout.print(f"One column per label, for shares of {shares_text} ({stated}).")
        stdout.print(f"Status and spread of each patient: {details}")
    print_caveats((*patient_caveats(first), *typicality_caveats(run.bundles[run.names[0]])))
    print_caveats(missing_bag_caveats(first, refs))
    print_caveats(covariate_caveats(run.bundles[run.names[0]], cohort))
    return all(p.status == "ok" for p in first)


def score_label_files(
    files: list[Path],
    table: LabelTable,
    *,
    patients: Path | None,
    average: Literal["probability", "logit"],
    prior: str,
    file_prior: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Score files with one column per label; ``options`` are those of ``ScoreSettings``."""
    from mil.evaluation.cohort_part import read_part
    from mil.evaluation.metrics import as_two_columns
    from mil.evaluation.scoring import ScoreSettings
    from mil.multilabel.scoring import average_labels, read_label_predictions, score_labels
    from mil.multilabel.table import check_not_constant, parse_label_prior

    n_all = len(table.truth)
    if patients is not None:
        table = table.subset(read_part(patients, table.patients))
        check_not_constant(patients, table)
    shares = table.truth.mean(axis=0)
    of_file, read_at = (
        parse_label_prior(text, table.names, cohort=shares) for text in (file_prior, prior)
    )
    settings = ScoreSettings(
        file_prior=as_two_columns(of_file), prior=as_two_columns(read_at), **options
    )
    with spinner("scoring"):
        tables = {
            str(path): read_label_predictions(path, table, is_part=patients is not None)
            for path in files
        }
        if len(tables) > 1:
            name = f"mean {average} of {len(tables)}"
            tables[name] = average_labels(list(tables.values()), how=average)
        scored = {
            name: score_labels(proba, table, settings, file_prior=of_file, prior=read_at)
            for name, proba in tables.items()
        }
    for path in map(str, files):
        warn_of_reversed({f"{path}, {n}": report for n, report in scored[path].labels.items()})
    counts = dict(zip(table.names, table.truth.sum(axis=0).tolist(), strict=True))
    if as_json:
        print_json({
            "n_patients": len(table.truth),
            "n_patients_left_out": n_all - len(table.truth),
            "label_counts": counts,
            **calibration_as_dict(settings),
            "files": [{"name": name, **scores.as_dict()} for name, scores in scored.items()],
        })  # fmt: skip
        return
    for name, scores in scored.items():
        _print_losses(f"{name}, {pluralize(len(table.truth), 'patients')}", scores.losses)
        for kind in next(iter(scores.labels.values())).scores:
            of_labels = {label: report.scores[kind] for label, report in scores.labels.items()}
            _print_labels(of_labels, counts, kind=kind)
            with_label = {
                label: report.classification[kind].classes[label]
                for label, report in scores.labels.items()
            }
            _print_label_classes(with_label, kind=kind)
        for label, of_label in scores.labels.items():
            for kind, described in of_label.reliability.items():
                print_reliability(f"{name}, {label}", kind, described)
    stdout.print(
        "Weighted log loss: mean over labels at the shares of these patients, 'any' twice. For a "
        "single label, having and not having it weigh the same: a constant has 0.6931. Intervals: "
        "95 %, bootstrap over patients."
    )
    print_calibration_note(settings)
    print_next("open {page}", page=report_of(files[0]) or "RUN/report.html")


def _print_training(summary: LabelSummary, bags_dir: Path | str) -> None:
    _print_losses("all labels, out-of-fold", summary.losses)
    scores = {name: label.scores["calibrated"] for name, label in summary.labels.items()}
    _print_labels(scores, None, kind="calibrated")
    for name, label in summary.labels.items():
        print_comparison(label.comparison, label=name)
    stdout.print(f"The run is in {summary.path}; each label has its own in labels/")
    print_next(
        "open {run}/report.html",
        "mil infer --run {run} --bags {bags} --patients test.csv",
        run=summary.path, bags=bags_dir,
    )  # fmt: skip


def _print_losses(title: str, losses: Mapping[str, Interval]) -> None:
    rows = [[kind, str(loss)] for kind, loss in losses.items()]
    print_numbers(title, ["", "weighted log loss"], rows)


def _print_labels(
    scores: Mapping[str, Mapping[str, Interval]], counts: Mapping[str, int] | None, *, kind: str
) -> None:
    """Print one row per label, with the scores that every label has."""
    shown = [name for name in next(iter(scores.values())) if not name.startswith("calibration_")]
    columns = ["label", *([] if counts is None else ["with it"])]
    rows = []
    for label, of_label in scores.items():
        count = [] if counts is None else [f"{counts[label]:,}"]
        rows.append([label, *count, *(str(of_label[name]) for name in shown)])
    print_numbers(kind, [*columns, *(name.replace("_", " ") for name in shown)], rows)


def _print_label_classes(scores: Mapping[str, ClassScores], *, kind: str) -> None:
    """Print precision, recall and F1 of having each label, where that is the likelier."""
    rows = (
        [label, *(str(one) for _, one in of_label.items())] for label, of_label in scores.items()
    )
    print_numbers(f"{kind}: having the label", ["label", "precision", "recall", "F1"], rows)
