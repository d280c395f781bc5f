"""Explanation pages: one per patient, in its own folder, and an index of all patients."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from features.utils.files import make_folder
from features.utils.text import normalize_name, percent, rounded
from mil.arrays import Floats
from mil.data.cohort import Cohort
from mil.data.instance_labels import InstanceLabels, describe_unmatched
from mil.inference.attention import Explanation, SlideAttention, explain_patients
from mil.inference.attention_agreement import AttentionAgreement, mean_agreement, measure_agreement
from mil.inference.bundle import ModelBundle, write_json
from mil.inference.predict import PatientPrediction
from mil.reporting.explanation_data import explanation_as_dict, learner_rows
from mil.reporting.explanation_views import SlideView, TileView
from mil.reporting.figures import EmbeddedImage
from mil.reporting.html import Table, folder_name, relative_address, render, write_html

__all__ = [
    "SERIES_TERMS",
    "SLIDE_TERMS",
    "ExplanationReport",
    "Terms",
    "write_explanations",
    "write_index",
    "write_page",
]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Terms that a page uses for bags and instances.

    ``slide`` is a bag, ``tile`` an instance, ``nothing`` the reason why all bags of a patient are
    empty, ``picture`` what is missing if a slide cannot be read, and ``position`` a sentence on the
    position of an instance.
    """

    slide: str
    tile: str
    nothing: str
    picture: str
    position: str

    @property
    def a_tile(self) -> str:
        """An instance, with its article."""
        return f"an {self.tile}" if self.tile[0] in "aeiou" else f"a {self.tile}"

    @property
    def statuses(self) -> dict[str, str]:
        """Description of each status of a patient."""
        return {
            "ok": f"all {self.slide}s used",
            "slides_missing": f"some {self.slide}s have no bag that can be used",
            "no_tissue": f"{self.nothing}: the probabilities are the prior",
            "no_bag": f"no {self.slide} has a bag: the probabilities are the prior",
            "out_of_range": "embeddings of another scale than those of the training: the "
            "probabilities are the prior",
            "bag_refused": f"no {self.slide} has a bag that can be used: the probabilities are the "
            "prior",
        }


SLIDE_TERMS = Terms(
    slide="slide",
    tile="tile",
    nothing="no tissue on any slide",
    picture="picture of the tissue",
    position="Upper left corner of the tile, in px of the slide's finest level.",
)
"""Terms for bags of tiles of slides."""
SERIES_TERMS = Terms(
    slide="scan",
    tile="image",
    nothing="no image of any scan",
    picture="pictures of the images",
    position="Position of the image in its series, from 1, and its file as listed in the table of "
    "series.",
)
"""Terms for bags of series of images."""


@dataclass(frozen=True, kw_only=True)
class ExplanationReport:
    """Summary of the pages written by :func:`write_explanations`.

    ``index`` is the page with links to ``pages``, which are by patient id. ``without_picture``
    holds the notes of :class:`SlideView` by slide id. ``agreement`` of the attention with image
    labels is None without labels; ``label_notes`` are on labels that are of no image shown.
    """

    index: Path
    pages: Mapping[str, Path]
    predictions: tuple[PatientPrediction, ...]
    without_picture: Mapping[str, str]
    agreement: AttentionAgreement | None
    label_notes: tuple[str, ...] = ()


def write_page(
    path: Path,
    explanation: Explanation,
    views: Sequence[SlideView],
    *,
    run: ModelBundle,
    prior: Floats,
    terms: Terms = SLIDE_TERMS,
) -> None:
    """Write the page of a patient, with one view per slide in the order of the explanation.

    ``prior`` holds the class shares of the probabilities, shape (classes,). Raises ``OutputError``
    if the file cannot be written.
    """
    html = _render(
        "explain.html", run, prior, terms,
        explanation=explanation,
        prediction=explanation.prediction,
        status=terms.statuses[explanation.prediction.status],
        leading=run.classes[explanation.leading_class],
        learners=learner_rows(explanation),
        bias=None
        if explanation.biases is None
        else float(explanation.biases[explanation.leading_class]),
        shares=_table_of_shares(explanation, run.classes, terms),
        views=views,
        labels={each.key: each.label for view in views for each in view.maps},
        has_unlike=any(view.unlike for view in views),
        tiles=[_tiles(view, explanation, terms) for view in views],
        report=_report_link(run, path.parent),
    )  # fmt: skip
    write_html(path, html)


