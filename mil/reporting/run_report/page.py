"""The page ``report.html`` of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.errors import CONTENT_ERRORS
from mil.calibration.priors import balanced, shift_prior
from mil.evaluation.baseline_models import BASELINE_MODELS, MEAN_LOGISTIC
from mil.evaluation.baselines import COVARIATES_ALONE, SHORTCUT, SLIDES_ALONE
from mil.evaluation.metrics import Interval
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.conformal import COVERAGE, min_calibration_size
from mil.inference.contributions import learner_weights
from mil.reporting import score_figures
from mil.reporting.html import folder_name, relative_address, render, write_html
from mil.reporting.learners import describe_weights, weights_table
from mil.reporting.run_report import figures, tables, uncertainty
from mil.reporting.run_report.data import ReportData, read_report_data, unreadable_file
from mil.reporting.run_report.scores import (
    Reliability,
    measure_reliability,
    score_centres,
    score_folds,
    score_repeats,
)
from mil.reporting.run_report.tissue import ShowSlide, show_tissue
from mil.reporting.run_report.verdict import run_verdict, score_classes, two_decimals

__all__ = ["index_link", "patient_links", "write_report"]

_METRICS = ("weighted_log_loss", "auroc")
_N_WORST = 20
_MIN_PROBABILITY = 1e-15


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """``scores.json``."""

    kind: str
    of_kinds: Mapping[str, Mapping[str, Interval]]
    gains: Mapping[str, Mapping[str, Interval]]


def write_report(
    folder: Path,
    *,
    name: str | None = None,
    overview: Path | None = None,
    explanations: Path | None = None,
    bags: Path | None = None,
    show_slide: ShowSlide | None = None,
    n_resamples: int = 300,
) -> Path:
    """Write ``report.html`` from the files of a run; the same files give the same bytes.

    Parameters
    ----------
    folder
        Folder of the run.
    name
        Title of the run on the page; by default the name of the folder.
    overview
        Page of all labels, if the run is of one of several.
    explanations
        Folder written by ``mil explain``; patients with a page in it are linked to the page.
    bags, show_slide
        Bags of the training slides, and a function that reads their pictures, to show the tissue of
        a few patients; none is shown without both.
    n_resamples
        Number of bootstrap samples of patients for the intervals of centres.

    Returns
    -------
    Path
        Path of the page.

    Raises
    ------
    RunError
        If a file of the run is absent or damaged.
    OutputError
        If the page cannot be written.
    """
    run = load_bundle(folder)
    data = read_report_data(folder, classes=run.classes)
    scores, history = _read_scores(folder), _read_history(folder)
    seed = int(run.settings["seed"])
    links = patient_links(folder, explanations, data.patient_ids)
    reliability = {
        kind: measure_reliability(data, kind, seed=seed) for kind in ("raw", "calibrated")
    }
    html = render(
        "report.html",
        name=name or folder.resolve().name,
        run=run,
        data=data,
        scores=scores,
        n_heads=len(run.heads),
        n_repeats=len(data.fold),
        findings=tables.findings(scores.gains),
        covariate_sentences=tables.covariate_sentences(scores.gains),
        shares=data.shares.tolist(),
        tissue=show_tissue(run, data, bags, show_slide) if bags and show_slide else {},
        links=links,
        overview="" if overview is None else relative_address(overview, folder),
        explained=index_link(folder, explanations),
        **_summary(run, data, scores, reliability["calibrated"], n_resamples=n_resamples),
        **_figures(data, scores, history, reliability, seed=seed),
        **_uncertainty(run, data),
        learners=weights_table(run),
        learner_sentence=describe_weights(learner_weights(run)),
        **_tables(run, data, scores, links, n_resamples=n_resamples, seed=seed),
    )
    page = folder / "report.html"
    write_html(page, html)
    return page


def _summary(
    run: ModelBundle,
    data: ReportData,
    scores: _Scores,
    reliability: Reliability,
    *,
    n_resamples: int,
) -> dict[str, Any]:
    """Return the verdict, and cards of label, value, interval and remark."""
    headline, error = scores.of_kinds["calibrated"], reliability.error
    constant = scores.of_kinds["constant"]["weighted_log_loss"].value
    of_classes = score_classes(data, n_resamples=n_resamples, seed=int(run.settings["seed"]))
    area = two_decimals(headline["auroc"], beside=0.5).partition(" ")
    loss = two_decimals(headline["weighted_log_loss"]).partition(" ")
    return {
        "verdict": run_verdict(
            data, scores.of_kinds, scores.gains, reliability, by=str(run.settings["by"]),
            of_classes=of_classes,
        ),
        "cards": [
            ("Mean AUROC" if of_classes else "AUROC", area[0], area[2],
             "0.5 is guessing, 1 is perfect"),
            ("Weighted log loss", loss[0], loss[2],
             f"{constant:.2f} is a constant prediction, 0 is perfect"),
            ("Calibration error", f"{error.value:.2f}", "",
             f"{error.if_perfect_high:.2f} or less is explained by chance"),
        ],
    }  # fmt: skip


def _figures(
    data: ReportData,
    scores: _Scores,
    history: pd.DataFrame,
    reliability: Mapping[str, Reliability],
    *,
    seed: int,
) -> dict[str, Any]:
    """Return all figures of the page, one of each kind per class shown."""
    n_classes = len(data.classes)
    # With two classes, the curves of the first are mirror images of those of the second.
    shown = [1] if n_classes == 2 else list(range(n_classes))
    first = data.first
    at_cohort = {
        kind: shift_prior(first[kind], old=balanced(data.classes), new=data.shares)
        for kind in ("calibrated", MEAN_LOGISTIC)
    }
    stopped = bool(history["stop_loss"].notna().any())
    curves = {"train_loss": "Training loss", "stop_loss": "Validation loss"}
    return {
        "score_figures": [figures.draw_scores(scores.of_kinds, metric) for metric in _METRICS],
        "learning_figures": [
            figures.draw_learning(history, column, title=title)
            for column, title in curves.items()
            if column == "train_loss" or stopped
        ],
        "roc_figures": [
            score_figures.draw_roc(
                first["calibrated"], data.labels, data.classes, index,
                baseline=first[MEAN_LOGISTIC], seed=seed,
            )
            for index in shown
        ],
        "recall_figures": [
            figures.draw_precision_recall(data, index, seed=seed)
            for index in range(n_classes)
        ],
        "confusion_figure": figures.draw_confusion(data),
        "reliability_figures": [
            score_figures.draw_reliability(
                reliability["calibrated"].bins[index], data.classes, index,
                before=reliability["raw"].bins[index],
            )
            for index in shown
        ],
        "calibration": tables.calibration_table(reliability),
        "distribution_figures": [figures.draw_distribution(data, index) for index in shown],
        "decision_figures": [
            score_figures.draw_decision(
                at_cohort["calibrated"], data.labels, data.classes, index,
                baseline=at_cohort[MEAN_LOGISTIC], seed=seed,
            )
            for index in shown
        ],
    }  # fmt: skip


def _uncertainty(run: ModelBundle, data: ReportData) -> dict[str, Any]:
    """Return figures and tables on abstention and typicality."""
    reference = run.typicality
    return {
        "abstention_figure": uncertainty.draw_risk_coverage(data, run.abstention),
        "abstention_table": uncertainty.abstention_table(data),
        "typicality_figure": reference and uncertainty.draw_typicality(reference),
        "typicality_centres": reference and uncertainty.centres_table(reference),
    }


def patient_links(
    folder: Path, explanations: Path | None, patient_ids: Sequence[str]
) -> dict[str, str]:
    """Return the address of each patient's explanation page, relative to a page in ``folder``."""
    links: dict[str, str] = {}
    if explanations is None:
        return links
    for patient_id in patient_ids:
        page = explanations / folder_name(patient_id) / "index.html"
        if page.is_file():
            links[patient_id] = relative_address(page, folder)
    return links


