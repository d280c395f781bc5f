"""``mil score``: any predictions file against labels."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.console import print_json, results, step
from cli.options import JsonOutput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mil.metrics import Interval

__all__ = ["Average", "score"]

_TITLES = {
    "weighted_log_loss": "weighted log loss",
    "auroc": "AUROC",
    "brier_score": "Brier",
    "calibration_error": "calibration error",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
}


class Average(StrEnum):
    """How several files become one."""

    probability = "probability"
    logit = "logit"


def score(
    *,
    predictions: Annotated[list[Path], typer.Argument(help="CSV tables of patients or of slides.")],
    cohort: Annotated[
        Path, typer.Option(help="CSV with `image_id` (or `slide_id`), `patient_id`, `label`.")
    ],
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="Class that a single column of probabilities is for."),
    ] = None,
    average: Annotated[
        Average, typer.Option(help="How several files are averaged.")
    ] = Average.probability,
    prior: Annotated[
        str,
        typer.Option(
            help="Class shares at which Brier, calibration error and accuracy are read: `cohort`, "
            "`balanced` or shares such as `CE=0.7,LAA=0.3`."
        ),
    ] = "cohort",
    file_prior: Annotated[
        str, typer.Option(help="Class shares that the files' probabilities are for.")
    ] = "balanced",
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    as_json: JsonOutput = False,
) -> None:
    """Score predictions: weighted log loss, AUROC, Brier, calibration error, accuracies.

    The weighted log loss is STRIP AI's metric: per-class mean log loss, classes weighted equally,
    rows rescaled to sum to 1 and then clipped at 1e-15. A constant gives ln(classes), 0.6931 for
    two. Every score comes with a 95 % interval over patients. Tables of slides are averaged to
    patients; several files are scored each and averaged.

    Example: `mil score submission.csv --cohort labels.csv`

    Example: `mil score oof/*.csv --class LAA --cohort train.csv --json`
    """
    with step("scoring"):
        from mil.cohort import read_cohort
        from mil.priors import parse_prior
        from mil.scoring import (
            INTERVAL_NOTE,
            average_predictions,
            baseline_losses,
            read_predictions,
            score_predictions,
        )

        labelled = read_cohort(cohort, labelled=True)
        counts = labelled.class_counts()
        shares = parse_prior(prior, labelled.classes, counts)
        tables = {
            str(path): read_predictions(path, labelled, class_name=class_name)
            for path in predictions
        }
        if len(tables) > 1:
            name = f"mean {average.value} of {len(tables)}"
            tables[name] = average_predictions(list(tables.values()), how=average.value)
        scored = {
            name: score_predictions(
                proba,
                labelled.labels,
                file_prior=parse_prior(file_prior, labelled.classes, counts),
                prior=shares,
                n_resamples=resamples,
                seed=seed,
            )
            for name, proba in tables.items()
        }
    baselines = baseline_losses(labelled)
    stated = dict(zip(labelled.classes, map(float, shares), strict=True))
    if as_json:
        print_json({
            "n_patients": len(labelled.patients),
            "class_counts": counts,
            "prior": stated,
            "interval": INTERVAL_NOTE,
            "baselines": baselines,
            "files": [{"name": name, "raw": _plain(found)} for name, found in scored.items()],
        })  # fmt: skip
        return
    _print_scores(scored, baselines, n_patients=len(labelled.patients))
    told = ", ".join(f"{name} {share:.3f}" for name, share in stated.items())
    results.print(f"Brier, calibration error and accuracy are read at a prior of {told} ({prior}).")
    results.print(f"{INTERVAL_NOTE}.")


def _plain(scores: Mapping[str, Interval]) -> dict[str, object]:
    return {
        name: {"value": found.value, "interval": [found.low, found.high]}
        for name, found in scores.items()
    }


def _print_scores(
    scored: Mapping[str, Mapping[str, Interval]],
    baselines: Mapping[str, float],
    *,
    n_patients: int,
) -> None:
    for name, scores in scored.items():
        table = Table(title=f"{name}: {n_patients} patients", title_justify="left")
        table.add_column("score")
        table.add_column("value", justify="right")
        table.add_column("95 % interval", justify="right")
        for key, title in _TITLES.items():
            found = scores[key]
            table.add_row(title, f"{found.value:.4f}", f"{found.low:.4f} to {found.high:.4f}")
        results.print(table)
    results.print(
        f"Weighted log loss without looking: {baselines['constant']:.4f} for equal probabilities, "
        f"{baselines['cohort_prior']:.4f} for the cohort's shares."
    )
