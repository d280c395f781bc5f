"""A run and a list of patients into one row of probabilities each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.bags.bag import Bag, BagRef, check_fingerprint
from features.bags.h5 import read_slide_bag
from features.bags.store import open_bags
from features.utils.tables import write_table
from mil.calibration.priors import balanced, shift_prior
from mil.data.bags import Features, content_keys
from mil.data.cohort import Cohort, Patient
from mil.heads.ensemble import predict_members, predict_views
from mil.inference.bundle import ModelBundle, TrainingSlide
from mil.inference.conformal import COVERAGE

__all__ = ["PatientPrediction", "predict_patients", "write_details", "write_predictions"]

PatientStatus = Literal["ok", "slides_missing", "no_tissue", "no_bag"]
"""``ok``: all slides used. ``slides_missing``: some had no bag. The other two got the prior."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientPrediction:
    """What a run says of one patient."""

    patient_id: str
    """As in the table asked for."""
    probabilities: npt.NDArray[np.float64]
    """Shape (classes,), at the prior asked for; sums to 1."""
    status: PatientStatus
    """Whether all, some or none of the slides could be used."""
    slide_ids: tuple[str, ...]
    """Slides asked for."""
    n_tiles: Mapping[str, int]
    """Tiles used by slide id; slides without a bag are absent."""
    lowest: npt.NDArray[np.float64]
    """Shape (classes,): the lowest probability that a single head gives, calibrated alike."""
    highest: npt.NDArray[np.float64]
    """Shape (classes,): the highest. Both show the spread of the heads and nothing more."""
    attention_share: Mapping[str, float]
    """Share of the attention that falls on each slide; sums to 1, empty without tiles."""
    seen_as: str
    """Patient of the training cohort that this one is, by id or by a slide's content; else ''."""
    seen_unlabelled: bool
    """Whether the whitening was fitted on the patient, without a label."""
    out_of_fold: npt.NDArray[np.float64] | None
    """Shape (classes,): for a seen patient, what heads said that had not seen it."""
    prediction_set: tuple[str, ...]
    """Classes that cannot be ruled out at the coverage asked for, in order. All of them for a
    patient without tiles, and for one seen with or without a label, of which nothing can be
    said."""
    seen_by_filter: bool = False
    """Whether the run's tile filter learned from slides of this patient."""

    @property
    def needs_review(self) -> bool:
        """Whether anything but exactly one class is left."""
        return len(self.prediction_set) != 1

    @property
    def set_in_words(self) -> str:
        """``CE``, ``CE|LAA``, or ``(none)`` where every class was ruled out."""
        return "|".join(self.prediction_set) or "(none)"


def predict_patients(
    run: ModelBundle,
    cohort: Cohort,
    bags: Path | Mapping[str, BagRef],
    *,
    prior: npt.NDArray[np.float64],
    coverage: float = COVERAGE,
    tta: bool = False,
) -> list[PatientPrediction]:
    """Calibrated probabilities for every patient asked for, in the order of the table.

    A patient's bag is all tiles of all its slides that the run's filter keeps. A patient without a
    readable slide or without tissue gets the prior itself, and a status that says so.

    Parameters
    ----------
    run
        The model bundle.
    cohort
        Patients and their slides; labels are not looked at.
    bags
        Folder or packed store of bags; or bags by slide id, for who asks many times.
    prior
        Shape (classes,): the class shares that the probabilities are for.
    coverage
        What prediction sets aim at, above 0 and below 1; they do not depend on the prior.
    tta
        Average logits over plain tiles and their views, and calibrate them by the calibrator that
        was fitted on such averages; else plain tiles alone are looked at. Prediction sets are of
        plain tiles either way, as their guarantee is.

    Raises
    ------
    BagError
        If a bag was made otherwise than the run's, or is damaged.
    RunError
        If views are to be averaged, and the run was trained without.
    """
    places = open_bags(bags, may_be_empty=True) if isinstance(bags, Path) else bags
    model = run.with_view_calibrator() if tta else run
    trained_on, whitened_on = (
        _TrainingIndex(run.training_slides),
        _TrainingIndex(run.unlabelled_slides),
    )
    return [
        _predict(
            model, patient, places, trained_on, whitened_on, prior=prior, coverage=coverage, tta=tta
        )
        for patient in cohort.patients
    ]


