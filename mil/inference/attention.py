"""Attention and contribution of each tile of a patient's slides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from features.bags.bag import Bag, BagMeta, BagRef, check_fingerprint, check_slide_id
from features.bags.h5 import read_meta, read_slide_bag
from features.bags.store import open_bags
from features.errors import BagError
from mil.arrays import Bools, Floats, Ints
from mil.calibration import StackedPlattScaling
from mil.data.cohort import Cohort, Patient
from mil.data.copies import without_copies
from mil.inference.bundle import ModelBundle
from mil.inference.contributions import LearnerPart, attribute_tiles
from mil.inference.predict import PatientPrediction, iter_predictions

__all__ = ["Explanation", "SlideAttention", "explain_patients", "percentiles"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideAttention:
    """Attention of the tiles of one slide, in the order of its bag.

    Attributes
    ----------
    meta
        Metadata of the slide's bag.
    coords_px0
        Upper left corners, x then y, shape (tiles, 2), level-0 px; -1 where unknown.
    attention
        Mean over the heads, shape (tiles,); sums to 1 over all tiles of the patient.
    percentile
        Rank of the attention among all tiles of the patient, shape (tiles,), 0 to 100.
    contributions
        Part of each tile in the logit, shape (tiles, classes): of a stack in the weighted sum over
        those learners whose logit is a sum over tiles, of a single head in the mean over the heads
        before calibration. None where no learner has such a logit.
    by_learner
        Summands of each such learner's own logit by its name, shape (tiles, classes).
    is_unlike
        Whether each tile is unlike training tiles, shape (tiles,), see
        :meth:`mil.typicality.TypicalityReference.are_unlike`; None for earlier runs.
    order, source
        Position from 0, shape (tiles,), and name of each image of a series; None for a slide.
    """

    meta: BagMeta
    coords_px0: Ints
    attention: Floats
    percentile: Floats
    contributions: Floats | None
    by_learner: Mapping[str, Floats] = field(default_factory=dict)
    is_unlike: Bools | None = None
    order: Ints | None = None
    source: tuple[str, ...] | None = None

    def describe_tile(self, index: int) -> str:
        """Return the position of a tile in level-0 px, or the name of an image of a series."""
        if self.order is not None and self.source is not None:
            return f"image {self.order[index] + 1}: {self.source[index]}"
        x_px0, y_px0 = self.coords_px0[index].tolist()
        return f"x {x_px0:,}, y {y_px0:,}"

    @property
    def share(self) -> float:
        """Share of the patient's attention on this slide, 0 to 1."""
        return float(self.attention.sum())

    @property
    def unlike_share(self) -> float | None:
        """Share of its tiles that are unlike training tiles, 0 to 1; None for earlier runs."""
        return None if self.is_unlike is None else float(self.is_unlike.mean())

    def signed_contribution(self, class_index: int) -> Floats | None:
        """Return the contribution of each tile to a class, less its mean over the classes.

        Only differences between logits change a probability. The shape is (tiles,); None where
        there are no contributions.
        """
        if self.contributions is None:
            return None
        own = self.contributions[:, class_index] - self.contributions.mean(axis=1)
        return np.asarray(own, np.float64)

    def top(self, n_tiles: int) -> Ints:
        """Return the indices of the most attended tiles, shape (n_tiles,), highest first."""
        return np.argsort(-self.attention, kind="stable")[:n_tiles]

    def bottom(self, n_tiles: int) -> Ints:
        """Return the indices, shape (n_tiles,), of the least attended tiles that top leaves."""
        order = np.argsort(-self.attention, kind="stable")
        return order[min(n_tiles, len(order)) :][::-1][:n_tiles]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Prediction of a patient, with the attention, shape (tiles,), of its nonempty slides.

    ``learners`` are the parts of the learners in the logit, one of a single head. ``biases``, shape
    (classes,), are what the calibrator of a stack adds to their sum, at equal class shares.
    """

    prediction: PatientPrediction
    slides: tuple[SlideAttention, ...]
    learners: tuple[LearnerPart, ...] = ()
    biases: Floats | None = None

    @property
    def n_tiles(self) -> int:
        """Tiles of all slides."""
        return sum(len(slide.attention) for slide in self.slides)

    @property
    def leading_class(self) -> int:
        """Index of the most probable class."""
        return int(self.prediction.probabilities.argmax())

    @property
    def logits(self) -> Floats | None:
        """Sum of all contributions, shape (classes,); None where there are none."""
        parts = [s.contributions.sum(axis=0) for s in self.slides if s.contributions is not None]
        return np.sum(parts, axis=0) if parts else None


def explain_patients(
    bundle: ModelBundle,
    cohort: Cohort,
    bags: str | Path | Mapping[str, BagRef],
    *,
    prior: str | Floats = "balanced",
    tta: bool = False,
) -> Iterator[Explanation]:
    """Return an iterator over the predictions and attention of all patients of a cohort.

    The headers of all bags are read before the first patient is predicted. Arguments are those of
    :func:`mil.inference.predict.predict`; a prior may be an array of shape (classes,). A patient
    whose bags cannot be used gets the prior, and no attention. With ``tta`` logits, attention and
    contributions are means over plain tiles and views.

    Raises
    ------
    BagError
        If there are bags, and all are damaged or made with other settings than the run's.
    """
    refs = bags if isinstance(bags, Mapping) else open_bags(Path(bags))
    slide_ids = (slide_id for patient in cohort.patients for slide_id in patient.slide_ids)
    _check_headers(bundle, {slide_id: refs[slide_id] for slide_id in slide_ids if slide_id in refs})
    predictions = iter_predictions(bundle, cohort, refs, prior=prior, tta=tta)
    return (
        _explain(bundle, prediction, patient, refs, tta=tta)
        for prediction, patient in zip(predictions, cohort.patients, strict=True)
    )


def _check_headers(bundle: ModelBundle, refs: Mapping[str, BagRef]) -> None:
    """Raise unless the header of a bag can be read and states the run's settings."""
    errors = []
    for slide_id, ref in refs.items():
        try:
            meta = read_meta(ref)
            check_slide_id(ref, meta, slide_id)
            made = ((ref, meta.fingerprint),)
            check_fingerprint(bundle.fingerprint, made, source=f"the run {bundle.path}")
        except BagError as error:
            errors.append(error)
    if errors and len(errors) == len(refs):
        raise errors[0]