def index_link(folder: Path, explanations: Path | None) -> str:
    """Return the address of the index of the explanation pages; empty if there is none."""
    page = None if explanations is None else explanations / "index.html"
    return relative_address(page, folder) if page is not None and page.is_file() else ""


def _tables(
    run: ModelBundle,
    data: ReportData,
    scores: _Scores,
    links: Mapping[str, str],
    *,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return all tables of the page."""
    classes = data.classes
    repeats, folds = score_repeats(data), score_folds(data)
    centres = score_centres(data, n_resamples=n_resamples, seed=seed)
    proba = data.mean["calibrated"][np.arange(len(data.labels)), data.labels]
    losses = -np.log(np.clip(proba, _MIN_PROBABILITY, 1))
    order = np.argsort(-losses, kind="stable").tolist()
    return {
        "scores_table": tables.scores_table(scores.of_kinds),
        "gains_table": tables.gains_table(scores.gains),
        "group_figure": figures.draw_groups(
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
        "confusion": tables.confusion_table(data),
        "classification": tables.classification_table(data, n_resamples=n_resamples, seed=seed),
        "sets": tables.sets_table(data, run, coverage=COVERAGE),
        "guarantees": run.guaranteed_coverage(COVERAGE) is not None,
        "min_calibration_size": min_calibration_size(COVERAGE),
        "cohort": tables.cohort_table(data),
        "incomplete": tables.incomplete_table(data),
        "worst": tables.patients_table(
            "Patients by log loss, worst first", data, losses, order[:_N_WORST], links
        ),
        "others": tables.patients_table(
            "The other patients by log loss", data, losses, order[_N_WORST:], links
        ),
        "facts": [
            tables.facts_table("How its bags were made", asdict(run.fingerprint)),
            tables.facts_table("Calibrator, at equal class shares", run.calibrator.as_dict()),
            tables.facts_table("Settings", run.settings),
            tables.facts_table("Versions", run.versions),
        ],
    }  # fmt: skip


def _read_scores(folder: Path) -> _Scores:
    path = folder / "scores.json"
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        kinds = ["calibrated", "raw", MEAN_LOGISTIC]
        if scores["kind"] == "nested":
            kinds.insert(1, "cross-fitted")
        # Earlier runs have one baseline on pooled embeddings.
        kinds += [kind for kind in BASELINE_MODELS if kind in scores and kind != MEAN_LOGISTIC]
        kinds += ["cohort prior", "constant"]
        kinds += [kind for kind in scores if kind.startswith(SHORTCUT)]
        kinds += [kind for kind in (COVARIATES_ALONE, SLIDES_ALONE) if kind in scores]
        return _Scores(
            kind=str(scores["kind"]),
            of_kinds={kind: _intervals(scores[kind]) for kind in kinds},
            gains={name: _intervals(of) for name, of in scores["gains"].items()},
        )
    except CONTENT_ERRORS as error:
        raise unreadable_file(path, error) from error


def _read_history(folder: Path) -> pd.DataFrame:
    path = folder / "history.csv"
    try:
        table = pd.read_csv(path, dtype={"repeat": str, "fold": str}, keep_default_na=False,
                            na_values={"train_loss": [""], "stop_loss": [""]})  # fmt: skip
        return table.astype({"epoch": int, "member": int, "train_loss": float, "stop_loss": float})
    except CONTENT_ERRORS as error:
        raise unreadable_file(path, error) from error


def _intervals(scores: Mapping[str, Any]) -> dict[str, Interval]:
    return {metric: Interval.from_dict(scores[metric]) for metric in _METRICS}
