"""Where the heads of a run look on a patient's slides, and what each tile adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from features.bags.bag import Bag, BagMeta, BagRef, check_fingerprint
from features.bags.h5 import read_meta, read_slide_bag
from features.bags.store import open_bags
from mil.data.bags import Features
from mil.data.cohort import Cohort, Patient
from mil.heads import Head
from mil.inference.bundle import ModelBundle
from mil.inference.predict import PatientPrediction, predict

__all__ = ["Explanation", "SlideAttention", "explain_patients", "percentiles"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideAttention:
    """Attention on the tiles of one slide, in the order of its bag."""

    meta: BagMeta
    """What the slide's bag says about itself."""
    coords_px0: npt.NDArray[np.int64]
    """Upper left corners, x then y, shape (tiles, 2), level-0 px; -1 where not known."""
    attention: Floats
    """Shape (tiles,): mean over the heads; sums to 1 over all tiles of the patient."""
    percentile: Floats
    """Shape (tiles,): rank of the attention among all tiles of the patient, 0 to 100."""
    contributions: Floats | None
    """Shape (tiles, classes): what each tile adds to the mean logit of the heads, before
    calibration; None where heads have no such parts."""
    order: npt.NDArray[np.int64] | None = None
    """Place of each image in its series, shape (tiles,), from 0; None for tiles of a slide."""
    source: tuple[str, ...] | None = None
    """Which image each is; None for tiles of a slide."""

    def place(self, index: int) -> str:
        """Where a tile lies, or which image of a series it is, in words."""
        if self.order is not None and self.source is not None:
            return f"image {self.order[index] + 1}: {self.source[index]}"
        x_px0, y_px0 = self.coords_px0[index].tolist()
        return f"x {x_px0:,}, y {y_px0:,}"

    @property
    def share(self) -> float:
        """Share of the patient's attention that falls on this slide, 0 to 1."""
        return float(self.attention.sum())

    def signed_contribution(self, class_index: int) -> Floats | None:
        """What each tile adds to the logit of a class beyond what it adds to all on average.

        Only differences between logits move a probability.

        Returns
        -------
        numpy.ndarray or None
            Shape (tiles,); None where heads have no contributions.
        """
        if self.contributions is None:
            return None
        own = self.contributions[:, class_index] - self.contributions.mean(axis=1)
        return np.asarray(own, np.float64)

    def most(self, n_tiles: int) -> npt.NDArray[np.int64]:
        """Indices of the most attended tiles, the highest first."""
        return np.argsort(-self.attention, kind="stable")[:n_tiles]

    def least(self, n_tiles: int) -> npt.NDArray[np.int64]:
        """Indices of the least attended tiles that are not among as many most attended ones."""
        order = np.argsort(-self.attention, kind="stable")
        return order[min(n_tiles, len(order)) :][::-1][:n_tiles]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What a run says of one patient, and where it looked."""

    prediction: PatientPrediction
    """As :func:`mil.inference.predict.predict` gives it."""
    slides: tuple[SlideAttention, ...]
    """Slides with tiles, in the order of the table."""

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
        """Shape (classes,): sum of all contributions; None where there are none."""
        parts = [s.contributions.sum(axis=0) for s in self.slides if s.contributions is not None]
        return np.sum(parts, axis=0) if parts else None


def explain_patients(
    run: ModelBundle, cohort: Cohort, bags: Path | Mapping[str, BagRef], *, prior: Floats
) -> Iterator[Explanation]:
    """Prediction and attention of every patient asked for, one after the other.

    All bags are checked before the first patient is looked at.

    Parameters
    ----------
    run, cohort, bags, prior
        As for :func:`mil.inference.predict.predict`, which gives the probabilities.

    Raises
    ------
    BagError
        If a bag was made otherwise than the run's, or is damaged.
    """
    places = open_bags(bags, may_be_empty=True) if isinstance(bags, Path) else bags
    wanted = (slide for patient in cohort.patients for slide in patient.slide_ids)
    found = (places[slide] for slide in wanted if slide in places)
    check_fingerprint(
        run.fingerprint,
        ((place, read_meta(place).fingerprint) for place in found),
        source=f"the run {run.path}",
    )
    return (_explain(run, cohort, patient, places, prior) for patient in cohort.patients)


def percentiles(values: Floats) -> Floats:
    """Rank of each value among all of them, 0 to 100; equal values share the middle of theirs.

    Examples
    --------
    >>> percentiles(np.array([0.1, 0.7, 0.1, 0.1])).tolist()
    [37.5, 87.5, 37.5, 37.5]
    """
    return np.asarray(100 * (rankdata(values) - 0.5) / len(values), np.float64)


def _explain(
    run: ModelBundle, cohort: Cohort, patient: Patient, places: Mapping[str, BagRef], prior: Floats
) -> Explanation:
    alone = replace(cohort, patients=(patient,))
    (prediction,) = predict(run, alone, places, prior=prior)
    used = [slide_id for slide_id, n_tiles in prediction.n_tiles.items() if n_tiles]
    bags = [run.apply_filter(read_slide_bag(slide_id, places[slide_id])) for slide_id in used]
    slides = _slides(run.heads, bags) if bags else ()
    return Explanation(prediction=prediction, slides=slides)


def _slides(heads: Sequence[Head], bags: Sequence[Bag]) -> tuple[SlideAttention, ...]:
    attention, contributions = _attend(heads, np.concatenate([bag.features for bag in bags]))
    ranks = percentiles(attention)
    ends = np.cumsum([len(bag.features) for bag in bags])
    return tuple(
        SlideAttention(
            meta=bag.meta,
            coords_px0=bag.coords_px0,
            attention=attention[end - len(bag.features) : end],
            percentile=ranks[end - len(bag.features) : end],
            contributions=None
            if contributions is None
            else contributions[end - len(bag.features) : end],
            order=bag.order,
            source=bag.source,
        )
        for bag, end in zip(bags, ends, strict=True)
    )


def _attend(heads: Sequence[Head], tiles: Features) -> tuple[Floats, Floats | None]:
    """Attention (tiles,) and contributions (tiles, classes), if any: means over the heads."""
    features = torch.from_numpy(np.asarray(tiles, np.float32))[None]  # (1, tiles, dim)
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    with torch.inference_mode():
        components = heads[0].whitening(features)  # one whitening an ensemble
        outputs = [head.score(components, mask) for head in heads]
    attention = torch.cat([output.attention for output in outputs]).double().numpy().mean(axis=0)
    attention /= attention.sum()  # which float32 leaves a little off 1
    parts = [output.contributions for output in outputs if output.contributions is not None]
    contributions = torch.cat(parts).double().numpy().mean(axis=0) if parts else None
    return attention, contributions
