"""Overview page of a run of several labels; each label has its own report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from features.utils.files import atomic_write
from mil.evaluation.metrics import Interval
from mil.multilabel.table import LabelTable
from mil.reporting.html import render
from mil.training_run import TrainingSummary

__all__ = ["write_label_page"]


def write_label_page(
    path: Path,
    name: str,
    summaries: Mapping[str, TrainingSummary],
    table: LabelTable,
    losses: Mapping[str, Interval],
) -> None:
    """Write ``report.html`` of a run of several labels.

    ``losses`` are weighted log losses of all labels, in nats, by kind of prediction.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    n_patients = len(table.truth)
    html = render(
        "labels.html",
        name=name,
        n_patients=n_patients,
        losses=losses,
        rows=[
            {
                "name": label,
                "link": f"./labels/{quote(label)}/report.html",
                "n_with": int(n_with),
                "share": f"{100 * n_with / n_patients:.1f} %",
                "loss": summaries[label].scores["calibrated"]["weighted_log_loss"],
                "auroc": summaries[label].scores["calibrated"]["auroc"],
                "comparison": summaries[label].comparison,
            }
            for label, n_with in zip(table.names, table.truth.sum(axis=0).tolist(), strict=True)
        ],
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