def write_predictions(
    path: Path, predictions: list[PatientPrediction], *, classes: tuple[str, ...]
) -> None:
    """Write ``patient_id`` and one column a class, in the order of the predictions.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    table = pd.DataFrame(
        [[p.patient_id, *p.probabilities] for p in predictions], columns=["patient_id", *classes]
    )
    write_table(path, table)


def write_details(
    path: Path,
    predictions: list[PatientPrediction],
    *,
    classes: tuple[str, ...],
    abstain: bool = False,
) -> None:
    """Write what stands behind each row: slides, tiles, status, set, spread, whether it was seen.

    Parameters
    ----------
    path
        The file.
    predictions
        A row each.
    classes
        Classes in order.
    abstain
        Mark patients to look at in a column.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    table = pd.DataFrame([_details_of(p, classes) for p in predictions])
    if not abstain:
        table = table.drop(columns="look_at")
    write_table(path, table)


def _predict(
    run: ModelBundle,
    patient: Patient,
    places: Mapping[str, BagRef],
    trained_on: _TrainingIndex,
    whitened_on: _TrainingIndex,
    *,
    prior: npt.NDArray[np.float64],
    coverage: float,
    tta: bool,
) -> PatientPrediction:
    bags = _read_bags(run, patient, places)
    seen_as = trained_on.seen_as(patient, bags.values())
    seen_unlabelled = bool(whitened_on.seen_as(patient, bags.values()))
    bags = {slide_id: run.sift(bag) for slide_id, bag in bags.items()}
    filled = {slide_id: bag for slide_id, bag in bags.items() if len(bag.features)}
    tiles: Features | None = None
    if filled:
        tiles = np.concatenate([bag.features for bag in filled.values()])
        views = [bag.views for bag in filled.values() if bag.views is not None] if tta else []
        logits, attention = _outputs(run, tiles, views)
        members = _at_prior(run, logits, prior)
        probabilities = _at_prior(run, logits.mean(axis=0, keepdims=True), prior)[0]
        share = _share_of_slides(filled, attention.mean(axis=0))
    else:
        members, probabilities, share = prior[None], prior, {}
    return PatientPrediction(
        patient_id=patient.patient_id,
        probabilities=probabilities,
        status=_status(patient, bags, filled),
        slide_ids=patient.slide_ids,
        n_tiles={slide_id: len(bag.features) for slide_id, bag in bags.items()},
        lowest=members.min(axis=0),
        highest=members.max(axis=0),
        attention_share=share,
        seen_as=seen_as,
        seen_unlabelled=seen_unlabelled,
        out_of_fold=_out_of_fold(run, seen_as, prior),
        seen_by_filter=_seen_by_filter(run, patient, bags),
        prediction_set=_prediction_set(
            run, None if seen_as or seen_unlabelled else tiles, coverage
        ),
    )


