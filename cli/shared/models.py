"""Predictions of a run, whatever its make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.shared.arguments import only_folder
from cli.shared.combination import combination_bags, predict_each
from cli.shared.output import print_caveats
from cli.shared.runs import add_run_covariates, is_combination

if TYPE_CHECKING:
    from mil.data.cohort import Cohort
    from mil.inference.predict import PatientPrediction

__all__ = ["ModelOutput", "predict_model"]


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """Classes of a model, its predictions, and the guaranteed coverage of their sets, if any."""

    classes: tuple[str, ...]
    predictions: Sequence[PatientPrediction]
    guaranteed: Mapping[str, float] | None


def predict_model(
    run: Path,
    cohort: Cohort,
    bags: Sequence[Path] | None,
    *,
    coverage: float,
    columns: Mapping[str, str],
) -> ModelOutput:
    """Predict a cohort at the balanced prior, with the bags of a folder.

    Covariates that the run needs are read from the cohort's table, with its ``columns`` by role.
    """
    from mil.combination.bundle import load_combination
    from mil.inference.bundle import load_bundle
    from mil.inference.output import covariate_caveats
    from mil.inference.predict import predict

    folders = bags or [Path("bags")]
    if is_combination(run):
        combined = load_combination(run)
        return ModelOutput(
            classes=combined.classes,
            predictions=predict_each(
                combined,
                cohort,
                combination_bags(combined, folders),
                coverage=coverage,
                columns=columns,
            ),
            guaranteed=combined.guaranteed_coverage(coverage),
        )
    bundle = load_bundle(run)
    cohort = add_run_covariates(bundle, cohort, columns=columns)
    print_caveats(covariate_caveats(bundle, cohort))
    return ModelOutput(
        classes=bundle.classes,
        predictions=predict(bundle, cohort, only_folder(folders), coverage=coverage),
        guaranteed=bundle.guaranteed_coverage(coverage),
    )
