"""Scores of a run: its kinds of predictions and its baselines, and paired gains over them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mil.arrays import Floats, Ints
from mil.evaluation.baseline_models import BASELINE_MODELS
from mil.evaluation.baselines import (
    COVARIATES_ALONE,
    SHORTCUT,
    SLIDES_ALONE,
    covariate_probabilities,
    shortcut_probabilities,
)
from mil.evaluation.bootstrap import paired_differences, stratified_bootstrap
from mil.evaluation.metrics import Interval, auroc, weighted_log_loss
from mil.training.cross_validation import OutOfFoldPredictions, cross_fitted_probabilities
from mil.training.cv_plan import CrossValidationPlan

__all__ = ["gains_of_kinds", "score_kinds", "with_baselines"]


def with_baselines(
    plan: CrossValidationPlan, oof: OutOfFoldPredictions, proba: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Add the probabilities of baselines and views, shape (repeats, patients, classes) each."""
    shape = proba["calibrated"].shape
    shares = np.bincount(oof.labels, minlength=shape[2]) / shape[1]
    kinds = {
        **proba,
        "cohort prior": np.broadcast_to(shares, shape),
        "constant": np.full(shape, 1 / shape[2]),
        **shortcut_probabilities(plan.cohort.patients, plan.bags, oof, calibrator=plan.calibrator),
        **covariate_probabilities(oof, calibrator=plan.calibrator),
    }
    view_averaged = oof.view_averaged()
    if view_averaged is not None:
        kinds["views averaged"] = cross_fitted_probabilities(
            view_averaged, calibrator=plan.calibrator
        )
    return kinds


def score_kinds(
    kinds: Mapping[str, Floats], labels: Ints, *, n_resamples: int, seed: int
) -> dict[str, Mapping[str, Interval]]:
    """Return the scores of each kind of prediction with intervals, means over repeats.

    Predictions are never averaged over repeats: an average is of more heads than are deployed.
    """
    metrics = {"weighted_log_loss": weighted_log_loss, "auroc": auroc}
    return {
        name: stratified_bootstrap(metrics, values, labels, n_resamples=n_resamples, seed=seed)
        for name, values in kinds.items()
    }


def gains_of_kinds(
    kinds: Mapping[str, Floats], labels: Ints, *, n_resamples: int, seed: int
) -> dict[str, Mapping[str, Interval]]:
    """Return by how much the calibrated predictions are better than each baseline.

    Those of covariates or slides alone are cross-fitted, and compared with cross-fitted ones.
    """
    shortcuts = (name for name in kinds if name.startswith(SHORTCUT))
    alone = [name for name in (COVARIATES_ALONE, SLIDES_ALONE) if name in kinds]
    cross_fitted = kinds.get("cross-fitted", kinds["calibrated"])
    gains: dict[str, Mapping[str, Interval]] = {}
    for proba, names in (
        (kinds["calibrated"], (*BASELINE_MODELS, "cohort prior", "constant", *shortcuts)),
        (cross_fitted, alone),
    ):
        others = {name: kinds[name] for name in names}
        gains |= paired_differences(proba, others, labels, n_resamples=n_resamples, seed=seed)
    return gains
