"""Tissue of a few patients: those of each class that are recognised best, and the worst errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.bags.store import open_bags
from features.errors import BagError
from mil.arrays import Floats
from mil.data.cohort import Cohort, Patient
from mil.data.covariates import without_values
from mil.inference.attention import SlideAttention, explain_patients
from mil.inference.bundle import ModelBundle
from mil.reporting.figures import EmbeddedImage
from mil.reporting.run_report.data import ReportData

__all__ = [
    "PatientTissue",
    "ShowSlide",
    "SlidePictures",
    "patients_shown",
    "show_best",
    "show_tissue",
]

_N_PATIENTS = 3
_N_TRIED = 3
_N_ERRORS = 6
_N_TILES = 3


@dataclass(frozen=True, kw_only=True)
class SlidePictures:
    """Thumbnail of a slide, and its most attended tiles, the most attended first."""

    thumbnail: EmbeddedImage
    tiles: Sequence[EmbeddedImage]


ShowSlide = Callable[[SlideAttention, int], SlidePictures | None]
"""Function that reads a slide and a number of its tiles; None where it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class PatientTissue:
    """Most attended slide of a patient, with its true and its most likely class.

    The probabilities are out-of-fold: ``probability`` is that of the true class, 0 to 1.
    """

    patient_id: str
    label: str
    predicted: str
    probability: float
    pictures: SlidePictures


def show_tissue(
    run: ModelBundle, data: ReportData, bags_dir: Path, show: ShowSlide
) -> Mapping[str, Sequence[PatientTissue]]:
    """Return the tissue of a few patients whose slides can be read, by heading.

    The patients are chosen by their mean out-of-fold probabilities, shape (patients, classes); the
    attention is that of the deployed heads, which were trained on them.
    """
    groups = {
        heading: _show_patients(run, data, bags_dir, show, indices)
        for heading, indices in _chosen(data)
    }
    return {heading: patients for heading, patients in groups.items() if patients}


def show_best(
    run: ModelBundle, data: ReportData, bags_dir: Path, show: ShowSlide, *, class_index: int
) -> Sequence[PatientTissue]:
    """Return the tissue of the patients of one class that are recognised best, best first.

    Where a slide cannot be read, the next best patient takes its place.
    """
    tried = _recognised(data, class_index)[: _N_TRIED * _N_PATIENTS]
    return _show_patients(run, data, bags_dir, show, tried)[:_N_PATIENTS]


def _show_patients(
    run: ModelBundle, data: ReportData, bags_dir: Path, show: ShowSlide, indices: Sequence[int]
) -> Sequence[PatientTissue]:
    try:
        refs = open_bags(bags_dir)
    except BagError:
        return []
    slides_of: dict[str, list[str]] = {}
    for slide in run.training_slides:
        slides_of.setdefault(slide.patient_id, []).append(slide.slide_id)

    def show_patient(index: int) -> PatientTissue | None:
        name, proba = data.patient_ids[index], data.mean["calibrated"][index]
        patient = Patient(
            patient_id=name, slide_ids=tuple(slides_of.get(name, ())), label=None, center_id=None
        )
        cohort = Cohort(path=bags_dir, patients=(patient,), classes=())
        if run.covariates is not None:  # attention does not depend on their values
            cohort = without_values(cohort, run.covariates.covariates)
        try:
            (explanation,) = explain_patients(run, cohort, refs)
        except BagError:
            return None  # embedded again since, or damaged: the page is of what was trained
        if not explanation.slides:
            return None
        pictures = show(max(explanation.slides, key=lambda slide: slide.share), _N_TILES)
        return (
            None
            if pictures is None
            else PatientTissue(
                patient_id=name,
                label=data.classes[data.labels[index]],
                predicted=data.classes[int(proba.argmax())],
                probability=float(proba[data.labels[index]]),
                pictures=pictures,
            )
        )

    return [patient for index in indices if (patient := show_patient(index)) is not None]


def patients_shown(data: ReportData) -> list[str]:
    """Return the ids of the patients whose tissue the report shows, in its order."""
    return list(
        dict.fromkeys(data.patient_ids[index] for _, some in _chosen(data) for index in some)
    )


def _recognised(data: ReportData, class_index: int) -> list[int]:
    """Return the indices of the patients of a class that are assigned to it, the clearest first."""
    mean: Floats = data.mean["calibrated"]
    is_own = (data.labels == class_index) & (mean.argmax(axis=1) == class_index)
    order = np.argsort(mean[:, class_index], kind="stable")[::-1].tolist()
    return [index for index in order if is_own[index]]


def _chosen(data: ReportData) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield headings with the indices of their patients, the clearest first."""
    mean: Floats = data.mean["calibrated"]
    own = mean[np.arange(len(data.labels)), data.labels]
    is_right = mean.argmax(axis=1) == data.labels
    order = np.argsort(own, kind="stable")
    for index, name in enumerate(data.classes):
        yield f"{name}, recognised best", _recognised(data, index)[:_N_PATIENTS]
    wrong = [each for each in order.tolist() if not is_right[each]]
    yield "Worst errors", wrong[:_N_ERRORS]
