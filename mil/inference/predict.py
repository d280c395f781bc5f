"""Predict patients with a trained model bundle: one row of probabilities per patient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from features.bags.bag import Bag, BagRef, check_fingerprint, no_bag_error
from features.bags.h5 import read_slide_bag
from features.bags.store import open_bags
from features.errors import BagError
from mil.arrays import Floats
from mil.base_learners.stack import predict_learner_views, predict_learners
from mil.calibration import StackedPlattScaling
from mil.calibration.priors import balanced, shift_prior
from mil.data.cohort import Cohort, Patient
from mil.data.copies import CopyIndex, SlideIdentity, content_keys, without_copies
from mil.data.features import Features
from mil.errors import RunError
from mil.inference.bundle import ModelBundle
from mil.inference.conformal import COVERAGE
from mil.inference.patient_typicality import PatientTypicality, score_patient
from mil.typicality.provenance import ProvenanceNote

__all__ = [
    "PatientPrediction",
    "bound_probabilities",
    "check_any_used",
    "iter_predictions",
    "predict",
]


PatientStatus = Literal[
    "ok", "slides_missing", "no_tissue", "no_bag", "bag_refused", "out_of_range"
]
"""``ok``: all slides used. ``slides_missing``: some had no bag, or one that cannot be used. The
others got the prior; ``bag_refused``: no bag of the patient can be used; ``out_of_range``: its
embeddings are far larger than those of the training, see :data:`MAX_WHITENED`, or hardly differ
from tile to tile, see :data:`MIN_WHITENED_SPREAD`."""

MAX_WHITENED = 20.0
"""Largest root mean square of a patient's whitened tiles, which is 1 over the training tiles; above
it numbers are of another scale, as of another encoder, and no probability means anything."""

MIN_WHITENED_SPREAD = 0.01
"""Smallest root mean square of the distance of a patient's whitened tiles from their mean; below it
numbers are of a smaller scale, or no tissue."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientPrediction:
    """Prediction of one patient: probabilities, prediction set, and the evidence behind them.

    Attributes
    ----------
    patient_id, slide_ids
        As in the cohort table.
    probabilities
        Shape (classes,), at the requested prior; sums to 1.
    status
        Whether all, some or none of the slides could be used.
    n_tiles
        Tiles used, by slide id; slides without a bag are absent.
    ensemble_min, ensemble_max
        Lowest and highest calibrated probability of a single head, shape (classes,).
    attention_share
        Share of the attention of each slide; sums to 1, empty without tiles.
    matched_training_patient
        The training patient with the same id or a slide of the same content; else empty.
    used_for_whitening, used_for_filter
        Whether the run's whitening, without a label, or its tile filter was fitted on the patient.
    out_of_fold
        Out-of-fold probabilities of the matched training patient, shape (classes,).
    prediction_set
        Classes that cannot be ruled out at the requested coverage, in order. It holds all classes
        for a patient without tiles, one that was used in training, with or without a label, or one
        unlike the training patients.
    problems
        Reasons why bags could not be used, by slide id.
    provenance
        In what each slide differs from all training slides, by slide id; equal slides are absent.
    confidence
        Largest probability at equal class shares; 0 for a patient without tiles.
    review_below
        Confidence below which the run's patients need review; None if the run has none.
    typicality
        How much it is like the training patients; None without tiles, and for runs that hold no
        training patients to compare with.
    learner_parts
        What each learner of a stack adds to the logits before biases, by name, shape (classes,);
        empty for a single head and without tiles.
    logits
        Mean logits of the heads before calibration, shape (classes,), of a stack (learners,
        classes); None without tiles.
    set_logits
        Logits that prediction sets compare, by fold, shape (folds, classes); None without tiles and
        for patients that were used in training.
    """

    patient_id: str
    probabilities: Floats
    status: PatientStatus
    slide_ids: tuple[str, ...]
    n_tiles: Mapping[str, int]
    ensemble_min: Floats
    ensemble_max: Floats
    attention_share: Mapping[str, float]
    matched_training_patient: str
    used_for_whitening: bool
    out_of_fold: Floats | None
    prediction_set: tuple[str, ...]
    used_for_filter: bool = False
    problems: Mapping[str, BagError] = field(default_factory=dict)
    provenance: Mapping[str, tuple[ProvenanceNote, ...]] = field(default_factory=dict)
    confidence: float = 0.0
    review_below: float | None = None
    typicality: PatientTypicality | None = None
    learner_parts: Mapping[str, Floats] = field(default_factory=dict)
    logits: Floats | None = None
    set_logits: Floats | None = None

    @property
    def learner_shares(self) -> dict[str, float]:
        """Share of each learner in the logit of the most probable class, -1 to 1, by name.

        A negative share is against the class. Absolute shares sum to 1, unless all are 0.
        """
        leading = int(self.probabilities.argmax())
        parts = {name: float(part[leading]) for name, part in self.learner_parts.items()}
        total = sum(map(abs, parts.values())) or 1.0
        return {name: part / total for name, part in parts.items()}

    @property
    def unlike_training(self) -> bool:
        """Whether the patient is marked as unlike the training patients."""
        return self.typicality is not None and self.typicality.is_unlike

    @property
    def needs_review(self) -> bool:
        """Whether the patient is too uncertain, unlike training patients, or one of them.

        Too uncertain is a confidence below that of the run; if the run has none, a prediction set
        that does not hold exactly one class.
        """
        if self.review_below is None:
            return len(self.prediction_set) != 1
        was_used = bool(self.matched_training_patient) or self.used_for_whitening
        return was_used or self.unlike_training or self.confidence < self.review_below

    @property
    def set_text(self) -> str:
        """``CE``, ``CE|LAA``, or ``(none)`` where every class was ruled out."""
        return "|".join(self.prediction_set) or "(none)"


