"""Numbers of an explanation page, and the file ``explanation.json`` beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mil.arrays import Floats
from mil.inference.attention import Explanation
from mil.inference.bundle import ModelBundle
from mil.reporting.learners import learner_words

__all__ = ["LearnerRow", "explanation_as_dict", "learner_rows"]


@dataclass(frozen=True, kw_only=True)
class LearnerRow:
    """One learner of a stack on the page of a patient.

    ``part`` is what it adds to the logit of the most probable class, ``share`` that as a share of
    all absolute parts, -1 to 1, and ``weight`` its weight in the run, 0 to 1. ``has_tiles`` says
    whether single tiles have contributions to it, and ``is_attention`` whether the maps of the
    attention are its own.
    """

    words: str
    weight: float
    part: float
    share: float
    has_tiles: bool
    is_attention: bool


def learner_rows(explanation: Explanation) -> list[LearnerRow]:
    """Return the learners of a stack, the largest part first; none for a single head."""
    if len(explanation.learners) < 2:
        return []
    leading, shares = explanation.leading_class, explanation.prediction.learner_shares
    rows = [
        LearnerRow(
            words=learner_words(one.name),
            weight=one.weight,
            part=float(one.part[leading]),
            share=shares[one.name],
            has_tiles=one.of_tiles is not None,
            is_attention=index == 0,
        )
        for index, one in enumerate(explanation.learners)
    ]
    return sorted(rows, key=lambda row: -abs(row.part))


def explanation_as_dict(
    explanation: Explanation, *, run: ModelBundle, prior: Floats
) -> dict[str, object]:
    """Return an explanation as plain values; tiles are in the tables beside it.

    ``prior`` holds the class shares of the probabilities, shape (classes,).
    """
    prediction, typicality = explanation.prediction, explanation.prediction.typicality

    def by_class(values: Floats) -> dict[str, float]:
        return dict(zip(run.classes, np.asarray(values).tolist(), strict=True))

    return {
        "patient_id": prediction.patient_id,
        "run": run.path.name,
        "status": prediction.status,
        "seen_as": prediction.matched_training_patient,
        "prior": by_class(prior),
        "probabilities": by_class(prediction.probabilities),
        "prediction_set": list(prediction.prediction_set),
        "typicality": None
        if typicality is None
        else {
            "p_value": typicality.p_value,
            "level": typicality.level,
            "unlike_training": typicality.is_unlike,
        },
        "learners": [
            {
                "learner": one.name,
                "weight": one.weight,
                "factor": one.factor,
                "logits": by_class(one.logits),
                "parts": by_class(one.part),
                "tile_wise": one.of_tiles is not None,
            }
            for one in explanation.learners
        ],
        "biases": None if explanation.biases is None else by_class(explanation.biases),
        "slides": [
            {
                "slide_id": slide.meta.slide_id,
                "n_tiles": len(slide.attention),
                "attention_share": slide.share,
                "unlike_share": slide.unlike_share,
                "logits": {
                    name: by_class(parts.sum(axis=0)) for name, parts in slide.by_learner.items()
                },
            }
            for slide in explanation.slides
        ],
    }
