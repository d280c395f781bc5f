"""Agreement of the attention with labels of single images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.utils.text import normalize_name
from mil.data.instance_labels import InstanceLabels
from mil.evaluation.metrics import as_two_columns, auroc
from mil.inference.attention import Explanation

__all__ = ["AttentionAgreement", "PatientAgreement", "mean_agreement", "measure_agreement"]


@dataclass(frozen=True, kw_only=True)
class PatientAgreement:
    """Agreement of one patient whose images have both labels.

    ``auroc`` is the probability that a positive image has more attention than a negative one,
    ``hit`` whether the most attended image is positive, and ``share`` the share of positive images:
    the hit rate of an image drawn at random.
    """

    auroc: float
    hit: bool
    share: float


@dataclass(frozen=True, kw_only=True)
class AttentionAgreement:
    """Means of :class:`PatientAgreement` over patients.

    ``auroc`` is 0.5 by chance. ``hits`` is the share of patients whose most attended image is
    positive, and ``chance`` its expectation for images drawn at random.
    """

    n_patients: int
    auroc: float
    hits: float
    chance: float


def measure_agreement(explanation: Explanation, labels: InstanceLabels) -> PatientAgreement | None:
    """Return the agreement of a patient's attention, shape (images,), with labels of its images.

    Images without a label are left out; the result is None where the others have one label only.
    """
    attention, truth = [], []
    for slide in explanation.slides:
        for index, source in enumerate(slide.source or ()):
            if (label := labels.get((slide.meta.slide_id, normalize_name(source)))) is not None:
                attention.append(float(slide.attention[index]))
                truth.append(label)
    if len(set(truth)) < 2:
        return None
    values, positive = np.array(attention), np.array(truth, np.int64)
    return PatientAgreement(
        auroc=auroc(as_two_columns(values), positive),
        hit=bool(positive[values.argmax()]),
        share=float(positive.mean()),
    )


def mean_agreement(patients: Sequence[PatientAgreement]) -> AttentionAgreement:
    """Return means over patients; NaN where there is none."""
    rows = [(each.auroc, float(each.hit), each.share) for each in patients] or [(math.nan,) * 3]
    area, hits, chance = np.array(rows, np.float64).mean(axis=0).tolist()
    return AttentionAgreement(n_patients=len(patients), auroc=area, hits=hits, chance=chance)
