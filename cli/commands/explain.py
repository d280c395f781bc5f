"""``mil explain``: attention maps, tiles and exports of every patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import (
    EXIT_PARTLY_FAILED,
    print_json,
    print_next,
    progress_bar,
    spinner,
    stdout,
    warn,
)
from cli.options import BagsSource, ColumnNames, JsonOutput, Prior, RunDir, SlidesDir, flag
from cli.shared.arguments import files_of, parse_columns
from cli.shared.output import print_caveats
from cli.shared.runs import add_run_covariates, newest_run, training_cohort
from features.utils.text import pluralize

if TYPE_CHECKING:
    from mil.data.cohort import Cohort
    from mil.inference.bundle import ModelBundle
    from mil.reporting.explanation import ExplanationReport, Terms

__all__ = ["explain"]

_MAX_NAMED = 10


def explain(
    *,
    patients: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table with `patient_id` and `image_id` (or `slide_id`); default: the training "
            "patients whose tissue the report shows.",
        ),
    ] = None,
    patient: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="With --patients: only this patient; can be repeated."),
    ] = None,
    slide: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Instead of --patients: a single slide."),
    ] = None,
    columns: ColumnNames = None,
    run: RunDir = None,
    bags: BagsSource = Path("bags"),
    slides: SlidesDir = None,
    series: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|FOLDER", help="Series that the bags were made from, to show images."
        ),
    ] = None,
    image_labels: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table with `slide_id`, `source` and 0 or 1 per image of a series, in a column "
            "named after the run's last class or `label`, to score the attention.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the pages.")] = Path(
        "explanations"
    ),
    prior: Prior = "balanced",
    top: Annotated[
        int,
        typer.Option(
            min=1,
            max=200,
            metavar="N",
            help="Number of most and least attended tiles shown per slide.",
        ),
    ] = 8,
    tta: Annotated[
        bool,
        flag(
            "--tta",
            "Average over the views of tiles, as `mil infer --tta` does; for runs trained on bags "
            "with views.",
        ),
    ] = False,
    as_json: JsonOutput = False,
) -> None:
    """Show where a run looked: attention maps, tiles and exports for every patient.

    Each patient gets a folder with a page that needs no network. It shows the probabilities of
    `mil infer`, the prediction set, how much the patient is like the training patients, what each
    learner of a stack adds, each slide with its most attended tiles outlined or coloured, the
    contributions of tiles, and tiles unlike the training tiles. The folder also holds tables, the
    numbers as JSON, rectangles for QuPath and a TIFF pyramid that overlays the slide. Without
    `--slides` the maps show only the grid. For series of images (`mil embed --series`) the
    attention is shown by position, with the images if `--series` is given.

    Example: `mil explain --patients test.csv --slides slides/ --out explanations`

    Example: `mil explain --run runs/first --slide 006388_0 --slides slides/`

    Example: `mil explain --run runs/first --slides slides/`

    Exit codes: 0 all done, 1 nothing could be done, 2 usage, 3 some slides cannot be shown or
    have no bag that can be used.
    """
    if patients is not None and slide is not None:
        raise typer.BadParameter("give either --patients or --slide", param_hint="--patients")
    if patients is None and patient:
        raise typer.BadParameter("requires --patients", param_hint="--patient")
    with spinner("loading the run"):
        from cli.shared.attention_maps import show_bag
        from features.bags.store import open_bags
        from features.series.config import is_series_fingerprint
        from features.series.manifest import read_series
        from mil.data.instance_labels import read_instance_labels
        from mil.inference.bundle import load_bundle
        from mil.inference.output import covariate_caveats
        from mil.inference.predict import check_any_used
        from mil.reporting.explanation import SERIES_TERMS, SLIDE_TERMS, write_explanations

        model = load_bundle(run or newest_run())
        if tta:
            model.with_view_calibrator()
        shares = model.parse_prior(prior)
        if patients is not None:
            cohort = _select(patients, patient or [], parse_columns(columns))
        else:
            cohort = _reported(model) if slide is None else _single_slide(slide, bags)
        cohort = add_run_covariates(
            model, cohort, columns=parse_columns(columns), has_table=patients is not None
        )
        refs = open_bags(bags)  # without any bag, all pages would be empty
        slide_files = files_of(cohort, slides, option="--slides") if slides else None
        series_files = {spec.bag_id: spec for spec in read_series(series)} if series else None
        labels = None
        if image_labels is not None:
            labels = read_instance_labels(image_labels, [model.classes[-1], "label"])
    terms = SERIES_TERMS if is_series_fingerprint(model.fingerprint) else SLIDE_TERMS
    with progress_bar("slides") as bars:
        task = bars.add_task("explaining", total=cohort.n_slides)
        report = write_explanations(
            model, cohort, bags, out, prior=shares, image_labels=labels, terms=terms,
            tta=tta, show=partial(
                show_bag, slides=slide_files, series=series_files, top=top, classes=model.classes
            ),
            on_patient=lambda prediction: bars.advance(task, len(prediction.slide_ids)),
        )  # fmt: skip
    check_any_used(report.predictions, refs, source=cohort.path)
    if slide_files is None and series_files is None:  # only grids are drawn
        report = replace(report, without_picture={})
    by_class = dict(zip(model.classes, map(float, shares), strict=True))
    if as_json:
        print_json(_as_dict(report, model, by_class))
    else:
        _print_summary(report, model, ", ".join(f"{n} {s:.3f}" for n, s in by_class.items()), prior)
    _print_warnings(report, terms)
    print_caveats(covariate_caveats(model, cohort))
    report_again = "mil report {run} --bags {bags} --explanations {out}"
    print_next(
        *([] if as_json else ["open {page}", report_again]),
        page=report.index, run=model.path, bags=bags, out=out,
    )  # fmt: skip
    if report.without_picture or any(p.status != "ok" for p in report.predictions):
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _select(table: Path, patient_ids: Sequence[str], columns: Mapping[str, str]) -> Cohort:
    """Return the patients of a table, or only the given ones, in the table's order."""
    from mil.data.cohort import read_cohort
    from mil.errors import CohortError

    cohort = read_cohort(table, labelled=False, columns=columns)
    for patient_id in patient_ids:
        if patient_id not in cohort.patient_ids:
            raise CohortError(
                table, actual=f"no patient {patient_id!r} among {len(cohort.patients)}",
                expected="a patient_id of the table",
            )  # fmt: skip
    return cohort.subset(patient_ids) if patient_ids else cohort


