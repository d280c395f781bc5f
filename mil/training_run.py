"""Training of a run: bags and labels into a calibrated model bundle with scores and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.special import softmax

from features.bags.store import open_bags
from features.filters.classifier import read_filter
from features.utils.files import atomic_folder, atomic_write, check_folder
from features.utils.tables import write_table
from mil.data.bags import PatientBags, load_patient_bags, read_embed_failures
from mil.data.cohort import Cohort, Columns, cohort_notes, read_cohort
from mil.data.covariates import check_covariates, missing_code_notes, with_covariates
from mil.data.filtered_bags import apply_tile_filter
from mil.data.instance_labels import read_instance_labels
from mil.data.splits import Fold, SplitBy, read_folds, split_notes, write_folds
from mil.errors import InputError
from mil.evaluation.baseline_models import MEAN_LOGISTIC
from mil.evaluation.baselines import (
    BaselineComparison,
    decisive_comparison,
    embedding_baselines,
)
from mil.evaluation.metrics import Interval
from mil.evaluation.run_scores import gains_of_kinds, score_kinds, with_baselines
from mil.inference.assembly import assemble_bundle
from mil.inference.bundle import ModelBundle, load_bundle, save_bundle, write_json
from mil.inference.conformal import COVERAGE, cross_fitted_sets
from mil.inference.contributions import learner_weights
from mil.reporting.learners import learner_caveats
from mil.reporting.model_card import write_model_card
from mil.reporting.run_report import collect_report_data, write_report, write_report_data
from mil.reporting.run_report.caveats import run_caveats, unlabelled_caveats
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.covariates import constant_covariates
from mil.training.cross_validation import (
    OutOfFoldPredictions,
    calibrated_probabilities,
    cross_fitted_probabilities,
    cross_validate,
    nested_calibrators,
)
from mil.training.cv_plan import CrossValidationPlan
from mil.training.ensemble import Ensemble, train_ensemble
from mil.training.fold_jobs import ExecutorFactory, local_fold_executor
from mil.training.pair_folds import pair_calibrators

__all__ = ["TrainingSummary", "load_training_bags", "train_run"]

Scores = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSummary:
    """Summary of a finished training.

    Attributes
    ----------
    path
        Folder of the run.
    head
        Kind of head.
    n_patients, n_tiles
        Patients with tiles, and all tiles.
    scores
        Scores with intervals, by kind of prediction and by metric; all out-of-fold.
    gains
        By how much the calibrated predictions are better than each baseline, by metric; paired.
    one_class
        Share of the patients whose prediction set at the usual coverage holds one class.
    planned
        Coverage of each class that such sets reach for new patients in nine of ten cohorts; None by
        centre, and where an earlier version trained the run.
    guaranteed
        Coverage of each class that they keep on average over cohorts; None by centre.
    notes
        Caveats for the reader of the scores, such as slides without a bag.
    learners
        Weight of each learner of a stack, by name; empty for a single head.
    """

    path: Path
    head: str
    n_patients: int
    n_tiles: int
    scores: Scores
    gains: Scores
    one_class: float
    planned: Mapping[str, float] | None
    guaranteed: Mapping[str, float] | None
    notes: tuple[str, ...]
    learners: Mapping[str, float]

    @property
    def comparison(self) -> BaselineComparison:
        """Comparison with the best baseline on pooled embeddings, by weighted log loss.

        By AUROC where a baseline is better beyond its interval by that alone.
        """
        return decisive_comparison(self.gains)

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "run": str(self.path),
            "head": self.head,
            "n_patients": self.n_patients,
            "n_tiles": self.n_tiles,
            "scores": _plain(self.scores),
            "gains": _plain(self.gains),
            "sets": {
                "coverage": COVERAGE,
                "one_class": self.one_class,
                "coverage_of_most_cohorts": self.planned,
                "guaranteed": self.guaranteed,
            },
            "notes": list(self.notes),
            "learners": dict(self.learners),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, path: Path) -> TrainingSummary:
        """Return the summary of :meth:`as_dict`, of a run in the folder ``path``.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the values are not those of a summary.
        """
        return cls(
            path=path,
            head=values["head"],
            n_patients=values["n_patients"],
            n_tiles=values["n_tiles"],
            scores=_intervals(values["scores"]),
            gains=_intervals(values["gains"]),
            one_class=values["sets"]["one_class"],
            planned=values["sets"].get("coverage_of_most_cohorts"),
            guaranteed=values["sets"]["guaranteed"],
            notes=tuple(values["notes"]),
            learners=values["learners"],
        )


def _no_progress(*_: object) -> None:
    """Ignore progress."""


def load_training_bags(
    cohort: Cohort, bags_dir: Path, *, tile_filter: str | Path | None = None
) -> PatientBags:
    """Read the bags of a cohort, shape (tiles, dim) per patient, behind their tile filter.

    ``tile_filter`` is the file of a filter to apply when tiles are read; None for none.

    Raises
    ------
    BagError
        If no slide has a bag, a bag is damaged, or two bags were made differently.
    FilterError
        If the filter cannot be applied to these bags.
    """
    return apply_tile_filter(
        load_patient_bags(cohort, open_bags(bags_dir)),
        cohort,
        bags_dir=bags_dir,
        tile_filter=None if tile_filter is None else read_filter(Path(tile_filter)),
    )


def train_run(
    cohort: str | Path | Cohort,
    bags: str | Path | PatientBags,
    run_dir: str | Path,
    *,
    config: TrainConfig | None = None,
    by: SplitBy = "patient",
    n_folds: int = 5,
    n_repeats: int = 1,
    seed: int = 0,
    calibrator: str = "platt",
    nested: bool = False,
    folds: Sequence[Fold] | None = None,
    folds_of: str | Path | None = None,
    tile_filter: str | Path | None = None,
    columns: Columns | None = None,
    covariates: Sequence[str] = (),
    unlabelled: str | Path | PatientBags | None = None,
    image_labels: str | Path | None = None,
    failures: Mapping[str, str] | None = None,
    executor: ExecutorFactory = local_fold_executor,
    n_resamples: int = 1000,
    report: bool | Callable[[Path], object] = True,
    settings: str = "",
    on_head: Callable[[int, int], None] = _no_progress,
    on_step: Callable[[str], None] = _no_progress,
) -> TrainingSummary:
    """Train, calibrate and write a run, as ``mil train`` does.

    The folder appears when the run is complete; only then is an older run of that name replaced.
    Results of finished folds are kept in a hidden folder next to it until then: after a kill, the
    same call continues with them and gives the same bytes.

    Parameters
    ----------
    cohort
        CSV table of slides, patients and labels, see :func:`mil.data.cohort.read_cohort`; or a
        cohort.
    bags
        Folder or packed store of their bags; or bags, shape (tiles, dim) per patient.
    run_dir
        Folder of the run.
    config
        Hyper-parameters; the default ones by default.
    by
        Stratified folds of patients, or leave one centre out.
    n_folds, n_repeats
        Number of folds, and of cross-validations with other folds.
    seed
        Seeds everything random.
    calibrator
        Name, see :func:`mil.calibration.build_calibrator`.
    nested
        Score with calibrators fitted on a cross-validation within each fold's training patients,
        which trains ``n_folds`` more ensembles per fold.
    folds
        Folds of the patients with tiles; made from the options above by default.
    folds_of
        Folder of a finished run of the same patients, whose folds are taken: then ``by``,
        ``n_folds`` and ``n_repeats`` are those of that run.
    tile_filter
        File of a filter of tiles, see :func:`load_training_bags`; only where ``bags`` is a path.
    columns
        Names of columns of the tables by role, see :data:`mil.data.cohort.ROLES`, where they have
        other names.
    covariates
        Clinical columns of the table that one more learner of the stack uses; those of a cohort
        that has some already (:func:`mil.data.covariates.with_covariates`) by default.
    unlabelled
        Table of further slides, or their bags, that the whitening is also fitted on. Patients of
        the cohort are left out, see :meth:`mil.data.bags.PatientBags.with_unlabelled`.
    image_labels
        Table of labels of single images that also supervise the attention, in a column of the last
        class's name or ``label``.
    failures
        Reasons why slides have no bag, by slide id, for the report; read from ``embed.csv`` where
        ``bags`` is a path.
    executor
        Opens the workers that train the folds. The deployed ensemble is trained in this process.
    n_resamples
        Bootstrap resamples for the 95 % intervals of scores.
    report
        Draw the report, ``report.html``; or a function that draws it into a folder, which becomes
        the run afterwards.
    settings
        Text of ``settings.toml``, from which ``mil train --config`` trains the same run; empty for
        no such file.
    on_head
        Called with the number of heads trained, and of all heads.
    on_step
        Called with the name of each step but the training of heads.

    Raises
    ------
    InputError
        If ``tile_filter`` or a table of unlabelled slides is given with bags that were read.
    TableError, CohortError
        If a table cannot be used.
    BagError, FilterError
        If bags or filter cannot be used.
    RunError
        If ``folds_of`` is not a finished run.
    SplitError
        If a class has too few patients with tiles, or the folds of ``folds_of`` are of others.
    CalibrationError
        If the calibrator is unknown or too few patients of a class are left to calibrate on.
    OutputError
        If the folder cannot be written.
    """
    run_dir = Path(run_dir)
    check_folder(run_dir)  # before the training, not after it
    cohort = _sorted_cohort(cohort, columns, covariates)
    if not isinstance(bags, PatientBags):
        failures = read_embed_failures(Path(bags))
    bags, unlabelled = _read_bags(
        cohort, bags, unlabelled, tile_filter=tile_filter, columns=columns
    )
    if image_labels is not None:
        labels = read_instance_labels(Path(image_labels), [cohort.classes[-1], "label"])
        bags = bags.with_instance_labels(labels)
    unlabelled_notes: tuple[str, ...] = ()
    if unlabelled is not None:
        unlabelled_notes = unlabelled_caveats(bags, unlabelled)
        bags = bags.with_unlabelled(unlabelled)
    if folds_of is not None:
        by, n_repeats, folds = _read_folds_of(Path(folds_of), cohort, bags)
    plan = CrossValidationPlan.build(
        cohort, bags, folds, by=by, n_folds=n_folds, n_repeats=n_repeats, nested=nested,
        config=config or TrainConfig(), seed=seed, calibrator=calibrator,
    )  # fmt: skip
    covariate_notes = check_covariates(plan.cohort) + missing_code_notes(plan.cohort)
    numbers = count(1)

    def count_head() -> None:
        on_head(next(numbers), plan.n_heads)

    checkpoints = Checkpoints(run_dir.with_name(f".{run_dir.name}.part"), bags)
    with executor(bags) as workers:
        oof = cross_validate(
            bags, plan.cohort, plan.folds, config=plan.config, seed=seed, on_head=count_head,
            checkpoints=checkpoints, executor=workers,
        )  # fmt: skip
        calibrators = nested_calibrators(
            bags, plan.cohort, plan.folds if nested else (), inner=plan.inner, config=plan.config,
            seed=seed, calibrator=calibrator, on_head=count_head, checkpoints=checkpoints,
            executor=workers,
        ) or pair_calibrators(
            bags, plan.cohort, plan.folds, plan.pairs, config=plan.config, seed=seed,
            calibrator=calibrator, on_head=count_head, checkpoints=checkpoints, executor=workers,
        )  # fmt: skip
    proba = {
        "calibrated": cross_fitted_probabilities(oof, calibrator=calibrator),
        "raw": softmax(oof.raw_logits, axis=2),
    }
    if nested:
        proba["cross-fitted"] = proba["calibrated"]
        proba["calibrated"] = calibrated_probabilities(oof, calibrators)
    deployed = train_ensemble(
        bags.subset(plan.cohort.patient_ids),
        dict(zip(plan.cohort.patient_ids, plan.cohort.labels.tolist(), strict=True)),
        n_classes=len(plan.cohort.classes),
        config=plan.config,
        seed=(seed, 2),
        on_head=count_head,
    )
    on_step("scoring")
    baselines = embedding_baselines(bags, oof, calibrator=calibrator, seed=seed)
    proba[MEAN_LOGISTIC] = baselines[MEAN_LOGISTIC]
    kinds = with_baselines(plan, oof, {**proba, **baselines})
    scores = score_kinds(kinds, oof.labels, n_resamples=n_resamples, seed=seed)
    gains = gains_of_kinds(kinds, oof.labels, n_resamples=n_resamples, seed=seed)
    bundle = assemble_bundle(
        plan, oof, deployed, proba["calibrated"], nested=calibrators, path=run_dir
    )
    notes = (
        *cohort_notes(cohort),
        *run_caveats(cohort, bags, oof, plan.config),
        *unlabelled_notes,
        *split_notes(plan.cohort, plan.folds, by=by),
        *learner_caveats(bundle),
        *covariate_notes,
        *constant_covariates(oof.covariates),
    )
    on_step("drawing the report")
    with atomic_folder(run_dir) as temporary:
        _write_course(temporary, plan, oof, deployed, settings=settings)
        _write_scores(temporary / "scores.json", bundle, scores, gains, nested=nested)
        write_model_card(temporary / "MODEL_CARD.md", bundle, scores)
        data = collect_report_data(cohort, bags, oof, proba, notes=notes, failures=failures or {})
        write_report_data(temporary, data)
        save_bundle(replace(bundle, path=temporary))
        _draw_report(temporary, report=report, name=run_dir.name)
    checkpoints.discard()
    sets = cross_fitted_sets(
        proba["calibrated"][0], oof.labels, oof.fold[0], coverage=COVERAGE
    )  # (patients, classes)
    return TrainingSummary(
        path=run_dir,
        head=plan.config.head,
        n_patients=len(oof.patient_ids),
        n_tiles=sum(bags.n_tiles.values()),
        scores=scores,
        gains=gains,
        one_class=float((sets.sum(axis=1) == 1).mean()),
        planned=bundle.coverage_of_most_cohorts(COVERAGE),
        guaranteed=bundle.guaranteed_coverage(COVERAGE),
        notes=notes,
        learners=learner_weights(bundle),
    )


def _draw_report(folder: Path, *, report: bool | Callable[[Path], object], name: str) -> None:
    if callable(report):
        report(folder)
    elif report:
        write_report(folder, name=name)


def _sorted_cohort(
    cohort: str | Path | Cohort, columns: Columns | None, covariates: Sequence[str]
) -> Cohort:
    """Return the cohort in the order of ids, read where it is a path."""
    if not isinstance(cohort, Cohort):
        cohort = read_cohort(Path(cohort), labelled=True, columns=columns)
    cohort = with_covariates(cohort, covariates, columns=columns)
    return cohort.sorted_by_id()


def _read_folds_of(
    run_dir: Path, cohort: Cohort, bags: PatientBags
) -> tuple[SplitBy, int, tuple[Fold, ...]]:
    """Return how a finished run was split, its number of repeats, and its folds."""
    by: SplitBy = "centre" if load_bundle(run_dir).settings["by"] == "centre" else "patient"
    usable = cohort.subset(bags.nonempty())
    folds = read_folds(run_dir / "folds.csv", usable, linked=bags.linked_patients())
    return by, 1 + max(fold.repeat for fold in folds), folds


def _read_bags(
    cohort: Cohort,
    bags: str | Path | PatientBags,
    unlabelled: str | Path | PatientBags | None,
    *,
    tile_filter: str | Path | None,
    columns: Columns | None,
) -> tuple[PatientBags, PatientBags | None]:
    """Return the bags of the cohort and of unlabelled patients, read where they are paths."""
    if not isinstance(bags, PatientBags):
        store = load_training_bags(cohort, Path(bags), tile_filter=tile_filter)
        if isinstance(unlabelled, str | Path):
            others = read_cohort(Path(unlabelled), labelled=False, columns=columns).sorted_by_id()
            unlabelled = load_patient_bags(others, open_bags(Path(bags)))
        return store, unlabelled
    if tile_filter or isinstance(unlabelled, str | Path):
        raise InputError(
            "bags", actual="bags that were read", expected="their path, to read other bags from it",
            hint="Give the path, or 'unlabelled' as bags and bags behind their filter.",
        )  # fmt: skip
    return bags, unlabelled


def _write_scores(
    path: Path, bundle: ModelBundle, scores: Scores, gains: Scores, *, nested: bool
) -> None:
    kind = "nested" if nested else "cross-fitted"
    content = {"kind": kind, **_plain(scores), "gains": _plain(gains)}
    if bundle.base_learners is not None:
        content["learners"] = {
            name: {"weight": weight, "constant": name in bundle.base_learners.constant}
            for name, weight in learner_weights(bundle).items()
        }
    write_json(path, content)


def _write_course(
    folder: Path,
    plan: CrossValidationPlan,
    oof: OutOfFoldPredictions,
    deployed: Ensemble,
    *,
    settings: str,
) -> None:
    """Write folds, learning curves and, if there are any, the settings."""
    write_folds(folder / "folds.csv", plan.folds)
    _write_history(folder / "history.csv", oof, deployed)
    if settings:
        with atomic_write(folder / "settings.toml") as temporary:
            temporary.write_text(settings, encoding="utf-8")


def _write_history(path: Path, oof: OutOfFoldPredictions, deployed: Ensemble) -> None:
    rows: list[dict[str, object]] = [
        {"repeat": repeat, "fold": fold, **asdict(record)}
        for (repeat, fold), records in oof.history.items()
        for record in records
    ]
    rows += [{"repeat": "", "fold": "deployed", **asdict(record)} for record in deployed.history]
    table = pd.DataFrame(rows).rename(columns={"val_loss": "stop_loss"})
    write_table(path, table, float_format="%.6g")


def _plain(scores: Scores) -> dict[str, object]:
    return {
        name: {metric: score.as_dict() for metric, score in of_kind.items()}
        for name, of_kind in scores.items()
    }


def _intervals(values: Mapping[str, Any]) -> Scores:
    """Return the scores or gains of :func:`_plain`."""
    return {
        name: {metric: Interval.from_dict(score) for metric, score in of_kind.items()}
        for name, of_kind in values.items()
    }
