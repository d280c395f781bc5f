"""Assembly of a model bundle from a finished training."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from mil.arrays import Floats
from mil.calibration import Calibrator
from mil.data.bags import SlideRecord
from mil.evaluation.abstention import choose_abstention
from mil.inference.bundle import ModelBundle
from mil.inference.prediction_sets import PredictionSets, fit_sets
from mil.training.covariates import fit_covariates
from mil.training.cross_validation import (
    OutOfFoldPredictions,
    cross_fitted_calibrators,
    fit_calibrator,
)
from mil.training.cv_plan import CrossValidationPlan
from mil.training.ensemble import Ensemble
from mil.typicality import TypicalityReference
from mil.typicality.provenance import Provenance

__all__ = ["assemble_bundle"]


def assemble_bundle(
    plan: CrossValidationPlan,
    oof: OutOfFoldPredictions,
    deployed: Ensemble,
    calibrated: Floats,
    *,
    nested: Mapping[tuple[int, int], Calibrator],
    path: Path,
) -> ModelBundle:
    """Return the bundle of a training, not written yet.

    Parameters
    ----------
    plan, oof, deployed
        Plan, out-of-fold predictions, and the ensemble of all patients.
    calibrated
        Out-of-fold probabilities, shape (repeats, patients, classes).
    nested
        Calibrators by repeat and fold that were fitted within the training patients of the fold;
        empty without.
    path
        Folder of the run.
    """
    bags, view_averaged = plan.bags, oof.view_averaged()
    every_row = np.ones(oof.fold.shape, bool)
    versions = {
        name: metadata.version(name) for name in ("mil-slides", "torch", "numpy", "scipy", "h5py")
    }
    return ModelBundle(
        path=path,
        classes=plan.cohort.classes,
        fingerprint=bags.fingerprint,
        head_name=plan.config.head,
        heads=deployed.heads,
        calibrator=fit_calibrator(oof, every_row, calibrator=plan.calibrator),
        view_calibrator=None
        if view_averaged is None
        else fit_calibrator(view_averaged, every_row, calibrator=plan.calibrator),
        cohort_counts=tuple(plan.cohort.class_counts().values()),
        training_slides=bags.slides,
        unlabelled_slides=bags.unlabelled.slides if bags.unlabelled else (),
        out_of_fold=dict(zip(oof.patient_ids, calibrated.mean(axis=0), strict=True)),
        settings=plan.as_settings(),
        versions={"python": platform.python_version(), **versions},
        sets=_fit_sets(plan, oof, nested),
        tile_filter=bags.tile_filter,
        base_learners=deployed.base_learners,
        covariates=fit_covariates(plan.cohort, plan.cohort.patient_ids, plan.config)
        if plan.cohort.covariates
        else None,
        typicality=_fit_typicality(plan),
        provenance=_find_provenance(bags.slides),
        abstention=choose_abstention(calibrated[0], oof.labels, oof.fold[0], groups=oof.groups),
    )


def _fit_sets(
    plan: CrossValidationPlan,
    oof: OutOfFoldPredictions,
    nested: Mapping[tuple[int, int], Calibrator],
) -> PredictionSets:
    """Return the prediction sets; those of a stack stand on its calibrated logits by fold."""
    if not plan.config.is_stack:
        return fit_sets(oof)
    of_first = {fold: fitted for (repeat, fold), fitted in nested.items() if repeat == 0}
    return fit_sets(
        oof,
        of_first or cross_fitted_calibrators(oof, calibrator=plan.calibrator),
        are_nested=bool(of_first),
    )


def _fit_typicality(plan: CrossValidationPlan) -> TypicalityReference:
    """Return the training patients, shape (tiles, dim) each, to compare new ones with."""
    centre_of = {p.patient_id: p.center_id or "" for p in plan.cohort.patients}
    bags = plan.bags.subset(plan.cohort.patient_ids)
    return TypicalityReference.fit(bags, centres=[centre_of[name] for name in bags.nonempty()])


def _find_provenance(slides: Sequence[SlideRecord]) -> Provenance | None:
    """Return the provenance of the slides whose bags were read from files, if there are any."""
    metas = [record.meta for record in slides if record.meta is not None]
    return Provenance.of(metas) if metas else None
