"""``mil explain``: where a run looked, on every slide of every patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import EXIT_PARTLY_FAILED, print_json, progress_bar, spinner, stderr, stdout
from cli.options import BagsPlace, JsonOutput, PictureSlides, Prior, RunDir
from cli.shared.arguments import files_of
from cli.shared.runs import newest_run
from features.utils.text import pluralize

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from features.series.manifest import SeriesSpec
    from mil.data.cohort import Cohort
    from mil.inference.attention import Explanation, SlideAttention
    from mil.inference.attention_agreement import PatientAgreement
    from mil.inference.bundle import ModelBundle
    from mil.inference.predict import PatientPrediction
    from mil.reporting.explanation_page import SlideView, Terms

__all__ = ["explain"]

_MOST_NAMED = 10


def explain(
    *,
    patients: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Table with `patient_id` and `image_id` (or `slide_id`)."),
    ] = None,
    patient: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="With --patients: only this one; may be given again."),
    ] = None,
    slide: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Instead of --patients: one slide by itself."),
    ] = None,
    run: RunDir = None,
    bags: BagsPlace = Path("bags"),
    slides: PictureSlides = None,
    series: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|FOLDER", help="Series that the bags were made from, for pictures."
        ),
    ] = None,
    image_labels: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table with `slide_id`, `source` and 0 or 1 for each image of a series, in a "
            "column named after the run's last class or `label`: scores the attention.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pages go.")] = Path(
        "explanations"
    ),
    prior: Prior = "balanced",
    top: Annotated[
        int,
        typer.Option(
            min=1, max=200, metavar="N", help="Most and least attended tiles shown of a slide."
        ),
    ] = 8,
    as_json: JsonOutput = False,
) -> None:
    """Show where a run looked: attention maps, tiles and exports for every patient.

    Each patient gets a folder with a page that needs no network: its probabilities, exactly as
    `mil infer` gives them; each slide with its attention as percentile and as it is, and with
    additive contributions where the head has them; the most and the least attended tiles. Beside
    the page lie a table, rectangles for QuPath, and a TIFF pyramid to lay over the slide. Without
    `--slides` the maps show the grid only. Of series of images (`mil embed --series`) the attention
    is shown by place, and with `--series` the images.

    Example: `mil explain --patients test.csv --slides slides/ --out explanations`

    Example: `mil explain --run runs/first --slide 006388_0 --slides slides/`

    Exit codes: 0 all done, 1 nothing could be done, 2 usage, 3 some slides have no picture.
    """
    _require_one_question(patients=patients, patient=patient, slide=slide)
    with spinner("loading the run"):
        from features.bags.store import open_bags
        from features.series.config import is_series_fingerprint
        from features.utils.files import make_folder
        from mil.data.instance_labels import read_instance_labels
        from mil.inference.attention import explain_patients
        from mil.inference.attention_agreement import measure_agreement, summarise
        from mil.inference.bundle import load_bundle
        from mil.reporting.explanation_page import OF_SERIES, OF_SLIDES, write_index

        model = load_bundle(run or newest_run())
        words = OF_SERIES if is_series_fingerprint(model.fingerprint) else OF_SLIDES
        shares = model.parse_prior(prior)
        cohort = _cohort_of(patients, patient or []) if patients else _alone(str(slide), bags)
        open_bags(bags)  # refused where there is none: all pages would be empty
        files = _SourceFiles(
            slides=files_of(cohort, slides, option="--slides") if slides else None,
            series=_series_of(cohort, series) if series else None,
        )
        labels = None
        if image_labels is not None:
            labels = read_instance_labels(image_labels, [model.classes[-1], "label"])
        explanations = explain_patients(model, cohort, bags, prior=shares)
        make_folder(out)
    predictions: list[PatientPrediction] = []
    unseen: dict[str, str] = {}
    agreements: list[PatientAgreement] = []
    with progress_bar(f"{words.slide}s") as bars:
        task = bars.add_task("explaining", total=cohort.n_slides)
        for explanation in explanations:
            views = _explain_one(explanation, model, shares, out, files=files, words=words, top=top)
            predictions.append(explanation.prediction)
            if labels is not None and (found := measure_agreement(explanation, labels)):
                agreements.append(found)
            if slides is not None or series is not None:
                unseen |= {view.slide.meta.slide_id: view.note for view in views if view.note}
            bars.advance(task, len(explanation.prediction.slide_ids))
    write_index(out / "index.html", predictions, run=model, prior=shares, words=words)
    summary = _summarise(model, predictions, shares, out, unseen)
    if labels is not None:
        summary["attention"] = asdict(summarise(agreements))
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary, prior)
    _warn(predictions, unseen, words)
    if unseen:
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _require_one_question(
    *, patients: Path | None, patient: list[str] | None, slide: str | None
) -> None:
    if (patients is None) == (slide is None):
        raise typer.BadParameter("give either --patients or --slide", param_hint="--patients")
    if slide is not None and patient:
        raise typer.BadParameter("goes with --patients only", param_hint="--patient")


def _cohort_of(table: Path, wanted: Sequence[str]) -> Cohort:
    """Patients of a table, or some of them in the table's order."""
    from dataclasses import replace

    from mil.data.cohort import read_cohort
    from mil.errors import CohortError

    cohort = read_cohort(table, labelled=False)
    for patient_id in wanted:
        if patient_id not in cohort.patient_ids:
            raise CohortError(
                table, actual=f"no patient {patient_id!r} among {len(cohort.patients)}",
                expected="a patient_id of the table, to the letter",
            )  # fmt: skip
    some = [each for each in cohort.patients if not wanted or each.patient_id in wanted]
    return replace(cohort, patients=tuple(some))


