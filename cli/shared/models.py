"""Predictions of a run, whatever its make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

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
    run: Path, cohort: Cohort, bags: Sequence[Path] | None, *, coverage: float
) -> ModelOutput:
    """Predict a cohort at the balanced prior, with the bags of a folder."""
    from mil.inference.bundle import load_bundle
    from mil.inference.predict import predict

    folders = bags or [Path("bags")]
    bundle = load_bundle(run)
    if len(folders) > 1:
        raise typer.BadParameter("one folder for a run of one encoder", param_hint="--bags")
    return ModelOutput(
        classes=bundle.classes,
        predictions=predict(bundle, cohort, folders[0], coverage=coverage),
        guaranteed=bundle.guaranteed_coverage(coverage),
    )
