"""The page of a recalibrated run: its scores before and after on the local patients."""

from __future__ import annotations

import json
from pathlib import Path

from features.errors import CONTENT_ERRORS, TableError, one_line
from mil.comparison.differences import compare_models
from mil.comparison.models import AlignedModels, ModelPredictions
from mil.errors import RunError
from mil.evaluation.run_predictions import read_run_predictions
from mil.reporting.comparison_report import write_comparison
from mil.reporting.html import Table

__all__ = ["write_recalibration"]


def write_recalibration(folder: Path) -> Path:
    """Write ``report.html`` of a recalibrated run from its files, and return its path.

    Probabilities after and before have shape (repeats, patients, classes).

    Raises
    ------
    RunError
        If a file of the run is absent or damaged.
    OutputError
        If the page cannot be written.
    """
    after = read_run_predictions(folder)
    before = read_run_predictions(folder, kind="raw")
    try:
        fitted = json.loads((folder / "recalibration.json").read_text(encoding="utf-8"))
        rows = [("slope", f"{fitted['slope']:.3f}")]
        rows += [
            (f"bias of {name}", f"{bias:.3f}")
            for name, bias in zip(after.classes, fitted["bias"], strict=True)
        ]
        n_left_out = len(fitted["left_out"])
    except (*CONTENT_ERRORS, TableError) as error:
        raise RunError(
            folder / "recalibration.json",
            actual=f"cannot be read ({one_line(str(error), max_chars=200)})",
            expected="as 'mil recalibrate' wrote it",
            hint="Copy the run again, or recalibrate again.",
        ) from error
    models = AlignedModels(
        classes=after.classes,
        patient_ids=after.patient_ids,
        centres=after.centres,
        labels=after.labels,
        models=(
            ModelPredictions(name="before", proba=before.proba[:1]),
            ModelPredictions(name="after", proba=after.proba),
        ),
        n_left_out=(n_left_out, n_left_out),
        notes=("after is cross-fitted: the calibrator of a patient was fitted on other patients",),
    )
    page = folder / "report.html"
    write_comparison(
        page, compare_models(models),
        recalibration=Table("Platt scaling of the calibrated logits", ["", "value"], rows),
    )  # fmt: skip
    return page