def _reported(run: ModelBundle) -> Cohort:
    """Return the training patients whose tissue the report of a run shows."""
    from mil.reporting.run_report import patients_shown, read_report_data

    shown = patients_shown(read_report_data(run.path, classes=run.classes))
    cohort = training_cohort(run)
    chosen = {patient.patient_id: patient for patient in cohort.patients}
    return replace(cohort, patients=tuple(chosen[name] for name in shown if name in chosen))


def _single_slide(slide: str, bags_dir: Path) -> Cohort:
    """Return a cohort of one patient with one slide, named after the slide."""
    from features.bags.store import open_bags
    from features.errors import BagError
    from mil.data.cohort import Cohort, Patient, without_suffix

    slide_id = without_suffix(slide)
    if slide_id not in open_bags(bags_dir, may_be_empty=True):
        raise BagError(
            bags_dir, actual=f"slide {slide_id!r} has no bag", expected="one bag per slide",
            hint="Check --bags, or embed the slide with 'mil embed'.",
        )  # fmt: skip
    patient = Patient(patient_id=slide_id, slide_ids=(slide_id,), label=None, center_id=None)
    return Cohort(path=bags_dir, patients=(patient,), classes=())


def _as_dict(
    report: ExplanationReport, run: ModelBundle, prior: dict[str, float]
) -> dict[str, object]:
    content = {
        "run": str(run.path),
        "page": str(report.index),
        "n_patients": len(report.predictions),
        "status": dict(Counter(p.status for p in report.predictions)),
        "n_seen_in_training": sum(bool(p.matched_training_patient) for p in report.predictions),
        "problems": {n: str(e) for p in report.predictions for n, e in p.problems.items()},
        "prior": prior,
        "patients": [
            {
                "patient_id": p.patient_id,
                "page": str(report.pages[p.patient_id]),
                "probabilities": dict(zip(run.classes, p.probabilities.tolist(), strict=True)),
                "attention_share": dict(p.attention_share),
                "prediction_set": list(p.prediction_set),
                "typicality": None if p.typicality is None else p.typicality.p_value,
                "unlike_training": p.unlike_training,
                "learner_shares": p.learner_shares,
            }
            for p in report.predictions
        ],
        "without_picture": dict(report.without_picture),
    }
    return (
        content if report.agreement is None else {**content, "attention": asdict(report.agreement)}
    )


def _print_summary(report: ExplanationReport, run: ModelBundle, shares: str, prior: str) -> None:
    stdout.print(f"{pluralize(len(report.predictions), 'patients')} explained (run {run.path})")
    stdout.print(f"The probabilities are for a prior of {shares} ({prior}).")
    if (agreement := report.agreement) is not None and agreement.n_patients:
        stdout.print(
            f"Attention and image labels of {pluralize(agreement.n_patients, 'patients')}: "
            f"AUROC {agreement.auroc:.3f}; the most attended image is labelled in "
            f"{100 * agreement.hits:.0f} % (by chance {100 * agreement.chance:.0f} %)."
        )
    stdout.print(f"Page: {report.index}")


def _print_warnings(report: ExplanationReport, terms: Terms) -> None:
    from mil.inference.output import count_differences

    slide, tile = terms.slide, terms.tile
    n_seen = sum(bool(p.matched_training_patient) for p in report.predictions)
    if n_seen:
        warn(
            f"warning: the run was trained on {n_seen} of these patients (or on their {slide}s); "
            "the page of each says so"
        )
    if n_unlike := sum(p.unlike_training for p in report.predictions):
        warn(
            f"warning: {pluralize(n_unlike, 'patients')} unlike the training patients; the page of "
            "each says so"
        )
    notes = list(report.label_notes)
    if report.agreement is not None and not report.agreement.n_patients:
        notes.append("no patient's images have labels of both kinds, to compare with")
    print_caveats(f"note: {note}" for note in notes)
    if n_by_kind := count_differences(report.predictions):
        named = ", ".join(f"{kind} {n_patients}" for kind, n_patients in n_by_kind.items())
        warn(
            f"note: {slide}s that differ from all training {slide}s, patients by kind: {named}; "
            "their pages say in what"
        )
    problems = [error for p in report.predictions for error in p.problems.values()]
    for error in problems[:_MAX_NAMED]:
        warn(f"warning: not used: {error}")
    n_incomplete = sum(p.status != "ok" for p in report.predictions)
    if n_incomplete:
        warn(
            f"warning: {pluralize(n_incomplete, 'patients')} with {slide}s without bag or without "
            f"{tile}s"
        )
    missing = report.without_picture
    for slide_id, reason in list(missing.items())[:_MAX_NAMED]:
        warn(f"{slide} {slide_id} cannot be shown: {reason}")
    if len(missing) > _MAX_NAMED:
        warn(f"and {len(missing) - _MAX_NAMED} more; --json lists all")
