"""``mil train``: bags and labels into a calibrated model bundle."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli.console import print_json, progress_bar, spinner, stdout
from cli.options import (
    FOLDS,
    Address,
    BagsSource,
    Calibrator,
    CohortTable,
    Device,
    EngineChoice,
    EngineName,
    FilterFile,
    JsonOutput,
    Labels,
    flag,
)
from cli.shared.arguments import reject_options, require_ray_for_address
from cli.shared.executors import absolute_path, print_warning
from cli.shared.multilabel import read_labels, train_labels

if TYPE_CHECKING:
    from mil.data.bags import PatientBags
    from mil.data.cohort import Cohort
    from mil.training_run import TrainingSummary

__all__ = ["By", "train"]

_DEFAULT_FOLDS = 5


class By(StrEnum):
    """What folds are made of."""

    patient = "patient"
    centre = "centre"


def train(
    context: typer.Context,
    *,
    cohort: CohortTable = Path("train.csv"),
    labels: Labels = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table with `image_id` (or `slide_id`) and `patient_id` of slides that fit the "
            "whitening of embeddings and teach no class; copies of the cohort's are left out.",
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
            help="Kind of head: `gated`, `attention`, `mean`, `max`, `lse`, `clam`, `additive`, "
            "`dsmil`, `tokens`, `transmil`, or `ordered` for slices of a scan.",
        ),
    ] = "gated",
    overwrite: Annotated[bool, flag("--overwrite", "Replace a run of that name.")] = False,
    as_json: JsonOutput = False,
    by: Annotated[
        By,
        typer.Option(
            rich_help_panel=FOLDS,
            help="Folds of patients, stratified by class and centre; or leave one `centre` out "
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
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            metavar="N",
            rich_help_panel=FOLDS,
            help="Cross-validations with other folds.",
        ),
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=FOLDS,
            help="Folds, starts and batches follow it.",
        ),
    ] = 0,
    calibrator: Calibrator = "platt",
    nested: Annotated[
        bool,
        flag(
            "--nested",
            "Score with calibrators fitted by a cross-validation inside each fold; with 5 folds 5 "
            "times as long.",
            panel=FOLDS,
        ),
    ] = False,
    tile_filter: FilterFile = None,
    image_labels: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table with `slide_id`, `source` and 0 or 1 for images of series, in a column "
            "named after each label (or the last class, or `label`): teaches the attention, too.",
        ),
    ] = None,
    device: Device = "auto",
    engine: EngineChoice = EngineName.local,
    address: Address = None,
) -> None:
    """Train heads under patient-grouped cross-validation, calibrate them, write one model bundle.

    Every patient is judged by heads that never saw it, neither in weights nor in early stopping
    nor in scaling. On those out-of-fold logits the calibrator is fitted; the scores printed are
    cross-fitted, that is, a patient's probability comes from a calibrator fitted on other folds, or
    nested with `--nested`. A training that was killed goes on at the fold it was in when it is
    started again with the same settings.

    With `--filter`, tiles that the filter drops are left out and counted; `mil infer` and `mil
    explain` will leave them out alike. Where it learned from slides of these patients, each fold
    uses one fitted again without those it judges.

    With `--labels`, each label has heads, a calibrator and a report of its own in one run, all on
    the same folds, which are stratified over all labels. A scan may have one row a slice: it has a
    label if any of its slices does.

    Example: `mil train --cohort train.csv --bags bags --run runs/first`

    Example: `mil train --by centre --run runs/new-centres`

    Example: `mil train --repeats 20 --engine ray --address head:6379`

    Example: `mil train --unlabelled other.csv`

    Example: `mil train --labels any,epidural,subdural --head ordered --run runs/ct`

    Exit codes: 0 done, 1 table, bags or settings cannot be used, 2 usage.
    """
    require_ray_for_address(engine, address)
    if by is By.centre:
        reject_options(
            {"--folds": folds}, "goes with --by patient: by centre there is one fold a centre"
        )
    if labels is not None or tile_filter is not None:
        reject_options({"--unlabelled": unlabelled}, "does not go with --labels or --filter")
    if tile_filter is not None:
        reject_options({"--image-labels": image_labels}, "does not go with --filter")
    with spinner("loading torch"):
        from features.bags.store import open_bags
        from features.embedding.results import read_failures
        from features.filters.classifier import read_filter
        from features.parallel.devices import choose_device
        from mil.data.bags import load_patient_bags
        from mil.data.cohort import read_cohort
        from mil.data.filtered_bags import apply_tile_filter
        from mil.training.checkpoints import run_lock
        from mil.training.config import TrainConfig
        from mil.training.fold_jobs import ExecutorFactory, local_fold_executor, ray_fold_executor

    several = None if labels is None else read_labels(cohort, labels)
    table = read_cohort(cohort, labelled=True) if several is None else several.patients
    folder = run or _next_run()
    context.with_resource(run_lock(folder))  # until the command ends
    _require_free(folder, overwrite=overwrite)
    with spinner("reading bags"):
        places = open_bags(bags if engine is EngineName.local else absolute_path(bags))
        loaded = apply_tile_filter(
            load_patient_bags(table, places), table, bags_dir=bags,
            tile_filter=None if tile_filter is None else read_filter(tile_filter),
        )  # fmt: skip
        others = read_cohort(unlabelled, labelled=False) if unlabelled else None
        strangers = load_patient_bags(others, places) if others else None
    settings = TrainConfig(head=head, device=str(choose_device(device)))
    executor: ExecutorFactory = local_fold_executor
    if engine is EngineName.ray:
        executor = partial(
            ray_fold_executor, address=address, device=settings.device, on_warning=print_warning
        )
    options: dict[str, Any] = {
        "by": by.value, "n_folds": folds or _DEFAULT_FOLDS, "n_repeats": repeats, "seed": seed,
        "config": settings, "calibrator": calibrator, "nested": nested, "executor": executor,
        "failures": read_failures(bags),
    }  # fmt: skip
    if several is not None:
        train_labels(several, loaded, folder, image_labels=image_labels, as_json=as_json, **options)
    else:
        _train_classes(
            table, loaded, folder, image_labels=image_labels, as_json=as_json,
            unlabelled=strangers, **options,
        )  # fmt: skip


def _train_classes(
    cohort: Cohort,
    bags: PatientBags,
    run_dir: Path,
    *,
    image_labels: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train one run and print what it came to; ``options`` go to ``train_run``."""
    from mil.data.instance_labels import read_instance_labels
    from mil.training_run import train_run

    if image_labels is not None:
        shown = read_instance_labels(image_labels, [cohort.classes[-1], "label"])
        bags = bags.with_instance_labels(shown)
    with progress_bar("heads") as bars:
        task = bars.add_task("training", total=None)
        summary = train_run(
            cohort,
            bags,
            run_dir,
            **options,
            on_head=lambda done, total: bars.update(task, completed=done, total=total),
            on_step=lambda what: bars.update(task, description=what),
        )
    for note in summary.notes:
        print_warning(note)
    if as_json:
        print_json(summary.as_dict())
    else:
        _print_summary(summary)