def predict(
    bundle: ModelBundle,
    cohort: Cohort,
    bags: str | Path | Mapping[str, BagRef],
    *,
    prior: str | Floats = "balanced",
    coverage: float = COVERAGE,
    tta: bool = False,
    typicality: float | None = None,
) -> list[PatientPrediction]:
    """Return the calibrated prediction of every patient, in the order of the cohort table.

    A patient's bag is all tiles of all its slides that the run's filter keeps. A patient without
    tissue, or without a bag that can be used, gets the prior itself, and a status that states it.
    Where a patient is unlike the training patients, no probability is nearer to 0 than their number
    supports, see :func:`bound_probabilities`.

    Parameters
    ----------
    bundle
        Trained model, from :func:`mil.inference.bundle.load_bundle`.
    cohort
        Patients and their slides; labels are ignored.
    bags
        Folder or packed store of bags, or bags by slide id.
    prior
        Class shares that the probabilities are for: shape (classes,), float64, or a text for
        :meth:`mil.inference.bundle.ModelBundle.parse_prior`.
    coverage
        Target coverage of the prediction sets, above 0 and below 1. They do not depend on the
        prior.
    tta
        Average logits over plain tiles and their augmented views, and calibrate with the calibrator
        that was fitted on such averages. Prediction sets use plain tiles either way, because their
        guarantee holds for those.
    typicality
        Largest typicality of patients marked as unlike the training patients; by default 0.05, or
        the smallest that the run can reach. It has no effect for runs of earlier versions.

    Raises
    ------
    BagError
        If there is no bag, or all are damaged or made with other settings than the run's.
    RunError
        If views are to be averaged, and the run was trained without; or the run uses covariates
        that the cohort does not hold, see :func:`mil.data.covariates.with_covariates`.
    MilError
        If the text of a prior cannot be parsed.
    InputError
        If the run has too few training patients for a typicality that low.
    """
    refs = bags if isinstance(bags, Mapping) else open_bags(Path(bags))
    predictions = list(
        iter_predictions(
            bundle, cohort, refs, prior=prior, coverage=coverage, tta=tta, typicality=typicality
        )
    )
    _raise_if_all_refused(predictions)
    return predictions


