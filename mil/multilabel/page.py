"""Overview page of a run of several labels; each label has its own report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from features.errors import CONTENT_ERRORS
from mil.evaluation.baselines import decisive_comparison
from mil.evaluation.metrics import Interval
from mil.reporting.html import render, write_html
from mil.reporting.run_report import PatientTissue
from mil.reporting.run_report.data import unreadable_file
from mil.reporting.run_report.verdict import labels_verdict

__all__ = ["write_label_page"]


def write_label_page(
    path: Path,
    name: str,
    scores: Mapping[str, Any],
    n_with: Mapping[str, int],
    n_patients: int,
    *,
    tissue: Mapping[str, Sequence[PatientTissue]] | None = None,
    links: Mapping[str, str] | None = None,
    explained: str = "",
) -> None:
    """Write ``report.html`` of a run of several labels.

    Parameters
    ----------
    path, name
        File to write, and the title of the run.
    scores
        Scores of all labels as in ``labels.json``: plain values of a ``LabelSummary``.
    n_with, n_patients
        Number of patients with each label, and of all.
    tissue
        Tissue of a few patients with each label, by label.
    links
        Addresses of the pages of explained patients, by patient.
    explained
        Address of the index of those pages; empty if there is none.

    Raises
    ------
    RunError
        If a score is missing or damaged.
    OutputError
        If the file cannot be written.
    """
    try:
        described = _describe(scores, n_with, n_patients)
    except CONTENT_ERRORS as error:
        raise unreadable_file(path.with_name("labels.json"), error) from error
    html = render(
        "labels.html",
        name=name,
        n_patients=n_patients,
        tissue={label: patients for label, patients in (tissue or {}).items() if patients},
        reports={label: _report_of(label) for label in n_with},
        links=links or {},
        explained=explained,
        **described,
    )
    write_html(path, html)


def _describe(
    scores: Mapping[str, Any], n_with: Mapping[str, int], n_patients: int
) -> dict[str, Any]:
    """Return verdict, losses and rows of the page."""
    of_labels = scores["labels"]
    calibrated = {
        label: {
            metric: Interval.from_dict(of_labels[label]["scores"]["calibrated"][metric])
            for metric in ("weighted_log_loss", "auroc")
        }
        for label in n_with
    }
    compared = {
        label: decisive_comparison({
            baseline: {metric: Interval.from_dict(gain) for metric, gain in gains.items()}
            for baseline, gains in of_labels[label]["gains"].items()
        })
        for label in n_with
    }  # fmt: skip
    return {
        "verdict": labels_verdict(
            {label: of["auroc"] for label, of in calibrated.items()},
            n_rarer={label: min(n, n_patients - n) for label, n in n_with.items()},
            n_worse=sum(each.verdict == "worse" for each in compared.values()),
        ),
        "losses": {
            kind: Interval.from_dict(loss) for kind, loss in scores["weighted_label_loss"].items()
        },
        "rows": [
            {
                "name": label,
                "link": _report_of(label),
                "n_with": n,
                "share": f"{100 * n / n_patients:.1f} %",
                "loss": calibrated[label]["weighted_log_loss"],
                "auroc": calibrated[label]["auroc"],
                "comparison": compared[label],
            }
            for label, n in n_with.items()
        ],
    }


def _report_of(label: str) -> str:
    return f"./labels/{quote(label)}/report.html"