def _next_run() -> Path:
    """The first of ``runs/run-1``, ``runs/run-2`` and so on that is not there."""
    return next(p for p in (Path("runs") / f"run-{n}" for n in count(1)) if not p.exists())


def _require_free(run: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless asked to replace a finished run in it."""
    from mil.errors import RunError

    if run.exists() and not run.is_dir():
        raise RunError(run, actual="a file", expected="a folder for the run")
    if run.is_dir() and any(run.iterdir()):
        if not overwrite:
            raise RunError(
                run,
                actual="a folder that is not empty",
                expected="a new one",
                hint="Name another with --run, or replace it with --overwrite.",
            )
        if not any((run / name).is_file() for name in ("model.json", "labels.json")):
            raise RunError(
                run,
                actual="a folder with other things in it",
                expected="a finished run to overwrite",
                hint="Name another with --run.",
            )


def _print_summary(summary: TrainingSummary) -> None:
    from mil.inference.conformal import COVERAGE

    table = Table(
        title=f"{summary.n_patients} patients, {summary.n_tiles:,} tiles, head {summary.head!r}",
        title_justify="left",
    )
    table.add_column("")
    for name in ("weighted log loss", "AUROC"):
        table.add_column(name, justify="right")
    for name, scores in summary.scores.items():
        table.add_row(name, *(str(score) for score in scores.values()))
    stdout.print(table)
    stdout.print(
        "Intervals: 95 %, class-stratified bootstrap over patients; the variance of training is "
        "not in them."
    )
    kept = summary.guaranteed
    told = ", ".join(f"{name} {share:.2f}" for name, share in kept.items()) if kept else "none"
    stdout.print(
        f"Prediction sets that aim at {COVERAGE:g} leave one class to {summary.one_class:.2f} of "
        f"the patients; guaranteed coverage: {told}",
    )
    stdout.print(f"The run lies in {summary.path}")
