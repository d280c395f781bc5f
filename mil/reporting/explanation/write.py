"""Explanation of all patients of a cohort: one folder per patient, and an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.series.config import is_series_fingerprint
from features.series.manifest import SeriesSpec
from features.utils.files import make_folder
from mil.data.cohort import Cohort
from mil.data.instance_labels import InstanceLabels
from mil.inference.attention import Explanation, SlideAttention, explain_patients
from mil.inference.attention_agreement import Agreement, measure_agreement, summarise
from mil.inference.bundle import ModelBundle
from mil.inference.predict import PatientPrediction
from mil.reporting.explanation.maps import show_series, show_slide
from mil.reporting.explanation.page import (
    SERIES_TERMS,
    SLIDE_TERMS,
    SlideView,
    Terms,
    write_index,
    write_page,
)
from mil.reporting.html import folder_name

__all__ = ["ExplanationReport", "write_explanations"]


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
    agreement: Agreement | None
    """Agreement of the attention with image labels; None without labels."""
    terms: Terms


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
        agreement=None if image_labels is None else summarise(agreements),
        terms=terms,
    )


def _missing_text(files: Mapping[str, object] | None, text: str) -> str:
    """Return why a file is missing; empty if no files were asked for."""
    return "" if files is None else text