def write_index(
    path: Path,
    predictions: Sequence[PatientPrediction],
    *,
    run: ModelBundle,
    prior: Floats,
    thumbnails: Mapping[str, EmbeddedImage | None],
    terms: Terms = SLIDE_TERMS,
) -> None:
    """Write the index of the patients in the folder that holds those of their pages.

    ``prior`` holds the class shares of the probabilities, shape (classes,), and ``thumbnails`` a
    small picture by patient id, where there is one. Raises ``OutputError`` if the file cannot be
    written.
    """
    html = _render(
        "explain_index.html", run, prior, terms, predictions=predictions, folder_name=folder_name,
        thumbnails=thumbnails, sets=sorted({each.set_text for each in predictions}),
        report=_report_link(run, path.parent),
    )  # fmt: skip
    write_html(path, html)


def write_explanations(
    run: ModelBundle,
    cohort: Cohort,
    bags_dir: Path,
    out: Path,
    *,
    prior: Floats,
    show: Callable[[Explanation, SlideAttention, Path], SlideView],
    terms: Terms = SLIDE_TERMS,
    image_labels: InstanceLabels | None = None,
    tta: bool = False,
    on_patient: Callable[[PatientPrediction], None] = lambda _: None,
) -> ExplanationReport:
    """Write the pages of all patients, each in its own folder, and an index.

    Parameters
    ----------
    run, cohort
        Model bundle, and the patients to explain.
    bags_dir
        Folder of their bags, or a packed store.
    out
        Folder for the pages; created if necessary.
    prior
        Class shares of the probabilities, shape (classes,).
    show
        Function that draws a slide, or only its attention, and writes its exports to the folder of
        the patient.
    terms
        Terms for slides and tiles.
    image_labels
        Labels of the images of series, to measure the agreement with the attention.
    tta
        Average over the views of tiles, see :func:`mil.inference.predict.predict`.
    on_patient
        Called after each patient.

    Raises
    ------
    BagError
        If a bag is damaged or was not made like those of the training.
    RunError
        If views are to be averaged, and the run was trained without.
    OutputError
        If a page cannot be written.
    """
    explanations = explain_patients(run, cohort, bags_dir, prior=prior, tta=tta)
    make_folder(out)
    pages, predictions, agreements = {}, [], []
    thumbnails: dict[str, EmbeddedImage | None] = {}
    without_picture: dict[str, str] = {}
    images: set[tuple[str, str]] = set()
    for explanation in explanations:
        prediction = explanation.prediction
        folder = make_folder(out / folder_name(prediction.patient_id))
        views = [show(explanation, slide, folder) for slide in explanation.slides]
        pages[prediction.patient_id] = folder / "index.html"
        write_page(folder / "index.html", explanation, views, run=run, prior=prior, terms=terms)
        write_json(
            folder / "explanation.json", explanation_as_dict(explanation, run=run, prior=prior)
        )
        thumbnails[prediction.patient_id] = _thumbnail(views)
        predictions.append(prediction)
        if image_labels is not None and (one := measure_agreement(explanation, image_labels)):
            agreements.append(one)
        images.update(
            (slide.meta.slide_id, normalize_name(source))
            for slide in explanation.slides for source in slide.source or ()
        )  # fmt: skip
        without_picture |= {view.slide.meta.slide_id: view.note for view in views if view.note}
        on_patient(prediction)
    write_index(
        out / "index.html", predictions, run=run, prior=prior, thumbnails=thumbnails, terms=terms
    )
    return ExplanationReport(
        index=out / "index.html",
        pages=pages,
        predictions=tuple(predictions),
        without_picture=without_picture,
        agreement=None if image_labels is None else mean_agreement(agreements),
        label_notes=describe_unmatched(
            [key for key in image_labels or () if key[0] in cohort.patient_of_slide()], images
        ),
    )


