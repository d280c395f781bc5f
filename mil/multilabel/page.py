"""Overview page of a run of several labels; each label has its own report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from features.utils.files import atomic_write
from mil.evaluation.metrics import Interval
from mil.multilabel.table import LabelTable
from mil.reporting.html import render
from mil.reporting.run_report.verdict import labels_verdict
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
    n_with = dict(zip(table.names, table.truth.sum(axis=0).tolist(), strict=True))
    html = render(
        "labels.html",
        verdict=labels_verdict(
            {label: summaries[label].scores["calibrated"]["auroc"] for label in table.names},
            n_rarer={label: min(n, n_patients - n) for label, n in n_with.items()},
            n_worse=sum(each.comparison.verdict == "worse" for each in summaries.values()),
        ),
        name=name,
        n_patients=n_patients,
        losses=losses,
        rows=[
            {
                "name": label,
                "link": f"./labels/{quote(label)}/report.html",
                "n_with": int(n),
                "share": f"{100 * n / n_patients:.1f} %",
                "loss": summaries[label].scores["calibrated"]["weighted_log_loss"],
                "auroc": summaries[label].scores["calibrated"]["auroc"],
                "comparison": summaries[label].comparison,
            }
            for label, n in n_with.items()
        ],
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
