"""``mil train``: bags and labels into a calibrated model bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import print_json, print_next, print_numbers, progress_bar, spinner, stdout
from cli.options import (
    FOLDS,
    Address,
    BagsSource,
    Calibrator,
    CohortTable,
    ColumnNames,
    Covariates,
    Device,
    EngineChoice,
    EngineName,
    FilterFile,
    JsonOutput,
    Labels,
    flag,
)
from cli.shared.arguments import (
    given_options,
    parse_columns,
    reject_options,
    require_ray_for_address,
)
from cli.shared.executors import absolute_path, print_warning
from cli.shared.multilabel import read_labels, train_labels
from cli.shared.next_slides import source_option
from cli.shared.output import print_comparison
from cli.shared.runs import require_free
from cli.shared.settings import (
    Assignments,
    ConfigFile,
    check_settings,
    config_fields,
    settings_text,
)
from cli.shared.tracking import load_tracker

if TYPE_CHECKING:
    from mil.data.cohort import Cohort
    from mil.multilabel.table import LabelTable
    from mil.training_run import TrainingSummary

__all__ = ["By", "train"]

_DEFAULT_FOLDS = 5


class By(StrEnum):
    """Kind of folds."""

    patient = "patient"
    centre = "centre"
    american = "center"


def train(
    context: typer.Context,
    *,
    config_file: ConfigFile = None,
    assigned: Assignments = None,
    cohort: CohortTable = Path("train.csv"),
    columns: ColumnNames = None,
    covariates: Covariates = None,
    labels: Labels = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table with `image_id` (or `slide_id`) and `patient_id` of unlabelled slides that "
            "the whitening is also fitted on; copies of the cohort's are left out.",
        ),
    ] = None,
    bags: BagsSource = Path("bags"),
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The run; default: the next `runs/run-N`.", show_default=False
        ),
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="`stack` (attention and convex base learners, weighted by the calibrator), or one "
            "kind of head: `gated`, `attention`, `mean`, `max`, `lse`, `clam`, `additive`, "
            "`dsmil`, `tokens`, `transmil`, or `ordered` for slices of a scan.",
        ),
    ] = "stack",
    track: Annotated[
        str | None,
        typer.Option(
            metavar="mlflow[:URI]",
            show_default=False,
            help="Log curves, scores and settings with MLflow: where its own settings say, "
            "or at an address, e.g. `mlflow:sqlite:///mlflow.db` (needs `mil-slides[mlflow]`).",
        ),
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "Replace a run of that name.")] = False,
    as_json: JsonOutput = False,
    by: Annotated[
        By,
        typer.Option(
            rich_help_panel=FOLDS,
            help="Stratified folds of patients, by class and centre; or leave one `centre` out "
            "(needs `center_id`).",
        ),
    ] = By.patient,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=50,
            metavar="N",
            rich_help_panel=FOLDS,
            show_default=False,
            help=f"Folds of patients; default: {_DEFAULT_FOLDS}.",
        ),
    ] = None,
    folds_of: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            rich_help_panel=FOLDS,
            show_default=False,
            help="Take the folds of another run on the same patients, to compare or combine the "
            "two with another `--seed`.",
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            metavar="N",
            rich_help_panel=FOLDS,
            help="Number of cross-validations, each with other folds.",
        ),
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=FOLDS,
            help="Seed of folds, initial weights and batches.",
        ),
    ] = 0,
    calibrator: Calibrator = "platt",
    nested: Annotated[
        bool,
        flag(
            "--nested",
            "Score with calibrators fitted on a cross-validation within each fold; with 5 folds it "
            "takes about 5 times as long.",
            panel=FOLDS,
        ),
    ] = False,
    tile_filter: FilterFile = None,
    image_labels: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table with `slide_id`, `source` and 0 or 1 for images of series, in a column "
            "named after each label (or the last class, or `label`); they supervise the attention.",
        ),
    ] = None,
    device: Device = "auto",
    engine: EngineChoice = EngineName.local,
    address: Address = None,
) -> None:
    """Train heads under patient-grouped cross-validation, calibrate them, write one model bundle.

    Each patient is predicted by heads trained without it: weights, early stopping and whitening use
    other patients only. The calibrator is fitted on these out-of-fold logits. The scores printed
    are cross-fitted: a patient's probability comes from a calibrator fitted on other folds, or
    nested with `--nested`. If training is killed, the same command with the same settings continues
    with the fold that it had reached.

    With `--filter`, tiles that the filter drops are left out and counted, also by `mil infer` and
    `mil explain`. If the filter was trained on slides of these patients, each fold fits it again
    without its test patients.

    With `--labels`, each label has its own heads, calibrator and report in one run, all on the same
    folds, which are stratified over all labels. A scan may have one row per slice: it has a label
    if any of its slices has it.

    With `--covariates`, the stack has one more learner, for clinical columns, and the report says
    what the slides add to them.

    Example: `mil train --cohort train.csv --bags bags --run runs/first`

    Example: `mil train --by centre --run runs/new-centres`

    Example: `mil train --config study.toml --set learning_rate=0.003 --run runs/faster`

    Example: `mil train --repeats 20 --engine ray --address head:6379`

    Example: `mil train --covariates age,sex,nihss`

    Example: `mil train --unlabelled other.csv`

    Example: `mil train --labels any,epidural,subdural --head ordered --run runs/ct`

    Exit codes: 0 done, 1 table, bags or settings cannot be used, 2 usage.
    """
    check_settings(context, config_file, assigned)
    require_ray_for_address(engine, address)
    log_run = load_tracker(track)
    names = parse_columns(columns)
    by = By.centre if by is By.american else by
    if by is By.centre:
        reject_options(
            {"--folds": folds}, "goes with --by patient: by centre there is one fold per centre"
        )
    if folds_of is not None:
        reject_options(
            {"--folds": folds, "--repeats": repeats > 1, "--by": by is By.centre,
             "--labels": labels},
            "does not go with --folds-of, which states the folds",
        )  # fmt: skip
    if labels is not None or tile_filter is not None:
        reject_options({"--unlabelled": unlabelled}, "does not go with --labels or --filter")
    if tile_filter is not None:
        reject_options({"--image-labels": image_labels}, "does not go with --filter")
    with spinner("loading torch"):
        from cli.shared.report_tissue import draw_report
        from features.parallel.devices import choose_device
        from mil.data.bags import read_embed_failures
        from mil.training.checkpoints import run_lock
        from mil.training.config import TrainConfig
        from mil.training.fold_jobs import local_fold_executor, ray_fold_executor
        from mil.training_run import load_training_bags, train_run

    # Tables are read before the lock makes a folder for the run.
    patients, table = _read_patients(cohort, labels, covariates, names)
    run_dir = run or _next_run()
    context.with_resource(run_lock(run_dir))  # until the command ends
    require_free(run_dir, overwrite=overwrite)
    config = TrainConfig(
        **{**config_fields(context), "head": head, "device": str(choose_device(device))}
    )
    options: dict[str, Any] = {
        "by": by.value, "n_folds": folds or _DEFAULT_FOLDS, "n_repeats": repeats, "seed": seed,
        "config": config, "calibrator": calibrator, "nested": nested,
        "executor": local_fold_executor,
        "settings": settings_text(
            context, config,
            folds=None if by is By.centre or folds_of else folds or _DEFAULT_FOLDS,
        ),
    }  # fmt: skip
    if engine is EngineName.ray:
        bags = absolute_path(bags)
        options["executor"] = partial(
            ray_fold_executor, address=address, device=config.device, on_warning=print_warning
        )
    if table is not None:
        with spinner("reading bags"):
            loaded = load_training_bags(patients, bags, tile_filter=tile_filter)
        train_labels(
            table, loaded, run_dir, bags_dir=bags, image_labels=image_labels, as_json=as_json,
            failures=read_embed_failures(bags), **options,
        )  # fmt: skip
        log_run(run_dir)
        return
    with progress_bar("heads") as bars:
        task = bars.add_task("training", total=None)
        summary = train_run(
            patients,
            bags,
            run_dir,
            tile_filter=tile_filter,
            columns=names,
            unlabelled=unlabelled,
            image_labels=image_labels,
            folds_of=folds_of,
            report=partial(draw_report, bags=bags, name=run_dir.name),
            on_head=lambda done, total: bars.update(task, completed=done, total=total),
            on_step=lambda step: bars.update(task, description=step),
            **options,
        )
    log_run(run_dir)
    for note in summary.notes:
        print_warning(note)
    if as_json:
        print_json(summary.as_dict())
    else:
        _print_summary(summary, bags, again=given_options(context, "columns"))


def _read_patients(
    path: Path, labels: str | None, covariates: str | None, columns: Mapping[str, str]
) -> tuple[Cohort, LabelTable | None]:
    """Return the patients of a table with their covariates, and the table of several labels."""
    from mil.data.cohort import read_cohort
    from mil.data.covariates import parse_covariates, with_covariates

    table = None if labels is None else read_labels(path, labels, columns)
    cohort = read_cohort(path, labelled=True, columns=columns) if table is None else table.patients
    cohort = with_covariates(cohort, parse_covariates(covariates), columns=columns)
    return cohort, None if table is None else replace(table, patients=cohort)


def _next_run() -> Path:
    """Return the first of ``runs/run-1``, ``runs/run-2`` and so on that does not exist."""
    return next(p for p in (Path("runs") / f"run-{n}" for n in count(1)) if not p.exists())


def _coverage_words(summary: TrainingSummary) -> str:
    if summary.planned is None or summary.guaranteed is None:
        return (
            "how often they hold the class of new patients is not known, as for all runs by centre "
            "or with --filter"
        )
    planned, guaranteed = (
        ", ".join(f"{name} {share:.2f}" for name, share in of.items())
        for of in (summary.planned, summary.guaranteed)
    )
    return f"plan with a coverage of {planned} (guaranteed on average: {guaranteed})"


def _print_summary(summary: TrainingSummary, bags: Path, *, again: Sequence[str]) -> None:
    """Print scores, sets and next commands, which repeat the options ``again``."""
    from features.series.config import is_series_fingerprint
    from mil.inference.bundle import load_bundle
    from mil.inference.conformal import COVERAGE
    from mil.reporting.learners import describe_weights

    print_numbers(
        f"{summary.n_patients} patients, {summary.n_tiles:,} tiles, head {summary.head!r}",
        ["", "weighted log loss", "AUROC"],
        ([name, *map(str, scores.values())] for name, scores in summary.scores.items()),
    )
    stdout.print(
        "Intervals: 95 %, class-stratified bootstrap over patients; the variance of training is "
        "not in them."
    )
    print_comparison(summary.comparison)
    if summary.learners:
        stdout.print(describe_weights(summary.learners))
    stdout.print(
        f"Prediction sets that aim at {COVERAGE:g} hold one class for {summary.one_class:.2f} of "
        f"the patients; {_coverage_words(summary)}"
    )
    stdout.print(f"Run: {summary.path}")
    trained = load_bundle(summary.path)
    source = source_option(
        trained.fingerprint, bags, {slide.slide_id for slide in trained.training_slides}
    )
    print_next(
        "open {run}/report.html",
        "mil explain --run {run} --bags {bags} {source}"
        if is_series_fingerprint(trained.fingerprint)
        else "mil view {run} --bags {bags} {source}",
        "mil infer --run {run} --bags {bags} --patients test.csv {again}",
        run=summary.path, bags=bags, source=source, again=again,
    )  # fmt: skip