def check_any_used(
    predictions: Sequence[PatientPrediction], refs: Mapping[str, BagRef], *, source: object
) -> None:
    """Raise BagError if all predictions are the prior for want of a bag; name the nearest bags."""
    _raise_if_all_refused(predictions)
    if not any(prediction.n_tiles for prediction in predictions):
        slide_ids = [slide_id for prediction in predictions for slide_id in prediction.slide_ids]
        raise no_bag_error(source, slide_ids, refs)


def _raise_if_all_refused(predictions: Sequence[PatientPrediction]) -> None:
    if not any(prediction.n_tiles for prediction in predictions):
        for prediction in predictions:
            for error in prediction.problems.values():
                raise error


def iter_predictions(
    bundle: ModelBundle,
    cohort: Cohort,
    refs: Mapping[str, BagRef],
    *,
    prior: str | Floats = "balanced",
    coverage: float = COVERAGE,
    tta: bool = False,
    typicality: float | None = None,
) -> Iterator[PatientPrediction]:
    """Yield the predictions of :func:`predict` one by one, even if no patient has a bag."""
    model = bundle.with_view_calibrator() if tta else bundle
    shares = bundle.parse_prior(prior) if isinstance(prior, str) else prior
    trained_on = _TrainingIndex(bundle.training_slides)
    whitened_on = _TrainingIndex(bundle.unlabelled_slides)
    level = None if bundle.typicality is None else bundle.typicality.resolve_level(typicality)
    _require_covariates(bundle, cohort)
    for patient in cohort.patients:
        yield _predict(
            model, patient, refs, trained_on, whitened_on, prior=shares, coverage=coverage, tta=tta,
            level=level,
        )  # fmt: skip


def _require_covariates(bundle: ModelBundle, cohort: Cohort) -> None:
    """Raise unless the cohort holds the covariates of the run."""
    needed = () if bundle.covariates is None else bundle.covariates.covariates
    if needed and cohort.covariates != needed:
        names = ", ".join(covariate.name for covariate in needed)
        raise RunError(
            bundle.path,
            actual=f"a run that also uses the covariates {names}, which were not read",
            expected="a table of the patients with these columns",
            hint="In Python: mil.data.covariates.with_covariates(cohort, bundle.covariates"
            ".covariates).",
        )


def _predict(
    bundle: ModelBundle,
    patient: Patient,
    refs: Mapping[str, BagRef],
    trained_on: _TrainingIndex,
    whitened_on: _TrainingIndex,
    *,
    prior: Floats,
    coverage: float,
    tta: bool,
    level: float | None,
) -> PatientPrediction:
    bags, problems = _read_bags(bundle, patient, refs)
    matched = trained_on.match(patient, bags.values())
    used_for_whitening = bool(whitened_on.match(patient, bags.values()))
    bags = {slide_id: bundle.apply_filter(bag) for slide_id, bag in bags.items()}
    nonempty = {slide_id: bag for slide_id, bag in bags.items() if len(bag.features)}
    members, probabilities, share, prediction_set = prior[None], prior, {}, bundle.classes
    typicality, confidence, learner_parts, mean_logits = None, 0.0, {}, None
    set_logits: Floats | None = None
    out_of_range = bool(nonempty) and _is_out_of_range(bundle, nonempty)
    if nonempty and not out_of_range:
        distinct = without_copies(nonempty)
        of_slides = [bag.features for bag in distinct.values()]
        tiles = of_slides[0] if len(of_slides) == 1 else np.concatenate(of_slides)
        views = [bag.views for bag in distinct.values() if bag.views is not None] if tta else []
        logits, attention = _forward(bundle, tiles, views)
        logits = bundle.add_covariates(logits, patient.covariates)
        members = _at_prior(bundle, logits, prior)
        probabilities = _at_prior(bundle, logits.mean(axis=0, keepdims=True), prior)[0]
        equal = balanced(bundle.classes)
        confidence = float(_at_prior(bundle, logits.mean(axis=0, keepdims=True), equal).max())
        mean_logits = logits.mean(axis=0)
        learner_parts = _learner_parts(bundle, mean_logits)
        share = _attention_share(distinct, attention.mean(axis=0))
        if bundle.typicality is not None and level is not None:
            typicality = score_patient(
                bundle.typicality, distinct, tiles, level=level, training_patient=matched
            )
        is_unlike = typicality is not None and typicality.is_unlike
        if is_unlike:
            n_patients = sum(bundle.cohort_counts)
            probabilities = bound_probabilities(probabilities[None], n_patients)[0]
            members = bound_probabilities(members, n_patients)
        # Patients that were used in training have no valid set: it would be too confident.
        if not matched and not used_for_whitening:
            set_logits = bundle.sets.fold_logits(tiles, covariates=patient.covariates)
        if set_logits is not None and not is_unlike:
            kept = bundle.sets.predict_set(set_logits, coverage=coverage)
            prediction_set = tuple(
                name for name, is_kept in zip(bundle.classes, kept, strict=True) if is_kept
            )
    return PatientPrediction(
        patient_id=patient.patient_id,
        probabilities=probabilities,
        status="out_of_range" if out_of_range else _status(patient, bags, nonempty, problems),
        slide_ids=patient.slide_ids,
        n_tiles={slide_id: len(bag.features) for slide_id, bag in bags.items()},
        ensemble_min=members.min(axis=0),
        ensemble_max=members.max(axis=0),
        attention_share=share,
        matched_training_patient=matched,
        used_for_whitening=used_for_whitening,
        out_of_fold=_out_of_fold(bundle, matched, prior),
        used_for_filter=_used_for_filter(bundle, patient, bags),
        prediction_set=prediction_set,
        provenance=_compare_provenance(bundle, bags),
        confidence=confidence,
        review_below=None if bundle.abstention is None else bundle.abstention.threshold,
        typicality=typicality,
        learner_parts=learner_parts,
        logits=mean_logits,
        set_logits=set_logits,
        problems=problems,
    )


