"""Explanation pages: one per patient, in its own folder, and an index of all patients."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from features.series.config import is_series_fingerprint
from features.series.manifest import SeriesSpec
from features.utils.files import make_folder
from mil.data.cohort import Cohort
from mil.data.instance_labels import InstanceLabels
from mil.inference.attention import Explanation, SlideAttention, explain_patients
from mil.inference.attention_agreement import AttentionAgreement, mean_agreement, measure_agreement
from mil.inference.bundle import ModelBundle
from mil.inference.predict import PatientPrediction
from mil.reporting.explanation.maps import SlideView, TileView, show_series, show_slide
from mil.reporting.html import Table, folder_name, render, write_html

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
    """Terms that a page uses for bags and instances."""

    slide: str
    """A bag: ``slide`` or ``scan``."""
    tile: str
    """An instance: ``tile`` or ``image``."""
    nothing: str
    """Reason why all bags of a patient are empty."""
    picture: str
    """Content that is missing if a slide or its images cannot be read."""
    position: str
    """Meaning of the position of an instance, as a sentence."""

    @property
    def a_tile(self) -> str:
        """An instance, with its article."""
        return f"an {self.tile}" if self.tile[0] in "aeiou" else f"a {self.tile}"

    @property
    def statuses(self) -> dict[str, str]:
        """Description of each status of a patient."""
        return {
            "ok": f"all {self.slide}s used",
            "slides_missing": f"some {self.slide}s have no bag",
            "no_tissue": f"{self.nothing}: the probabilities are the prior",
            "no_bag": f"no {self.slide} has a bag: the probabilities are the prior",
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
    """Summary of the pages written by :func:`write_explanations`."""

    index: Path
    """Page with links to those of the patients."""
    pages: Mapping[str, Path]
    """Page of each patient, by patient id."""
    predictions: tuple[PatientPrediction, ...]
    without_picture: Mapping[str, str]
    """Reasons why slides or series could not be shown, by id."""
    agreement: AttentionAgreement | None
    """AttentionAgreement of the attention with image labels; None without labels."""
    terms: Terms


def write_page(
    path: Path,
    explanation: Explanation,
    views: Sequence[SlideView],
    *,
    run: ModelBundle,
    prior: npt.NDArray[np.float64],
    terms: Terms = SLIDE_TERMS,
) -> None:
    """Write the page of a patient.

    Parameters
    ----------
    path
        Path of the page.
    explanation
        Prediction and attention of the patient.
    views
        Maps and tiles of each slide, in the order of the explanation.
    run
        Model bundle.
    prior
        Class shares of the probabilities, shape (classes,).
    terms
        Terms for slides and tiles.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    labels = {each.key: each.label for view in views for each in view.maps}
    html = render(
        "explain.html",
        explanation=explanation,
        prediction=explanation.prediction,
        status=terms.statuses[explanation.prediction.status],
        classes=run.classes,
        leading=run.classes[explanation.leading_class],
        prior=_in_words(run.classes, prior),
        run=run,
        shares=_table_of_shares(explanation, run.classes, terms),
        views=views,
        labels=labels,
        tiles=[_tiles(view, explanation, terms) for view in views],
        terms=terms,
        link=_link,
    )
    write_html(path, html)