def _thumbnail(views: Sequence[SlideView]) -> EmbeddedImage | None:
    """Return the picture of the slide with the largest share of the attention, if any has one."""
    shown = [view for view in views if view.thumbnail is not None]
    return max(shown, key=lambda view: view.slide.share).thumbnail if shown else None


def _render(template: str, run: ModelBundle, prior: Floats, terms: Terms, **values: object) -> str:
    classes = run.classes
    shares = ", ".join(f"{name} {s:.3f}" for name, s in zip(classes, prior, strict=True))
    return render(
        template, run=run, classes=classes, prior=shares, terms=terms, link=_link, **values
    )


def _link(name: str) -> str:
    """Return the address of a file in the folder of the page."""
    return "./" + quote(os.fsencode(name), safe="/")


def _report_link(run: ModelBundle, folder: Path) -> str:
    """Return the address of the report of the run from a page in a folder; empty if it has none."""
    page = run.path / "report.html"
    return relative_address(page, folder) if page.is_file() else ""


def _signed(value: float, digits: str) -> str:
    """Return a number with its sign, with a minus instead of a hyphen."""
    return format(value, f"+{digits}").replace("-", "−")


def _table_of_shares(explanation: Explanation, classes: Sequence[str], terms: Terms) -> Table:
    """Return the share of tiles and attention of each slide, and its sums of shape (classes,)."""
    n_tiles, has_parts = explanation.n_tiles, explanation.logits is not None
    compares = any(slide.is_unlike is not None for slide in explanation.slides)
    columns = [
        terms.slide.capitalize(), f"{terms.tile.capitalize()}s", f"Share of {terms.tile}s",
        "Share of attention", "Largest × equal share",
        *([f"{terms.tile.capitalize()}s unlike training"] if compares else []),
        *(f"Sum for {name}" for name in classes if has_parts),
    ]  # fmt: skip
    rows = []
    for slide in explanation.slides:
        parts = () if slide.contributions is None else slide.contributions.sum(axis=0)
        rows.append([
            slide.meta.slide_id,
            f"{len(slide.attention):,}",
            f"{100 * len(slide.attention) / n_tiles:.1f} %",
            f"{100 * slide.share:.1f} %",
            f"{slide.attention.max() * n_tiles:.1f}",
            *([] if slide.unlike_share is None else [percent(slide.unlike_share, digits=1)]),
            *(_signed(part, ".3f") for part in parts),
        ])  # fmt: skip
    return Table(f"The patient's {terms.slide}s with {terms.tile}s", columns, rows)


def _tiles(
    view: SlideView, explanation: Explanation, terms: Terms
) -> dict[str, list[dict[str, object]]]:
    """Return images and captions of the most and least attended tiles, by heading."""
    slide = view.slide
    contribution = slide.signed_contribution(explanation.leading_class)

    def describe(tile: TileView) -> dict[str, object]:
        index = tile.index
        times = slide.attention[index] * explanation.n_tiles
        return {
            "image": tile.image,
            "position": slide.describe_tile(index),
            "times": f"{rounded(times, digits=2)} × equal share",
            "percentile": f"percentile {slide.percentile[index]:.1f}",
            "is_unlike": slide.is_unlike is not None and bool(slide.is_unlike[index]),
            "contribution": None if contribution is None else _signed(contribution[index], ".2g"),
        }

    return {
        f"{which} attended {terms.tile}s": [describe(tile) for tile in tiles]
        for which, tiles in (("Most", view.top), ("Least", view.bottom))
    }