def _forward(
    bundle: ModelBundle, tiles: Features, views: Sequence[Features]
) -> tuple[Floats, Floats]:
    """Return logits and attention (heads, tiles), averaged over any views.

    Logits have shape (heads, classes), of a stack (heads, learners, classes).
    """
    heads, of_base = bundle.heads, bundle.base_learners
    if not views:
        return predict_learners(heads, of_base, tiles)
    logits, attention = predict_learner_views(heads, of_base, tiles, np.concatenate(views))
    return logits.mean(axis=0), attention.mean(axis=0)


def _read_bags(
    bundle: ModelBundle, patient: Patient, refs: Mapping[str, BagRef]
) -> tuple[dict[str, Bag], dict[str, BagError]]:
    """Return the bags of a patient that can be used, and why others cannot, by slide id."""
    bags, problems = {}, {}
    for slide_id in patient.slide_ids:
        if slide_id not in refs:
            continue
        try:
            bag = read_slide_bag(slide_id, refs[slide_id])
            made = ((refs[slide_id], bag.meta.fingerprint),)
            check_fingerprint(bundle.fingerprint, made, source=f"the run {bundle.path}")
        except BagError as error:
            problems[slide_id] = error
        else:
            bags[slide_id] = bag
    return bags, problems


class _TrainingIndex:
    """Index of training patients by id, and by the content and tiles of their slides."""

    def __init__(self, slides: Sequence[SlideIdentity]) -> None:
        self._patient_ids = [slide.patient_id for slide in slides]
        self._first: dict[str, int] = {}
        for index, name in enumerate(self._patient_ids):
            self._first.setdefault(name, index)
        self._copies = CopyIndex(slides)

    def match(self, patient: Patient, bags: Iterable[Bag]) -> str:
        """Return the first training patient with the id or a copy of a slide; else ``""``."""
        known = self._first.get(patient.patient_id)
        indices = [] if known is None else [known]
        for bag in bags:
            keys = content_keys(
                content_id=bag.meta.slide_content_id, features_sha256=bag.features_sha256,
                tiles_sha256=bag.tiles_sha256, n_tiles=len(bag.features),
            )  # fmt: skip
            indices += self._copies.find(keys, bag.tile_sketch)
        return self._patient_ids[min(indices)] if indices else ""


