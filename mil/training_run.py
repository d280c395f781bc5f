"""From bags and labels to a finished run: validate, calibrate, fit what is deployed, write it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import softmax

from features.utils.files import atomic_folder
from features.utils.tables import write_table
from mil.data.bags import PatientBags, SlideRecord
from mil.data.cohort import Cohort
from mil.data.splits import Fold, SplitBy, split_notes, write_folds
from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.metrics import Interval, auroc, weighted_log_loss
from mil.inference.bundle import ModelBundle, TrainingSlide, save_bundle, write_json
from mil.inference.conformal import COVERAGE, cross_fitted_sets
from mil.inference.prediction_sets import fit_sets
from mil.reporting.model_card import write_model_card
from mil.reporting.run_report import (
    SHORTCUT,
    collect_report_data,
    mean_logistic_probabilities,
    paired_differences,
    shortcut_probabilities,
    write_report,
    write_report_data,
)
from mil.reporting.run_report.caveats import run_caveats, unlabelled_caveats
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.cross_validation import (
    OutOfFoldPredictions,
    cross_fitted_probabilities,
    cross_validate,
    fit_calibrator,
    nested_probabilities,
)
from mil.training.cv_plan import CrossValidationPlan
from mil.training.ensemble import Ensemble, train_ensemble
from mil.training.fold_jobs import ExecutorFactory, local_fold_executor

__all__ = ["TrainingSummary", "train_run"]

Scores = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSummary:
    """What a training came to."""

    path: Path
    """Folder of the run."""
    head: str
    """Kind of head."""
    n_patients: int
    """Patients with tiles."""
    n_tiles: int
    """Tiles of all of them."""
    scores: Scores
    """Scores with intervals, by kind of prediction and by metric; all out-of-fold."""
    one_class: float
    """Share of the patients judged whose prediction set at the usual coverage holds one class."""
    guaranteed: Mapping[str, float] | None
    """Coverage of each class that such sets keep for new patients; None by centre."""
    notes: tuple[str, ...]
    """What a reader must know: slides without bags, fixed steps."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "run": str(self.path),
            "head": self.head,
            "n_patients": self.n_patients,
            "n_tiles": self.n_tiles,
            "scores": _plain(self.scores),
            "sets": {
                "coverage": COVERAGE,
                "one_class": self.one_class,
                "guaranteed": self.guaranteed,
            },
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, said: Mapping[str, Any], *, path: Path) -> TrainingSummary:
        """What :meth:`as_dict` told, of a run that lies at ``path``.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is anything else.
        """
        return cls(
            path=path,
            head=said["head"],
            n_patients=said["n_patients"],
            n_tiles=said["n_tiles"],
            scores={
                kind: {metric: Interval.from_dict(oof) for metric, oof in of_kind.items()}
                for kind, of_kind in said["scores"].items()
            },
            one_class=said["sets"]["one_class"],
            guaranteed=said["sets"]["guaranteed"],
            notes=tuple(said["notes"]),
        )


def _say_nothing(_: str) -> None:
    """For callers without an eye on it."""


