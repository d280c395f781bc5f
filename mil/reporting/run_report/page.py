"""``report.html``: what a person looks at to decide whether a run is any good."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.utils.files import atomic_write
from mil.calibration.priors import balanced, shift_prior
from mil.errors import RunError
from mil.evaluation.baselines import SHORTCUT
from mil.evaluation.metrics import Interval, auroc
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.conformal import COVERAGE, min_calibration_size
from mil.reporting.html import folder_name, render
from mil.reporting.run_report import figures, tables
from mil.reporting.run_report.calibration import measure_reliability
from mil.reporting.run_report.data import ReportData, read_report_data
from mil.reporting.run_report.subgroups import score_centres, score_folds, score_repeats

__all__ = ["write_report"]

_METRICS = ("weighted_log_loss", "auroc")
_N_WORST = 20
_LEAST_PROBABILITY = 1e-15


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """``scores.json``."""

    kind: str
    of_kinds: Mapping[str, Mapping[str, Interval]]
    gains: Mapping[str, Mapping[str, Interval]]


def write_report(
    folder: Path, *, name: str | None = None, explanations: Path | None = None
) -> Path:
    """Write ``report.html`` from the files of a run; the same files give the same bytes.

    Parameters
    ----------
    folder
        The run.
    name
        What the page calls it; the folder's name by default.
    explanations
        Folder written by ``mil explain``: patients with a page there are linked to it.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    RunError
        If a file of the run is absent or damaged.
    OutputError
        If the page cannot be written.
    """
    run = load_bundle(folder)
    evidence = read_report_data(folder, classes=run.classes)
    scores, history = _read_scores(folder), _read_history(folder)
    seed = int(run.settings["seed"])
    links = _links(folder, explanations, evidence.patient_ids) if explanations else {}
    html = render(
        "report.html",
        name=name or folder.resolve().name,
        run=run,
        evidence=evidence,
        scores=scores,
        headline=scores.of_kinds["calibrated"],
        n_heads=len(run.heads),
        n_repeats=len(evidence.fold),
        findings=tables.findings(scores.gains),
        shares=evidence.shares.tolist(),
        **_pictures(evidence, scores, history, seed=seed),
        **_tables(run, evidence, scores, links, seed=seed),
    )
    page = folder / "report.html"
    with atomic_write(page) as beside:
        beside.write_text(html, encoding="utf-8")
    return page


def _pictures(
    evidence: ReportData, scores: _Scores, history: pd.DataFrame, *, seed: int
) -> dict[str, Any]:
    """Everything the page shows as a figure; one of each kind a class that is shown."""
    n_classes = len(evidence.classes)
    # Of two classes the second tells all: the first's curves are its mirror images.
    shown = [1] if n_classes == 2 else list(range(n_classes))
    first = evidence.first
    at_cohort = {
        kind: shift_prior(first[kind], old=balanced(evidence.classes), new=evidence.shares)
        for kind in ("calibrated", "mean + logistic")
    }
    reliability = {
        kind: measure_reliability(evidence, kind, seed=seed) for kind in ("raw", "calibrated")
    }
    stopped = bool(history["stop_loss"].notna().any())
    curves = {"train_loss": "Loss trained on", "stop_loss": "Loss stopped on"}
    return {
        "score_pictures": [figures.draw_scores(scores.of_kinds, metric) for metric in _METRICS],
        "learning_pictures": [
            figures.draw_learning(history, column, title=title)
            for column, title in curves.items()
            if column == "train_loss" or stopped
        ],
        "roc_pictures": [
            figures.draw_roc(evidence, index, area=_area(first["calibrated"], evidence, index),
                              seed=seed)
            for index in shown
        ],
        "recall_pictures": [
            figures.draw_precision_recall(evidence, index, seed=seed)
            for index in range(n_classes)
        ],
        "confusion_picture": figures.draw_confusion(evidence),
        "reliability_pictures": [
            figures.draw_reliability(evidence, reliability, index) for index in shown
        ],
        "calibration": tables.calibration_table(reliability),
        "distribution_pictures": [figures.draw_distribution(evidence, index) for index in shown],
        "decision_pictures": [
            figures.draw_decision(evidence, index, at_cohort, seed=seed) for index in shown
        ],
    }  # fmt: skip


def _links(folder: Path, explanations: Path, patient_ids: Sequence[str]) -> dict[str, str]:
    """Where the page of each patient lies, as seen from the report."""
    links = {}
    for patient_id in patient_ids:
        page = explanations / folder_name(patient_id) / "index.html"
        if page.is_file():
            way = Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix()
            links[patient_id] = quote(way, safe="/")
    return links


def _tables(
    run: ModelBundle, evidence: ReportData, scores: _Scores, links: Mapping[str, str], *, seed: int
) -> dict[str, Any]:
    """Everything the page shows as a table."""
    classes = evidence.classes
    repeats, folds = score_repeats(evidence), score_folds(evidence)
    centres = score_centres(evidence, seed=seed)
    proba = evidence.mean["calibrated"][np.arange(len(evidence.labels)), evidence.labels]
    losses = -np.log(np.clip(proba, _LEAST_PROBABILITY, 1))
    order = np.argsort(-losses, kind="stable").tolist()
    return {
        "scores_table": tables.scores_table(scores.of_kinds),
        "gains_table": tables.gains_table(scores.gains),
        "group_picture": figures.draw_groups(
            repeats, folds, centres, n_classes=len(classes),
            overall=scores.of_kinds["calibrated"]["weighted_log_loss"],
        ),
        "group_tables": [
            tables.group_table("By repeat", repeats, classes, first="repeat"),
            *(
                tables.group_table(
                    f"By fold, repeat {repeat.name}", of_repeat, classes, first="fold"
                )
                for repeat, of_repeat in zip(repeats, folds, strict=True)
            ),
            *([tables.group_table("By centre", centres, classes, first="centre")] * bool(centres)),
        ],
        "confusion": tables.confusion_table(evidence),
        "sets": tables.sets_table(evidence, run.guaranteed(COVERAGE), coverage=COVERAGE),
        "guarantees": run.guaranteed(COVERAGE) is not None,
        "min_calibration_size": min_calibration_size(COVERAGE),
        "cohort": tables.cohort_table(evidence),
        "incomplete": tables.incomplete_table(evidence),
        "worst": tables.patients_table(
            "Patients by log loss, worst first", evidence, losses, order[:_N_WORST], links
        ),
        "others": tables.patients_table(
            "The other patients by log loss", evidence, losses, order[_N_WORST:], links
        ),
        "facts": [
            tables.facts_table("How its bags were made", asdict(run.fingerprint)),
            tables.facts_table("Calibrator, at equal class shares", run.calibrator.as_dict()),
            tables.facts_table("Settings", run.settings),
            tables.facts_table("Versions", run.versions),
        ],
    }  # fmt: skip


def _area(proba: npt.NDArray[np.float64], evidence: ReportData, index: int) -> float:
    own = proba[:, index]
    return auroc(np.stack([1 - own, own], axis=1), (evidence.labels == index).astype(np.int64))


def _read_scores(folder: Path) -> _Scores:
    path = folder / "scores.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kinds = ["calibrated", "raw", "mean + logistic", "cohort prior", "constant"]
        if found["kind"] == "nested":
            kinds.insert(1, "cross-fitted")
        kinds += [kind for kind in found if kind.startswith(SHORTCUT)]
        return _Scores(
            kind=str(found["kind"]),
            of_kinds={kind: _intervals(found[kind]) for kind in kinds},
            gains={name: _intervals(of) for name, of in found["gains"].items()},
        )
    except (
        ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        raise _damaged(path, error) from error


def _read_history(folder: Path) -> pd.DataFrame:
    path = folder / "history.csv"
    try:
        table = pd.read_csv(path, dtype={"repeat": str, "fold": str}, keep_default_na=False,
                            na_values={"train_loss": [""], "stop_loss": [""]})  # fmt: skip
        return table.astype({"epoch": int, "member": int, "train_loss": float, "stop_loss": float})
    except (OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def _intervals(found: Mapping[str, Any]) -> dict[str, Interval]:
    return {metric: Interval.from_dict(found[metric]) for metric in _METRICS}


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        path,
        actual=f"cannot be read ({' '.join(str(error).split())[:200]})",
        expected="as 'mil train' wrote it",
        hint="Copy the run again, or train again with 'mil train'.",
    )