def percentiles(values: Floats) -> Floats:
    """Return the percentile rank of each value, shape (n,), 0 to 100; ties share their mean rank.

    Examples
    --------
    >>> percentiles(np.array([0.1, 0.7, 0.1, 0.1])).tolist()
    [37.5, 87.5, 37.5, 37.5]
    """
    return np.asarray(100 * (rankdata(values) - 0.5) / len(values), np.float64)


def _explain(
    bundle: ModelBundle,
    prediction: PatientPrediction,
    patient: Patient,
    refs: Mapping[str, BagRef],
    *,
    tta: bool,
) -> Explanation:
    nonempty = [slide_id for slide_id, n_tiles in prediction.n_tiles.items() if n_tiles]
    read = {name: bundle.apply_filter(read_slide_bag(name, refs[name])) for name in nonempty}
    bags = list(without_copies(read).values())
    if not bags:
        return Explanation(prediction=prediction, slides=())
    tiles = np.concatenate([bag.features for bag in bags])
    views = [bag.views for bag in bags if bag.views is not None] if tta else []
    model = bundle.with_view_calibrator() if tta else bundle
    attention, learners = attribute_tiles(
        model, tiles, np.concatenate(views) if views else None, covariates=patient.covariates
    )
    is_unlike = None
    if bundle.typicality is not None:
        is_unlike = bundle.typicality.are_unlike(
            tiles, training_patient=prediction.matched_training_patient
        )
    if prediction.status == "out_of_range":  # its probabilities are the prior: nothing adds to them
        learners = ()
    return Explanation(
        prediction=prediction,
        slides=_slides(bags, attention, learners, is_unlike),
        learners=learners,
        biases=model.calibrator.bias_
        if learners and isinstance(model.calibrator, StackedPlattScaling)
        else None,
    )


def _slides(
    bags: Sequence[Bag],
    attention: Floats,
    learners: Sequence[LearnerPart],
    is_unlike: Bools | None,
) -> tuple[SlideAttention, ...]:
    """Return the rows of each slide; arrays have shape (tiles, ...) over all bags, in order."""
    ranks = percentiles(attention)
    by_learner = {one.name: one.of_tiles for one in learners if one.of_tiles is not None}
    parts = [one.part_of_tiles for one in learners if one.part_of_tiles is not None]
    if len(learners) == 1:  # of a single head, before calibration and not centred
        parts = list(by_learner.values())
    contributions = np.sum(parts, axis=0) if parts else None
    ends = np.cumsum([len(bag.features) for bag in bags])
    rows = [slice(end - len(bag.features), end) for bag, end in zip(bags, ends, strict=True)]
    return tuple(
        SlideAttention(
            meta=bag.meta,
            coords_px0=bag.coords_px0,
            attention=attention[own],
            percentile=ranks[own],
            contributions=None if contributions is None else contributions[own],
            by_learner={name: values[own] for name, values in by_learner.items()},
            is_unlike=None if is_unlike is None else is_unlike[own],
            order=bag.order,
            source=bag.source,
        )
        for bag, own in zip(bags, rows, strict=True)
    )