def _used_for_filter(bundle: ModelBundle, patient: Patient, bags: Mapping[str, Bag]) -> bool:
    return bundle.tile_filter is not None and bool(
        bundle.tile_filter.examples.slides_of_patient(
            patient.patient_id,
            slide_ids=patient.slide_ids,
            content_ids={bag.meta.slide_content_id for bag in bags.values()},
        )
    )


def _out_of_fold(bundle: ModelBundle, matched: str, prior: Floats) -> Floats | None:
    proba = bundle.out_of_fold.get(matched)
    if proba is None:
        return None
    shifted = shift_prior(proba[None], old=balanced(bundle.classes), new=prior)
    return np.asarray(shifted[0], np.float64)


def _at_prior(bundle: ModelBundle, logits: Floats, prior: Floats) -> Floats:
    """Return calibrated probabilities at a prior, shape (rows, classes)."""
    calibrated = bundle.calibrator.predict_proba(logits)
    return shift_prior(calibrated, old=balanced(bundle.classes), new=prior)


def _learner_parts(bundle: ModelBundle, logits: Floats) -> dict[str, Floats]:
    """Return what each learner of a stack adds; ``logits`` have shape (learners, classes)."""
    if not isinstance(bundle.calibrator, StackedPlattScaling):
        return {}
    parts = bundle.calibrator.parts(logits[None])[0]
    return dict(zip(bundle.learner_names, parts, strict=True))


def _compare_provenance(
    bundle: ModelBundle, bags: Mapping[str, Bag]
) -> dict[str, tuple[ProvenanceNote, ...]]:
    """Return in what slides differ from all training slides, by slide id."""
    if bundle.provenance is None:
        return {}
    notes = {slide_id: bundle.provenance.compare(bag.meta) for slide_id, bag in bags.items()}
    return {slide_id: of_slide for slide_id, of_slide in notes.items() if of_slide}


def _is_out_of_range(bundle: ModelBundle, bags: Mapping[str, Bag]) -> bool:
    whitening = bundle.heads[0].whitening
    total, n_tiles, sums = 0.0, 0, torch.zeros(())
    with torch.inference_mode():
        for bag in bags.values():
            tiles = torch.from_numpy(np.asarray(bag.features)).float()[None]
            whitened = whitening(tiles)[0].double()
            total += float(whitened.square().sum())
            sums = sums + whitened.sum(dim=0)
            n_tiles += len(whitened)
    n_values = n_tiles * sums.numel()
    spread = total - float(sums.square().sum()) / n_tiles
    is_flat = n_tiles > 1 and spread < n_values * MIN_WHITENED_SPREAD**2
    return is_flat or not total <= n_values * MAX_WHITENED**2


def bound_probabilities(probabilities: Floats, n_patients: int) -> Floats:
    """Return probabilities, shape (rows, classes), none below 1 / (``n_patients`` + 2).

    After n patients of one class in a row, the next is expected to be of another with that
    probability (Laplace's rule of succession): what is unlike all of them supports no stronger one.
    """
    bounded = np.maximum(np.nan_to_num(probabilities), 1 / (n_patients + 2))
    return np.asarray(bounded / bounded.sum(axis=1, keepdims=True))


def _attention_share(bags: Mapping[str, Bag], attention: Floats) -> dict[str, float]:
    """Return the share of the attention of each slide; ``attention`` has shape (tiles,)."""
    ends = np.cumsum([len(bag.features) for bag in bags.values()])
    sums = np.array([part.sum() for part in np.split(attention, ends[:-1])])
    return dict(zip(bags, (sums / sums.sum()).tolist(), strict=True))


def _status(
    patient: Patient,
    bags: Mapping[str, Bag],
    nonempty: Mapping[str, Bag],
    problems: Mapping[str, BagError],
) -> PatientStatus:
    if not bags:
        return "bag_refused" if problems else "no_bag"
    if not nonempty:
        return "no_tissue"
    return "ok" if len(bags) == len(patient.slide_ids) else "slides_missing"
