"""``mil infer``: patients into calibrated probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import EXIT_PARTLY_FAILED, print_json, print_next, spinner, stdout
from cli.options import (
    Address,
    BagsSources,
    Batch,
    ColumnNames,
    Devices,
    EngineChoice,
    EngineName,
    JsonOutput,
    MppTable,
    PatientTable,
    RunDir,
    SlideMpp,
    Weights,
    WorkersPerDevice,
    flag,
)
from cli.shared.arguments import (
    check_output,
    given_options,
    only_folder,
    parse_columns,
    path_beside,
    reject_options,
    require_one_resolution,
    require_ray_for_address,
)
from cli.shared.combination import infer_combination
from cli.shared.embed_missing import embed_missing
from cli.shared.executors import checkpoint_paths
from cli.shared.multilabel import infer_labels, shares_of
from cli.shared.next_slides import source_option
from cli.shared.output import print_caveats, print_guarantee
from cli.shared.runs import add_run_covariates, is_combination, newest_run
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.bags.bag import BagRef
    from mil.arrays import Floats
    from mil.data.cohort import Cohort
    from mil.inference.bundle import ModelBundle

__all__ = ["infer"]


def infer(
    context: typer.Context,
    *,
    patients: PatientTable,
    columns: ColumnNames = None,
    run: RunDir = None,
    bag_folders: BagsSources = None,
    slides: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Slides; those without a bag are embedded as the run's bags were.",
        ),
    ] = None,
    series: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|FOLDER",
            help="Series of images, as for `mil embed --series`; those without a bag are embedded "
            "as the run's bags were.",
        ),
    ] = None,
    slide_mpp: SlideMpp = None,
    mpp_table: MppTable = None,
    out: Annotated[Path, typer.Option(metavar="CSV", help="File of the predictions.")] = Path(
        "submission.csv"
    ),
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Class shares that the probabilities are for: `balanced`, `cohort` (as in "
            "training) or shares such as `CE=0.7,LAA=0.3`; default: `balanced`, of a run of "
            "several labels `cohort`.",
            show_default=False,
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=0.999,
            metavar="SHARE",
            help="Share of each class's patients whose prediction set should hold their class; "
            "default: 0.9.",
            show_default=False,
        ),
    ] = None,
    abstain: Annotated[
        bool,
        flag(
            "--abstain",
            "Mark patients who need review in the details: those less certain than the point that "
            "the run chose on its curve of errors (see its report), or unlike the training "
            "patients. Probabilities stay as they are.",
        ),
    ] = False,
    typicality: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=0.5,
            metavar="LEVEL",
            help="Mark patients whose typicality, the p-value of being like the training patients, "
            "is at most this; of patients like them, that share is marked. Default: 0.05, or the "
            "smallest that the run can reach.",
            show_default=False,
        ),
    ] = None,
    tta: Annotated[
        bool,
        flag(
            "--tta",
            "Average over the views of tiles (test-time augmentation), calibrated for it; for "
            "runs trained on bags with views.",
        ),
    ] = False,
    as_json: JsonOutput = False,
    weights: Weights = None,
    batch: Batch = 64,
    device: Devices = "auto",
    engine: EngineChoice = EngineName.local,
    address: Address = None,
    workers: WorkersPerDevice = None,
) -> None:
    """Write one row of calibrated probabilities per patient.

    The file holds `patient_id` and one column per class; rows sum to 1 and keep the table's order.
    A patient without tissue, or without a bag that can be used, gets the prior, and a status. The
    details in `<out>.details.csv` list for each patient the slides and tiles used, the classes that
    cannot be ruled out (the prediction set, at `--coverage`), the spread of the heads, the share of
    the attention of each slide, and whether the run was trained on the patient or on one of its
    slides; if so, the out-of-fold probability is given as well. Patients unlike the training
    patients are marked, and their sets hold all classes.

    With runs combined by `mil combine`, `--bags` is given for each encoder (or names a folder with
    one folder each), and `--slides` or `--series` embeds what is missing for each; `--weights` is
    given for each backbone, in the order of the runs.

    A run with covariates reads their columns from the table of patients, empty cells as missing.
    Categories that no training patient had count as missing, and are named.

    Example: `mil infer --patients test.csv --slides slides/ --out submission.csv`

    Example: `mil infer --patients test.csv --coverage 0.8 --abstain`

    Example: `mil infer --run runs/all --patients test.csv --bags bags/small --bags bags/large`

    Example: `mil infer --patients test.csv --series scans/ --out submission.csv`

    Exit codes: 0 all done, 1 nothing was written, 2 usage, 3 written, but some patients got the
    prior, or were predicted from part of their slides.
    """
    names = parse_columns(columns)
    details = path_beside(out, ".details.csv")
    check_output(out, [patients, series, mpp_table], suffix=".csv", beside=[details])
    require_one_resolution(slide_mpp=slide_mpp, mpp_table=mpp_table)
    require_ray_for_address(engine, address)
    if slides is not None and series is not None:
        raise typer.BadParameter("give either --slides or --series", param_hint="--series")
    options: dict[str, Any] = {
        "device": device, "engine": engine.value, "address": address, "n_workers": workers,
        "batch_tiles": batch,
    }  # fmt: skip
    of_slides: dict[str, Any] = {"slide_mpp": slide_mpp, "mpp_table": mpp_table}
    with spinner("loading the run"):
        from features.bags.store import open_bags
        from mil.data.cohort import read_cohort
        from mil.inference.bundle import load_bundle
        from mil.multilabel.train import is_multilabel_bundle, load_multilabel_bundle

    chosen = run or newest_run(several_labels=True)
    folders = bag_folders or [Path("bags")]
    if is_combination(chosen):
        reject_options(
            {"--tta": tta},
            "does not go with combined runs, whose weights are for plain tiles",
        )
        complete = infer_combination(
            chosen, read_cohort(patients, labelled=False, columns=names), folders, out,
            slides=slides, series=series, weights=checkpoint_paths(weights),
            prior=prior or "balanced", coverage=coverage, abstain=abstain,
            typicality=typicality, columns=names, as_json=as_json, **of_slides, **options,
        )  # fmt: skip
        raise typer.Exit(0 if complete else EXIT_PARTLY_FAILED)
    bags = only_folder(folders)
    with spinner("loading the run"):
        several = load_multilabel_bundle(chosen) if is_multilabel_bundle(chosen) else None
        if several is not None:
            reject_options(
                {"--tta": tta, "--abstain": abstain, "--coverage": coverage},
                "does not go with a run of several labels",
            )
        # All labels were trained on the same bags, so the run of any names their settings.
        model = load_bundle(chosen) if several is None else several.bundles[several.names[0]]
        # Invalid options and tables must fail before hours of embedding.
        if model.typicality is not None:
            model.typicality.resolve_level(typicality)
        if tta:
            model.with_view_calibrator()
        stated = prior or ("balanced" if several is None else "cohort")
        shares = model.parse_prior(stated) if several is None else shares_of(several, stated)
        cohort = read_cohort(patients, labelled=False, columns=names)
        cohort = add_run_covariates(model, cohort, columns=names)
        refs = open_bags(bags, may_be_empty=slides is not None or series is not None)
    missing = {name for p in cohort.patients for name in p.slide_ids if name not in refs}
    options["weights"] = checkpoint_paths(weights)
    n_failed = embed_missing(
        model, missing, bags, slides=slides, series=series, **of_slides, **options
    )
    if missing and (slides is not None or series is not None):
        refs = open_bags(bags, may_be_empty=True)
    if several is not None:
        complete = infer_labels(
            several, cohort, refs, out, (stated, shares), typicality=typicality, as_json=as_json
        )
    else:
        complete = _infer_classes(
            model, cohort, refs, out, (stated, shares), coverage=coverage, abstain=abstain,
            typicality=typicality, tta=tta, as_json=as_json,
        )  # fmt: skip
    commands = (
        ["mil score {out} --cohort labels.csv --labels {labels}"]
        if several is not None
        else [
            "mil score {out} --cohort labels.csv",
            "mil explain --run {run} --patients {patients} --bags {bags} {source} {again}",
        ]
    )
    print_next(
        *([] if as_json else commands),
        labels=",".join(several.names if several else ()),
        out=out, run=chosen, patients=patients, bags=bags,
        source=source_option(
            model.fingerprint, bags, {name for p in cohort.patients for name in p.slide_ids},
            slides=slides, series=series,
        ),
        again=given_options(context, "columns", "prior", "tta"),
    )  # fmt: skip
    if n_failed or not complete:
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _infer_classes(
    run: ModelBundle,
    cohort: Cohort,
    refs: Mapping[str, BagRef],
    out: Path,
    prior: tuple[str, Floats],
    *,
    coverage: float | None,
    abstain: bool,
    typicality: float | None,
    tta: bool,
    as_json: bool,
) -> bool:
    """Write predictions and details of a run of classes, and print a summary.

    Return whether all slides of all patients could be used.

    ``prior`` is the text of the option, and its shares, shape (classes,).
    """
    from mil.inference.conformal import COVERAGE
    from mil.inference.output import (
        count_differences,
        covariate_caveats,
        describe_typicality,
        missing_bag_caveats,
        patient_caveats,
        set_caveats,
        typicality_caveats,
        write_details,
        write_predictions,
    )
    from mil.inference.predict import check_any_used, predict

    (stated, shares), coverage = prior, coverage or COVERAGE
    with spinner("predicting"):
        predictions = predict(
            run, cohort, refs, prior=shares, coverage=coverage, tta=tta, typicality=typicality
        )
    check_any_used(predictions, refs, source=cohort.path)
    details = path_beside(out, ".details.csv")
    write_predictions(out, predictions, classes=run.classes)
    write_details(
        details, predictions, classes=run.classes, abstain=abstain,
        typicality=run.typicality is not None,
    )  # fmt: skip
    of_classes = dict(zip(run.classes, map(float, shares), strict=True))
    sets = dict(sorted(Counter(p.set_text for p in predictions).items()))
    guaranteed, planned = run.guaranteed_coverage(coverage), run.coverage_of_most_cohorts(coverage)
    n_review = sum(p.needs_review for p in predictions)
    if as_json:
        print_json({
            "run": str(run.path),
            "out": str(out),
            "details": str(details),
            "n_patients": len(predictions),
            "status": dict(Counter(p.status for p in predictions)),
            "n_seen_in_training": sum(bool(p.matched_training_patient) for p in predictions),
            "problems": {n: str(e) for p in predictions for n, e in p.problems.items()},
            "prior_asked_for": stated,
            "prior": of_classes,
            "coverage": coverage,
            "guaranteed": guaranteed,
            "coverage_of_most_cohorts": planned,
            "sets": sets,
            "typicality": describe_typicality(predictions),
            "differences": count_differences(predictions),
            **({"n_to_look_at": n_review, "abstention": _abstention(run)} if abstain else {}),
            "views_averaged": run.fingerprint.n_views if tta else 0,
        })  # fmt: skip
    else:
        stdout.print(f"{pluralize(len(predictions), 'patients')} into {out} (run {run.path})")
        stdout.print(f"The probabilities are for a prior of {_list(of_classes)} ({stated}).")
        counts = ", ".join(f"{n} {name}" for name, n in sets.items())
        stdout.print(f"Prediction sets with a target coverage of {coverage:g}: {counts}")
        print_guarantee(planned, guaranteed)
        if abstain:
            stdout.print(f"Patients marked for review: {n_review} ({_review_rule(run)})")
        stdout.print(f"Slides, tiles, set, spread and status of each patient: {details}")
    print_caveats((
        *patient_caveats(predictions), *set_caveats(run, coverage), *typicality_caveats(run)
    ))  # fmt: skip
    print_caveats(missing_bag_caveats(predictions, refs))
    print_caveats(covariate_caveats(run, cohort))
    return all(p.status == "ok" for p in predictions)


def _abstention(run: ModelBundle) -> dict[str, float] | None:
    return None if run.abstention is None else run.abstention.as_dict()


def _review_rule(run: ModelBundle) -> str:
    """Return who is marked for review, in words."""
    if run.abstention is None:
        return "whose set does not hold exactly one class"
    chosen = run.abstention
    limit = (
        "" if chosen.risk_at_most is None
        else f" (at most {chosen.risk_at_most:.1%}, the exact {chosen.confidence:.0%} limit)"
    )  # fmt: skip
    return (
        f"confidence below {chosen.threshold:.3f}, unlike the training patients, or one of them; "
        f"of training patients, out-of-fold, {chosen.coverage:.0%} are above it, with "
        f"{chosen.risk:.1%} errors{limit} instead of {chosen.risk_of_all:.1%}"
    )


def _list(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
