"""Covariates in a cross-validation: a model per fold, as the last learner of the stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mil.arrays import Floats
from mil.base_learners.covariates import CovariateModel, with_covariate_logits
from mil.data.cohort import Cohort
from mil.training.config import TrainConfig
from mil.training.fold_jobs import FoldResult

__all__ = ["add_covariates", "constant_covariates", "fit_covariates"]


def fit_covariates(cohort: Cohort, train_ids: Sequence[str], config: TrainConfig) -> CovariateModel:
    """Fit the model of the cohort's covariates to training patients, those of ``train_ids``.

    Its logits have shape (patients, classes).
    """
    training = cohort.subset(train_ids)
    return CovariateModel.fit(
        cohort.covariates, [patient.covariates for patient in training.patients], training.labels,
        n_classes=len(cohort.classes), balanced=config.loss != "cross-entropy",
    )  # fmt: skip


def constant_covariates(models: Mapping[tuple[int, int], CovariateModel]) -> tuple[str, ...]:
    """Return notes on covariates that did not vary among training patients, by repeat and fold."""
    folds: dict[str, list[str]] = {}
    for (repeat, fold), model in models.items():
        for name in model.constant:
            folds.setdefault(name, []).append(f"{fold} of repeat {repeat}")
    return tuple(
        f"covariate {name!r} is the same for all training patients of fold {', '.join(where)}: "
        "it has no weight there"
        for name, where in folds.items()
    )


def add_covariates(result: FoldResult, model: CovariateModel, cohort: Cohort) -> FoldResult:
    """Return the result of a fold with the logits of its covariates, shape (learners, classes)."""
    patients = {patient.patient_id: patient for patient in cohort.patients}

    def add(logits: Mapping[str, Floats]) -> dict[str, Floats]:
        return {
            name: with_covariate_logits(own, model.logits([patients[name].covariates])[0])
            for name, own in logits.items()
        }

    return replace(result, logits=add(result.logits), averaged=add(result.averaged))