def train_run(
    cohort: Cohort,
    bags: PatientBags,
    run_dir: Path,
    *,
    n_folds: int,
    n_repeats: int,
    seed: int,
    config: TrainConfig,
    calibrator: str = "platt",
    on_head: Callable[[int, int], None],
    by: SplitBy = "patient",
    nested: bool = False,
    n_resamples: int = 1000,
    folds: Sequence[Fold] | None = None,
    executor: ExecutorFactory = local_fold_executor,
    unlabelled: PatientBags | None = None,
    failures: Mapping[str, str] | None = None,
    on_step: Callable[[str], None] = _say_nothing,
) -> TrainingSummary:
    """Train, calibrate and write a run.

    The folder appears whole when all is done; an older run of that name is replaced only then.
    Until then, what finished folds said lies in a hidden folder beside it: the same call after a
    kill takes it over, and ends with the same bytes.

    Parameters
    ----------
    cohort
        Patients and labels.
    bags
        Their bags.
    run_dir
        Folder of the run.
    n_folds, n_repeats
        Folds of a cross-validation, and cross-validations with other folds.
    seed
        Decides everything random.
    settings
        How ensembles are trained.
    calibrator
        Name, see :func:`mil.calibration.build_calibrator`.
    on_head
        Called with heads done and heads in all.
    by
        Whether folds are stratified folds of patients or leave one centre out.
    nested
        Score with calibrators fitted by a cross-validation inside each fold's training patients;
        every fold then costs as many ensembles more as there are folds.
    n_resamples
        Bootstrap resamples behind the intervals of the scores.
    folds
        Folds of the patients with tiles, where they are given and not made.
    executor
        Given the bags, where the ensembles of folds are trained; the ensemble that is deployed is
        trained here.
    unlabelled
        Patients whose embeddings, and nothing else, the whitening is fitted on besides. Those who
        are patients of the cohort are left out, see
        :meth:`mil.data.bags.PatientBags.with_unlabelled`.
    failures
        Why slides have no bag, by slide id, as far as it is known: for the report.
    on_step
        Called with what begins when all heads are done.

    Raises
    ------
    SplitError
        If a class has too few patients with tiles.
    CalibrationError
        If the calibrator is unknown or too few patients of a class are left to calibrate on.
    OutputError
        If the folder cannot be written.
    BagError
        If unlabelled bags were made otherwise.
    """
    said: tuple[str, ...] = ()
    if unlabelled is not None:
        said = unlabelled_caveats(bags, unlabelled)
        bags = bags.with_unlabelled(unlabelled)
    design = CrossValidationPlan.of(
        cohort, bags, folds, by=by, n_folds=n_folds, n_repeats=n_repeats, nested=nested,
        config=config, seed=seed, calibrator=calibrator,
    )  # fmt: skip
    n_done = 0

    def one_more() -> None:
        nonlocal n_done
        n_done += 1
        on_head(n_done, design.n_heads)

    checkpoints = Checkpoints(run_dir.with_name(f".{run_dir.name}.part"), bags)
    oof, proba = _judge(design, executor, checkpoints, one_more)
    final = _train_deployed(design, one_more)
    on_step("scoring")
    with_view_calibrator = oof.with_view_calibrator()
    kinds = _beside_baselines(design, oof, proba)
    if with_view_calibrator is not None:
        kinds["views averaged"] = cross_fitted_probabilities(
            with_view_calibrator, calibrator=calibrator
        )
    scores = _score(kinds, oof.labels, n_resamples=n_resamples, seed=seed)
    described = {
        "kind": "nested" if nested else "cross-fitted",
        **_plain(scores),
        "gains": _plain(_gains(kinds, oof.labels, n_resamples=n_resamples, seed=seed)),
    }
    run = _as_run(design, oof, with_view_calibrator, final, proba["calibrated"], path=run_dir)
    notes = (
        *run_caveats(cohort, bags, oof, design.config),
        *said,
        *split_notes(design.cohort, design.folds, by=by),
    )
    on_step("drawing the report")
    with atomic_folder(run_dir) as beside:
        write_folds(beside / "folds.csv", design.folds)
        _write_history(beside / "history.csv", oof, final)
        write_json(beside / "scores.json", described)
        write_model_card(beside / "MODEL_CARD.md", run, scores)
        save_bundle(replace(run, path=beside))
        evidence = collect_report_data(
            cohort, bags, oof, proba, notes=notes, failures=failures or {}
        )
        write_report_data(beside, evidence)
        write_report(beside, name=run_dir.name)
    checkpoints.discard()
    return TrainingSummary(
        path=run_dir,
        head=config.head,
        n_patients=len(oof.patient_ids),
        n_tiles=sum(bags.n_tiles.values()),
        scores=scores,
        one_class=_share_of_one_class(proba["calibrated"][0], oof),
        guaranteed=run.guaranteed_coverage(COVERAGE),
        notes=notes,
    )


def _judge(
    design: CrossValidationPlan,
    executor: ExecutorFactory,
    checkpoints: Checkpoints,
    on_head: Callable[[], None],
) -> tuple[OutOfFoldPredictions, dict[str, npt.NDArray[np.float64]]]:
    """Cross-validate; logits, and probabilities by kind, shape (repeats, patients, classes)."""
    bags, folds, config, seed = design.bags, design.folds, design.config, design.seed
    with executor(bags) as running:
        oof = cross_validate(
            bags, design.cohort, folds, config=config, seed=seed, on_head=on_head,
            checkpoints=checkpoints, executor=running,
        )  # fmt: skip
        proba = {
            "calibrated": cross_fitted_probabilities(oof, calibrator=design.calibrator),
            "raw": softmax(oof.logits, axis=2),
            "mean + logistic": mean_logistic_probabilities(
                bags, oof, calibrator=design.calibrator, seed=seed
            ),
        }
        if design.nested:
            proba["cross-fitted"] = proba["calibrated"]
            proba["calibrated"] = nested_probabilities(
                bags, design.cohort, folds, oof, inner=design.inner, config=config, seed=seed,
                calibrator=design.calibrator, on_head=on_head, checkpoints=checkpoints,
                executor=running,
            )  # fmt: skip
    return oof, proba


def _train_deployed(design: CrossValidationPlan, on_head: Callable[[], None]) -> Ensemble:
    """The ensemble of the bundle, on all patients."""
    cohort = design.cohort
    return train_ensemble(
        design.bags.subset(cohort.patient_ids),
        dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True)),
        n_classes=len(cohort.classes),
        config=design.config,
        seed=(design.seed, 2),
        on_head=on_head,
    )