def write_index(
    path: Path,
    predictions: Sequence[PatientPrediction],
    *,
    run: ModelBundle,
    prior: npt.NDArray[np.float64],
    terms: Terms = SLIDE_TERMS,
) -> None:
    """Write the index of the patients, with links to their pages.

    Parameters
    ----------
    path
        Path of the index, in the folder that holds those of the patients.
    predictions
        Predictions of the patients.
    run, prior, terms
        As for :func:`write_page`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    html = render(
        "explain_index.html",
        predictions=predictions,
        classes=run.classes,
        prior=_in_words(run.classes, prior),
        run=run,
        terms=terms,
        folder_name=folder_name,
        link=_link,
    )
    write_html(path, html)


def write_explanations(
    run: ModelBundle,
    cohort: Cohort,
    bags_dir: Path,
    out: Path,
    *,
    prior: npt.NDArray[np.float64],
    slides: Mapping[str, Path] | None = None,
    series: Mapping[str, SeriesSpec] | None = None,
    image_labels: InstanceLabels | None = None,
    top: int = 8,
    on_patient: Callable[[PatientPrediction], None] = lambda _: None,
) -> ExplanationReport:
    """Write attention maps, tiles and exports of every patient, and an index.

    Parameters
    ----------
    run
        Model bundle.
    cohort
        Patients to explain.
    bags_dir
        Folder of their bags, or a packed store.
    out
        Folder for the pages; created if necessary.
    prior
        Class shares of the probabilities, shape (classes,).
    slides
        Slide files by slide id; None shows the maps without tissue.
    series
        Files of series by bag id; None shows the attention without images.
    image_labels
        Labels of the images of series, to measure the agreement with the attention.
    top
        Number of most and of least attended tiles shown per slide.
    on_patient
        Called after each patient.

    Raises
    ------
    BagError
        If a bag is damaged or was not made like those of the training.
    OutputError
        If a page cannot be written.
    """
    terms = SERIES_TERMS if is_series_fingerprint(run.fingerprint) else SLIDE_TERMS
    missing = _missing_text(slides, "no file of that name is in the folder of slides.")
    missing_series = _missing_text(series, "the table of series does not list it.")

    def show(explanation: Explanation, slide: SlideAttention, folder: Path) -> SlideView:
        slide_id = slide.meta.slide_id
        if slide.order is not None:
            return show_series(
                slide, folder, spec=(series or {}).get(slide_id), missing=missing_series, top=top,
                classes=run.classes,
            )  # fmt: skip
        return show_slide(
            explanation, slide, folder, path=(slides or {}).get(slide_id), missing=missing,
            top=top, classes=run.classes,
        )  # fmt: skip

    explanations = explain_patients(run, cohort, bags_dir, prior=prior)
    make_folder(out)
    pages, predictions, agreements = {}, [], []
    without_picture: dict[str, str] = {}
    for explanation in explanations:
        prediction = explanation.prediction
        folder = make_folder(out / folder_name(prediction.patient_id))
        views = [show(explanation, slide, folder) for slide in explanation.slides]
        pages[prediction.patient_id] = folder / "index.html"
        write_page(folder / "index.html", explanation, views, run=run, prior=prior, terms=terms)
        predictions.append(prediction)
        if image_labels is not None and (one := measure_agreement(explanation, image_labels)):
            agreements.append(one)
        without_picture |= {view.slide.meta.slide_id: view.note for view in views if view.note}
        on_patient(prediction)
    write_index(out / "index.html", predictions, run=run, prior=prior, terms=terms)
    return ExplanationReport(
        index=out / "index.html",
        pages=pages,
        predictions=tuple(predictions),
        without_picture=without_picture if slides is not None or series is not None else {},
        agreement=None if image_labels is None else mean_agreement(agreements),
        terms=terms,
    )


def _link(name: str) -> str:
    """Return the address of a file in the folder of the page."""
    return "./" + quote(os.fsencode(name), safe="/")


def _signed(value: float, digits: str) -> str:
    """Return a number with its sign, with a minus instead of a hyphen."""
    return format(value, f"+{digits}").replace("-", "−")


def _in_words(classes: Sequence[str], prior: npt.NDArray[np.float64]) -> str:
    return ", ".join(f"{name} {share:.3f}" for name, share in zip(classes, prior, strict=True))


def _table_of_shares(explanation: Explanation, classes: Sequence[str], terms: Terms) -> Table:
    """Return the share of tiles and attention of each slide."""
    n_tiles, has_parts = explanation.n_tiles, explanation.logits is not None
    columns = [
        terms.slide.capitalize(), f"{terms.tile.capitalize()}s", f"Share of {terms.tile}s",
        "Share of attention", "Largest × equal share",
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
        return {
            "image": tile.image,
            "position": slide.describe_tile(index),
            "times": f"{slide.attention[index] * explanation.n_tiles:.2g} × equal share",
            "percentile": f"percentile {slide.percentile[index]:.1f}",
            "contribution": None if contribution is None else _signed(contribution[index], ".2g"),
        }

    return {
        f"{which} attended {terms.tile}s": [describe(tile) for tile in tiles]
        for which, tiles in (("Most", view.top), ("Least", view.bottom))
    }


def _missing_text(files: Mapping[str, object] | None, text: str) -> str:
    """Return why a file is missing; empty if no files were asked for."""
    return "" if files is None else text
