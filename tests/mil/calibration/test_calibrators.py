from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from mil.calibration import (
    TemperatureScaling,
    build_calibrator,
    calibrator_from_dict,
    calibrator_names,
    clipped_log,
)
from mil.calibration.priors import shift_prior
from mil.errors import CalibrationError
from tests.mil.calibration.drawn import honest_logits, normal_scores

NAMES = calibrator_names()


@settings(max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    n=st.integers(15, 80),
    distance=st.floats(-3, 3),
    offset=st.floats(-3, 3),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 1000),
)
def test_rows_sum_to_one_and_ranks_are_never_reversed(
    name: str, n: int, distance: float, offset: float, scale: float, seed: int
) -> None:
    logits, labels = normal_scores(n, distance, seed)
    logits = (logits + np.array([0.0, offset])) * scale
    proba = build_calibrator(name).fit(logits, labels).predict_proba(logits)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (proba >= 0).all()
    order = np.argsort(logits[:, 1] - logits[:, 0])
    assert (np.diff(proba[order, 1]) >= -1e-12).all()


@settings(max_examples=25)
@given(name=st.sampled_from(NAMES), share=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_another_prior_is_an_exact_shift_of_the_logit(name: str, share: float, seed: int) -> None:
    logits, labels = normal_scores(60, 1.0, seed)
    proba = build_calibrator(name).fit(logits, labels).predict_proba(logits)
    even, new = np.array([0.5, 0.5]), np.array([1 - share, share])
    shifted = shift_prior(proba, old=even, new=new)
    moved = np.log(shifted[:, 1] / shifted[:, 0]) - np.log(proba[:, 1] / proba[:, 0])
    np.testing.assert_allclose(moved, np.log(share / (1 - share)), atol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 8.0])
def test_temperature_scaling_estimates_a_planted_temperature(temperature: float) -> None:
    logits, labels = honest_logits(30_000, 0)
    fitted = TemperatureScaling().fit(logits * temperature, labels)
    assert 1 / fitted.slope_ == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_it_comes_back_from_a_file(name: str, n_classes: int) -> None:
    logits, labels = honest_logits(60, 9, n_classes=n_classes)
    fitted = build_calibrator(name).fit(logits, labels)
    back = calibrator_from_dict(json.loads(json.dumps(fitted.as_dict())))
    assert type(back) is type(fitted)
    np.testing.assert_array_equal(back.predict_proba(logits), fitted.predict_proba(logits))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "kind None"),
        (
            {"kind": "isotonic"},
            "kind 'isotonic'; expected none or shrunken_platt or stacked_platt or temperature",
        ),
        ({"kind": "stacked_platt", "bias": [0, 0], "weights": [1]}, "slopes = None"),
        ({"kind": "stacked_platt", "slopes": [-1], "bias": [0, 0], "weights": [1]}, "below 0"),
        ({"kind": "stacked_platt", "slopes": [], "bias": [0, 0], "weights": []}, "at least one"),
        ({"kind": "stacked_platt", "slopes": [1, 1], "bias": [0, 0], "weights": [1]}, "as many"),
        (
            {"kind": "stacked_platt", "slopes": [1], "bias": [0, 0], "weights": [1], "limits": [0]},
            "above 0 per slope",
        ),
        (
            {"kind": "stacked_platt", "slopes": [1], "bias": [0], "weights": [1], "limits": [1, 2]},
            r"limits \[1.0, 2.0\]; expected one number above 0 per slope",
        ),
        ({"kind": "beta", "slopes": [1.0, 1.0], "bias": [0.0, 0.0]}, "no longer reads that kind"),
        ({"kind": "temperature"}, "slope = None"),
        ({"kind": "temperature", "slope": -1.0}, "slope -1; expected a slope of at least 0"),
        ({"kind": "shrunken_platt", "slope": "x", "bias": [0, 0]}, "slope = 'x'"),
        ({"kind": "shrunken_platt", "slope": 1.0, "bias": [[0]]}, "finite numbers in 1 axes"),
        ({"kind": "shrunken_platt", "slope": -1.0, "bias": [0, 0]}, "a slope of at least 0"),
    ],
)
def test_what_cannot_be_a_calibrator_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrator_from_dict(values)


@pytest.mark.parametrize("name", ["auto", "beta", "dirichlet"])
def test_calibrators_that_moved_to_the_benchmark_are_refused_with_advice(name: str) -> None:
    with pytest.raises(CalibrationError, match=r"moved to .*Take platt, which decision 0017 chose"):
        build_calibrator(name)


def test_an_unknown_calibrator_is_refused() -> None:
    with pytest.raises(CalibrationError, match="unknown; expected none or platt or temperature"):
        build_calibrator("isotonic")


def test_probabilities_that_were_rounded_to_certainty_are_no_infinite_logits() -> None:
    logits = clipped_log(np.array([[0.0, 1.0], [0.3, 0.7]]))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(softmax(logits, axis=1), [[1e-7, 1], [0.3, 0.7]], atol=1e-7)