def _as_run(
    design: CrossValidationPlan,
    oof: OutOfFoldPredictions,
    with_view_calibrator: OutOfFoldPredictions | None,
    final: Ensemble,
    calibrated: npt.NDArray[np.float64],
    *,
    path: Path,
) -> ModelBundle:
    bags = design.bags
    every_row = np.ones(oof.fold.shape, bool)
    return ModelBundle(
        path=path,
        classes=design.cohort.classes,
        fingerprint=bags.fingerprint,
        head_name=design.config.head,
        heads=final.heads,
        calibrator=fit_calibrator(oof, every_row, calibrator=design.calibrator),
        view_calibrator=None
        if with_view_calibrator is None
        else fit_calibrator(with_view_calibrator, every_row, calibrator=design.calibrator),
        cohort_counts=tuple(design.cohort.class_counts().values()),
        training_slides=tuple(_as_training_slide(note) for note in bags.slides),
        unlabelled_slides=tuple(
            _as_training_slide(note) for note in (bags.unlabelled.slides if bags.unlabelled else ())
        ),
        out_of_fold=dict(zip(oof.patient_ids, calibrated.mean(axis=0), strict=True)),
        settings=design.as_settings(),
        versions=_versions(),
        sets=fit_sets(oof),
        tile_filter=bags.tile_filter,
    )


def _as_training_slide(note: SlideRecord) -> TrainingSlide:
    return TrainingSlide(
        slide_id=note.slide_id,
        patient_id=note.patient_id,
        n_tiles=note.n_tiles,
        content_id=note.content_id,
        features_sha256=note.features_sha256,
    )


def _beside_baselines(
    design: CrossValidationPlan,
    oof: OutOfFoldPredictions,
    proba: Mapping[str, npt.NDArray[np.float64]],
) -> dict[str, npt.NDArray[np.float64]]:
    """Predictions and what one gets without looking, shape (repeats, patients, classes)."""
    shape = proba["calibrated"].shape
    shares = np.bincount(oof.labels, minlength=shape[2]) / shape[1]
    return {
        **proba,
        "cohort prior": np.broadcast_to(shares, shape),
        "constant": np.full(shape, 1 / shape[2]),
        **shortcut_probabilities(
            design.cohort.patients, design.bags, oof, calibrator=design.calibrator
        ),
    }


def _score(
    kinds: Mapping[str, npt.NDArray[np.float64]],
    labels: npt.NDArray[np.int64],
    *,
    n_resamples: int,
    seed: int,
) -> Scores:
    """Scores of each kind of prediction with their intervals, means over repeats.

    Never of predictions averaged over repeats: those are of more heads than are deployed.
    """
    metrics = {"weighted_log_loss": weighted_log_loss, "auroc": auroc}
    return {
        name: stratified_bootstrap(metrics, values, labels, n_resamples=n_resamples, seed=seed)
        for name, values in kinds.items()
    }


def _share_of_one_class(proba: npt.NDArray[np.float64], oof: OutOfFoldPredictions) -> float:
    sets = cross_fitted_sets(proba, oof.labels, oof.fold[0], coverage=COVERAGE)
    return float((sets.sum(axis=1) == 1).mean())


def _gains(
    kinds: Mapping[str, npt.NDArray[np.float64]],
    labels: npt.NDArray[np.int64],
    *,
    n_resamples: int,
    seed: int,
) -> Scores:
    """How much better the calibrated predictions are than each baseline."""
    shortcuts = (name for name in kinds if name.startswith(SHORTCUT))
    names = ("mean + logistic", "cohort prior", "constant", *shortcuts)
    return paired_differences(
        kinds["calibrated"],
        {name: kinds[name] for name in names},
        labels,
        n_resamples=n_resamples,
        seed=seed,
    )


def _write_history(path: Path, oof: OutOfFoldPredictions, final: Ensemble) -> None:
    rows: list[dict[str, object]] = [
        {"repeat": repeat, "fold": fold, **asdict(record)}
        for (repeat, fold), records in oof.history.items()
        for record in records
    ]
    rows += [{"repeat": "", "fold": "deployed", **asdict(record)} for record in final.history]
    table = pd.DataFrame(rows).rename(columns={"val_loss": "stop_loss"})
    write_table(path, table, float_format="%.6g")


def _plain(scores: Scores) -> dict[str, object]:
    return {
        name: {metric: score.as_dict() for metric, score in of_kind.items()}
        for name, of_kind in scores.items()
    }


def _versions() -> dict[str, str]:
    names: Sequence[str] = ("mil-slides", "torch", "numpy", "scipy", "h5py")
    versions = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}
