"""Whether the attention lies where somebody saw something: labels of single images score it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mil.data.instance_labels import InstanceLabels
from mil.evaluation.metrics import as_two_columns, auroc
from mil.inference.attention import Explanation

__all__ = ["Agreement", "PatientAgreement", "measure_agreement", "summarise"]


@dataclass(frozen=True, kw_only=True)
class PatientAgreement:
    """Attention beside labels of a patient whose images have both answers."""

    auroc: float
    """Chance that an image that shows something has more attention than one that does not."""
    hit: bool
    """Whether the most attended image shows something."""
    share: float
    """Share of the images that do: how often a random image would."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Means over patients."""

    n_patients: int
    """Patients whose images have both answers."""
    auroc: float
    """Mean area; 0.5 is chance."""
    hits: float
    """Share of patients whose most attended image shows something."""
    chance: float
    """What that share would be for images drawn at random."""


def measure_agreement(explanation: Explanation, labels: InstanceLabels) -> PatientAgreement | None:
    """Compare the attention of one patient with labels of its images.

    Images without a label are left out; None where those left do not have both answers.
    """
    attention, truth = [], []
    for slide in explanation.slides:
        for place, source in enumerate(slide.source or ()):
            if (found := labels.get((slide.meta.slide_id, source))) is not None:
                attention.append(float(slide.attention[place]))
                truth.append(found)
    if len(set(truth)) < 2:
        return None
    values, answers = np.array(attention), np.array(truth, np.int64)
    return PatientAgreement(
        auroc=auroc(as_two_columns(values), answers),
        hit=bool(answers[values.argmax()]),
        share=float(answers.mean()),
    )


def summarise(found: Sequence[PatientAgreement]) -> Agreement:
    """Means over patients; NaN where there is none."""
    rows = [(each.auroc, float(each.hit), each.share) for each in found] or [(math.nan,) * 3]
    area, hits, chance = np.array(rows, np.float64).mean(axis=0).tolist()
    return Agreement(n_patients=len(found), auroc=area, hits=hits, chance=chance)
