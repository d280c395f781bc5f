"""``mil infer``: patients into calibrated probabilities."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import EXIT_PARTLY_FAILED, print_json, spinner, stderr, stdout
from cli.options import (
    BagsPlace,
    Batch,
    Device,
    JsonOutput,
    MppTable,
    PatientTable,
    RunDir,
    SlideMpp,
    Weights,
    Workers,
    flag,
)
from cli.shared.arguments import reject_options, require_one_resolution
from cli.shared.embed_missing import embed_missing_series, embed_missing_slides
from cli.shared.multilabel import infer_labels, shares_of
from cli.shared.runs import newest_run, resolve_prior
from features.utils.hardware import CPU_COUNT
from features.utils.text import pluralize

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mil.data.cohort import Cohort
    from mil.inference.bundle import ModelBundle
    from mil.inference.predict import PatientPrediction

__all__ = ["infer"]


def infer(
    *,
    patients: PatientTable,
    run: RunDir = None,
    bags: BagsPlace = Path("bags"),
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
    out: Annotated[Path, typer.Option(metavar="CSV", help="Where the predictions go.")] = Path(
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
            "Mark patients to look at in the details: those whose set holds not exactly one "
            "class. Probabilities stay as they are.",
        ),
    ] = False,
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
    device: Device = "auto",
    workers: Workers = CPU_COUNT,
) -> None:
    """Write one row of calibrated probabilities for every patient asked for.

    The file holds `patient_id` and one column a class; rows sum to 1 and keep the table's order. A
    patient without tissue or readable slide gets the prior and a status. Beside it,
    `<out>.details.csv` says for each patient which slides and tiles were used, which classes cannot
    be ruled out (its prediction set, at `--coverage`), how far the heads spread, how the attention
    is shared, and whether the run was trained on the patient or on one of its slides; then the
    out-of-fold probability is given as well.

    Example: `mil infer --patients test.csv --slides slides/ --out submission.csv`

    Example: `mil infer --patients test.csv --coverage 0.8 --abstain`

    Example: `mil infer --patients test.csv --series scans/ --out submission.csv`

    Exit codes: 0 all done, 1 nothing was written, 2 usage, 3 written, but slides failed.
    """
    require_one_resolution(slide_mpp=slide_mpp, mpp_table=mpp_table)
    if slides is not None and series is not None:
        raise typer.BadParameter("give either --slides or --series", param_hint="--series")
    with spinner("loading the run"):
        from features.bags.store import open_bags
        from mil.data.cohort import read_cohort
        from mil.inference.bundle import load_bundle
        from mil.multilabel.train import is_multilabel_bundle, load_multilabel_bundle

        chosen = run or newest_run(several_labels=True)
        several = load_multilabel_bundle(chosen) if is_multilabel_bundle(chosen) else None
        if several is not None:
            reject_options(
                {"--tta": tta, "--abstain": abstain, "--coverage": coverage},
                "does not go with a run of several labels",
            )
        # All labels were trained on the same bags, so any of their runs tells how to make more.
        model = load_bundle(chosen) if several is None else several.runs[several.names[0]]
        if tta:
            model.with_view_calibrator()  # refused before slides are embedded, as is a prior
        stated = prior or ("balanced" if several is None else "cohort")
        shares = resolve_prior(model, stated) if several is None else shares_of(several, stated)
        cohort = read_cohort(patients, labelled=False)
        if slides is None and series is None:
            open_bags(bags)  # refused where there is none: all patients would get the prior
    n_failed = _embed_missing(
        model, cohort, bags, slides=slides, series=series, weights=weights, slide_mpp=slide_mpp,
        mpp_table=mpp_table, device=device, workers=workers, batch=batch,
    )  # fmt: skip
    if several is not None:
        _warn(infer_labels(several, cohort, bags, out, (stated, shares), as_json=as_json))
    else:
        _infer_classes(
            model, cohort, bags, out, (stated, shares), coverage=coverage, abstain=abstain,
            tta=tta, as_json=as_json,
        )  # fmt: skip
    if n_failed:
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _infer_classes(
    run: ModelBundle,
    cohort: Cohort,
    bags: Path,
    out: Path,
    prior: tuple[str, npt.NDArray[np.float64]],
    *,
    coverage: float | None,
    abstain: bool,
    tta: bool,
    as_json: bool,
) -> None:
    """Write predictions and details of a run of classes, and tell what they came to.

    ``prior`` is as it was stated, and as shares, shape (classes,).
    """
    from mil.inference.conformal import COVERAGE
    from mil.inference.predict import predict_patients, write_details, write_predictions

    (stated, shares), coverage = prior, coverage or COVERAGE
    with spinner("predicting"):
        predictions = predict_patients(run, cohort, bags, prior=shares, coverage=coverage, tta=tta)
    details = out.with_name(f"{out.stem}.details.csv")
    write_predictions(out, predictions, classes=run.classes)
    write_details(details, predictions, classes=run.classes, abstain=abstain)
    summary = {
        **_summarise(run, predictions, shares, stated, out, details),
        **_summarise_sets(run, predictions, coverage),
        **({"n_to_look_at": sum(p.needs_review for p in predictions)} if abstain else {}),
        "views_averaged": run.fingerprint.n_views if tta else 0,
    }
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary)
    _warn(predictions)
    _warn_of_sets(run, coverage)


def _embed_missing(
    run: ModelBundle,
    cohort: Cohort,
    bags: Path,
    *,
    slides: Path | None,
    series: Path | None,
    slide_mpp: float | None,
    mpp_table: Path | None,
    **options: Any,
) -> int:
    """Embed what was named and has no bag yet; returns how many failed."""
    if slides is not None:
        return embed_missing_slides(
            run, cohort, slides, bags, slide_mpp=slide_mpp, mpp_table=mpp_table, **options
        )
    if series is not None:
        return embed_missing_series(run, cohort, series, bags, **options)
    return 0


def _summarise(
    run: ModelBundle,
    predictions: list[PatientPrediction],
    shares: npt.NDArray[np.float64],
    prior: str,
    out: Path,
    details: Path,
) -> dict[str, object]:
    return {
        "run": str(run.path),
        "out": str(out),
        "details": str(details),
        "n_patients": len(predictions),
        "status": dict(Counter(p.status for p in predictions)),
        "n_seen_in_training": sum(bool(p.seen_as) for p in predictions),
        "prior_asked_for": prior,
        "prior": dict(zip(run.classes, map(float, shares), strict=True)),
    }


def _summarise_sets(
    run: ModelBundle, predictions: list[PatientPrediction], coverage: float
) -> dict[str, object]:
    return {
        "coverage": coverage,
        "guaranteed": run.guaranteed(coverage),
        "sets": dict(sorted(Counter(p.set_in_words for p in predictions).items())),
    }


def _print_summary(summary: dict[str, object]) -> None:
    prior = summary["prior"]
    assert isinstance(prior, dict)  # noqa: S101 - tells the type checker what was put in
    shares = ", ".join(f"{name} {share:.3f}" for name, share in prior.items())
    n_patients = summary["n_patients"]
    assert isinstance(n_patients, int)  # noqa: S101 - as above
    patients = pluralize(n_patients, "patients")
    stdout.print(f"{patients} into {summary['out']} (run {summary['run']})")
    stdout.print(f"The probabilities are for a prior of {shares} ({summary['prior_asked_for']}).")
    sets = summary["sets"]
    assert isinstance(sets, dict)  # noqa: S101 - as above
    counts = ", ".join(f"{n} {name}" for name, n in sets.items())
    stdout.print(f"Prediction sets that aim at {summary['coverage']:g}: {counts}")
    if isinstance(kept := summary["guaranteed"], dict):
        shares = ", ".join(f"{name} {share:.2f}" for name, share in kept.items())
        stdout.print(f"Guaranteed coverage, of new patients like those of training: {shares}")
    if "n_to_look_at" in summary:
        stdout.print(f"Patients marked to look at: {summary['n_to_look_at']}")
    stdout.print(f"Slides, tiles, set, spread and status of each patient: {summary['details']}")


def _warn(predictions: list[PatientPrediction]) -> None:
    """Say what a reader of the file must know before using it."""
    meaning = {
        "no_bag": "without a readable slide got the prior",
        "no_tissue": "without tissue on their slides got the prior",
        "slides_missing": "judged on part of their slides, because others have no bag",
    }
    counts = Counter(p.status for p in predictions)
    for status, words in meaning.items():
        if counts[status]:  # type: ignore[index]
            patients = pluralize(counts[status], "patients")  # type: ignore[index]
            stderr.print(f"warning: {patients} {words}", style="yellow")
    if n_seen := sum(bool(p.seen_as) for p in predictions):
        stderr.print(
            f"warning: the run was trained on {n_seen} of these patients (or on their slides): use "
            "the out-of-fold columns of the details for them",
            style="yellow",
        )
    if n_seen := sum(p.seen_by_filter and not p.seen_as for p in predictions):
        stderr.print(
            f"warning: the run's tile filter learned from slides of {n_seen} of these patients: "
            "scores on them are not of unseen patients",
            style="yellow",
        )
    n_whitened = sum(p.seen_unlabelled for p in predictions)
    if n_whitened:
        stderr.print(
            f"note: the run's whitening was fitted on {n_whitened} of these patients, without "
            "labels: their prediction sets hold all classes",
            style="yellow",
        )


def _warn_of_sets(run: ModelBundle, coverage: float) -> None:
    """Say what keeps prediction sets from meaning much."""
    few = run.sets.conformal.undersized(coverage)
    if few.any():
        from mil.inference.conformal import min_calibration_size

        names = ", ".join(name for name, is_few in zip(run.classes, few, strict=True) if is_few)
        stderr.print(
            f"note: at a coverage of {coverage:g} a class needs {min_calibration_size(coverage)} "
            f"training patients to be ruled out, too few are of {names}: every set holds all "
            "classes",
            style="yellow",
        )
    elif run.guaranteed(coverage) is None:
        stderr.print(
            "note: the run's folds were made by centre, or a filter drops tiles: no coverage of "
            "prediction sets is guaranteed",
            style="yellow",
        )