def _alone(slide: str, bags_dir: Path) -> Cohort:
    """A slide as a patient of its own, under the slide's name."""
    from features.bags.store import open_bags
    from features.errors import BagError
    from mil.data.cohort import Cohort, Patient, without_suffix

    slide_id = without_suffix(slide)
    if slide_id not in open_bags(bags_dir, may_be_empty=True):
        raise BagError(
            bags_dir, actual=f"slide {slide_id!r} has no bag", expected="one bag a slide",
            hint="Check --bags, or embed the slide with 'mil embed'.",
        )  # fmt: skip
    alone = Patient(patient_id=slide_id, slide_ids=(slide_id,), label=None, center_id=None)
    return Cohort(path=bags_dir, patients=(alone,), classes=())


@dataclass(frozen=True, kw_only=True)
class _SourceFiles:
    """What bags were made from, by slide id; None where it was not given."""

    slides: Mapping[str, Path] | None
    series: Mapping[str, SeriesSpec] | None


def _series_of(cohort: Cohort, table: Path) -> dict[str, SeriesSpec]:
    """Files of the cohort's series by bag id."""
    from features.series.manifest import read_series

    wanted = {slide for patient in cohort.patients for slide in patient.slide_ids}
    return {spec.bag_id: spec for spec in read_series(table) if spec.bag_id in wanted}


def _explain_one(
    explanation: Explanation,
    run: ModelBundle,
    shares: npt.NDArray[np.float64],
    out: Path,
    *,
    files: _SourceFiles,
    words: Terms,
    top: int,
) -> list[SlideView]:
    """Write page and exports of one patient."""
    from cli.explanation.series_maps import show_series
    from cli.explanation.slide_maps import show_slide
    from features.utils.files import make_folder
    from mil.reporting.explanation_page import write_page
    from mil.reporting.html import folder_name

    folder = make_folder(out / folder_name(explanation.prediction.patient_id))

    def show(slide: SlideAttention) -> SlideView:
        name = slide.meta.slide_id
        if slide.order is not None:
            missing = "" if files.series is None else "the table of series does not name it."
            return show_series(
                slide, folder, spec=(files.series or {}).get(name), missing=missing, top=top,
                classes=run.classes,
            )  # fmt: skip
        missing = "" if files.slides is None else "no file of that name is in the folder of slides."
        return show_slide(
            explanation, slide, folder, path=(files.slides or {}).get(name), missing=missing,
            top=top, classes=run.classes,
        )  # fmt: skip

    views = [show(slide) for slide in explanation.slides]
    write_page(folder / "index.html", explanation, views, run=run, prior=shares, words=words)
    return views


def _summarise(
    run: ModelBundle,
    predictions: Sequence[PatientPrediction],
    shares: npt.NDArray[np.float64],
    out: Path,
    unseen: Mapping[str, str],
) -> dict[str, object]:
    from mil.reporting.html import folder_name

    return {
        "run": str(run.path),
        "page": str(out / "index.html"),
        "n_patients": len(predictions),
        "status": dict(Counter(p.status for p in predictions)),
        "n_seen_in_training": sum(bool(p.matched_training_patient) for p in predictions),
        "prior": dict(zip(run.classes, map(float, shares), strict=True)),
        "patients": [
            {
                "patient_id": p.patient_id,
                "page": str(out / folder_name(p.patient_id) / "index.html"),
                "probabilities": dict(zip(run.classes, p.probabilities.tolist(), strict=True)),
                "attention_share": dict(p.attention_share),
            }
            for p in predictions
        ],
        "without_picture": dict(unseen),
    }


def _print_summary(summary: Mapping[str, object], prior: str) -> None:
    shares = summary["prior"]
    assert isinstance(shares, dict)  # noqa: S101 - tells the type checker what was put in
    told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    n_patients = summary["n_patients"]
    assert isinstance(n_patients, int)  # noqa: S101 - as above
    stdout.print(f"{pluralize(n_patients, 'patients')} explained (run {summary['run']})")
    stdout.print(f"The probabilities are for a prior of {told} ({prior}).")
    if isinstance(beside := summary.get("attention"), dict):
        stdout.print(
            f"Attention beside labels of images, "
            f"{pluralize(beside['n_patients'], 'patients')} with "
            "both: "
            f"AUROC {beside['auroc']:.3f}; the most attended image is labelled in "
            f"{100 * beside['hits']:.0f} % (by chance {100 * beside['chance']:.0f} %)."
        )
    stdout.print(f"Look at {summary['page']}")


def _warn(
    predictions: Sequence[PatientPrediction], unseen: Mapping[str, str], words: Terms
) -> None:
    """Say what a reader of the pages must know."""
    n_seen = sum(bool(p.matched_training_patient) for p in predictions)
    if n_seen:
        stderr.print(
            f"warning: the run was trained on {n_seen} of these patients (or on their "
            f"{words.slide}s); their pages say so",
            style="yellow",
        )
    n_incomplete = sum(p.status != "ok" for p in predictions)
    if n_incomplete:
        stderr.print(
            f"warning: {pluralize(n_incomplete, 'patients')} with {words.slide}s without bag or "
            f"without {words.tile}s",
            style="yellow",
        )
    for slide_id, reason in list(unseen.items())[:_MOST_NAMED]:
        told = f"{words.slide} {slide_id} has no picture: {reason}"
        stderr.print(told, style="yellow")
    if len(unseen) > _MOST_NAMED:
        stderr.print(f"and {len(unseen) - _MOST_NAMED} more; --json lists all", style="yellow")
