from __future__ import annotations

import math

import numpy as np

from mil.inference.attention import Explanation, SlideAttention, percentiles
from mil.inference.attention_agreement import mean_agreement, measure_agreement
from mil.inference.predict import PatientPrediction
from tests.fakes import make_series

NOBODY = PatientPrediction(
    patient_id="p", probabilities=np.array([0.5, 0.5]), status="ok", slide_ids=("s",),
    n_tiles={"s": 4}, ensemble_min=np.zeros(2), ensemble_max=np.ones(2), attention_share={"s": 1.0},
    matched_training_patient="", used_for_whitening=False, out_of_fold=None, prediction_set=(),
)  # fmt: skip


def explanation(attention: list[float]) -> Explanation:
    values = np.array(attention)
    bag = make_series("s", n_images=len(values))
    slide = SlideAttention(
        meta=bag.meta, coords_px0=bag.coords_px0, attention=values,
        percentile=percentiles(values), contributions=None, order=bag.order, source=bag.source,
    )  # fmt: skip
    return Explanation(prediction=NOBODY, slides=(slide,))


def labels(*values: int) -> dict[tuple[str, str], int]:
    return {("s", f"s_{index}.png"): value for index, value in enumerate(values)}


def test_attention_on_the_labelled_images_is_agreement() -> None:
    good = measure_agreement(explanation([0.1, 0.2, 0.6, 0.1]), labels(0, 1, 1, 0))
    bad = measure_agreement(explanation([0.5, 0.1, 0.1, 0.3]), labels(0, 1, 1, 0))
    assert good is not None
    assert bad is not None
    assert (good.auroc, good.hit, good.share) == (1.0, True, 0.5)
    assert (bad.auroc, bad.hit) == (0.0, False)
    both = mean_agreement([good, bad])
    assert (both.n_patients, both.auroc, both.hits, both.chance) == (2, 0.5, 0.5, 0.5)


def test_a_patient_whose_images_are_alike_or_unlabelled_says_nothing() -> None:
    assert measure_agreement(explanation([0.4, 0.6]), labels(0, 0)) is None
    assert measure_agreement(explanation([0.4, 0.6]), {}) is None
    assert math.isnan(mean_agreement([]).auroc)


def test_images_without_a_label_are_left_out() -> None:
    known = labels(0, 1)
    agreement = measure_agreement(explanation([0.1, 0.2, 0.7]), known)
    assert agreement is not None
    assert (agreement.hit, agreement.share) == (True, 0.5)