def _outputs(
    run: ModelBundle, tiles: Features, views: Sequence[Features]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Logits (heads, classes) and attention (heads, tiles), averaged over views if given."""
    if not views:
        return predict_members(run.heads, tiles)
    logits, attention = predict_views(run.heads, tiles, np.concatenate(views))
    return logits.mean(axis=0), attention.mean(axis=0)


def _prediction_set(run: ModelBundle, tiles: Features | None, coverage: float) -> tuple[str, ...]:
    """Classes that cannot be ruled out; without tiles that no head saw none can."""
    if tiles is None:
        return run.classes
    left = run.sets.predict_set(tiles, coverage=coverage)
    return tuple(name for name, is_left in zip(run.classes, left, strict=True) if is_left)


def _read_bags(run: ModelBundle, patient: Patient, places: Mapping[str, BagRef]) -> dict[str, Bag]:
    """Bags of a patient by slide id; slides without one are left out."""
    bags = {
        name: read_slide_bag(name, places[name]) for name in patient.slide_ids if name in places
    }
    check_fingerprint(
        run.fingerprint,
        ((places[slide_id], bag.meta.fingerprint) for slide_id, bag in bags.items()),
        source=f"the run {run.path}",
    )
    return bags


class _TrainingIndex:
    """Patients whose slides a run has seen, by id, content of a slide, and embeddings."""

    def __init__(self, slides: Sequence[TrainingSlide]) -> None:
        self._owners = [slide.patient_id for slide in slides]
        self._first: dict[tuple[str, str], int] = {}
        for place, slide in enumerate(slides):
            of_slide = content_keys(
                content_id=slide.content_id, features_sha256=slide.features_sha256,
                n_tiles=slide.n_tiles,
            )  # fmt: skip
            for key in (("patient", slide.patient_id), *of_slide):
                self._first.setdefault(key, place)

    def seen_as(self, patient: Patient, bags: Iterable[Bag]) -> str:
        """The first that this one is: of the same id, or with a slide of the same content."""
        keys = [("patient", patient.patient_id)]
        for bag in bags:
            keys += content_keys(
                content_id=bag.meta.slide_content_id, features_sha256=bag.features_sha256,
                n_tiles=len(bag.features),
            )  # fmt: skip
        places = [self._first[key] for key in keys if key in self._first]
        return self._owners[min(places)] if places else ""


def _seen_by_filter(run: ModelBundle, patient: Patient, bags: Mapping[str, Bag]) -> bool:
    if run.tile_filter is None:
        return False
    found = run.tile_filter.examples.slides_of_patient(
        patient.patient_id,
        slide_ids=patient.slide_ids,
        content_ids={bag.meta.slide_content_id for bag in bags.values()},
    )
    return bool(found)


def _out_of_fold(
    run: ModelBundle, seen_as: str, prior: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64] | None:
    proba = run.out_of_fold.get(seen_as)
    if proba is None:
        return None
    shifted = shift_prior(proba[None], old=balanced(run.classes), new=prior)
    return np.asarray(shifted[0], np.float64)


def _at_prior(
    run: ModelBundle, logits: npt.NDArray[np.float64], prior: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Calibrated probabilities, shape (rows, classes), shifted from the balanced prior."""
    calibrated = run.calibrator.predict_proba(logits)
    return shift_prior(calibrated, old=balanced(run.classes), new=prior)


def _share_of_slides(
    bags: Mapping[str, Bag], attention: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Attention by slide; ``attention`` of shape (tiles,) runs over the bags in their order."""
    ends = np.cumsum([len(bag.features) for bag in bags.values()])
    sums = np.array([part.sum() for part in np.split(attention, ends[:-1])])
    return dict(zip(bags, (sums / sums.sum()).tolist(), strict=True))


def _status(patient: Patient, bags: Mapping[str, Bag], filled: Mapping[str, Bag]) -> PatientStatus:
    if not bags:
        return "no_bag"
    if not filled:
        return "no_tissue"
    return "ok" if len(bags) == len(patient.slide_ids) else "slides_missing"


def _details_of(prediction: PatientPrediction, classes: tuple[str, ...]) -> dict[str, object]:
    nothing = [None] * len(classes)
    out_of_fold = nothing if prediction.out_of_fold is None else prediction.out_of_fold
    return {
        "patient_id": prediction.patient_id,
        "status": prediction.status,
        "n_slides": len(prediction.slide_ids),
        "n_slides_used": len(prediction.attention_share),
        "n_tiles": sum(prediction.n_tiles.values()),
        "set": prediction.set_in_words,
        "look_at": str(prediction.needs_review).lower(),
        "seen_in_training": str(bool(prediction.seen_as)).lower(),
        "seen_as": prediction.seen_as,
        "seen_by_filter": str(prediction.seen_by_filter).lower(),
        "seen_unlabelled": str(prediction.seen_unlabelled).lower(),
        **{f"out_of_fold_{name}": p for name, p in zip(classes, out_of_fold, strict=True)},
        **{f"lowest_{name}": p for name, p in zip(classes, prediction.lowest, strict=True)},
        **{f"highest_{name}": p for name, p in zip(classes, prediction.highest, strict=True)},
        "tiles_by_slide": _pairs(prediction.n_tiles),
        "attention_by_slide": _pairs(prediction.attention_share),
    }


def _pairs(values: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in values.items())
