from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import MilError
from mil.calibration.priors import balanced, parse_prior, shift_prior

CLASSES = ("CE", "LAA")
COUNTS = {"CE": 457, "LAA": 175}


def test_the_three_ways_to_say_a_prior() -> None:
    assert parse_prior("balanced", CLASSES, COUNTS).tolist() == [0.5, 0.5]
    assert parse_prior("cohort", CLASSES, COUNTS)[1] == pytest.approx(175 / 632)
    assert parse_prior("LAA=0.3, CE=0.7", CLASSES, COUNTS).tolist() == pytest.approx([0.7, 0.3])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "even",
        "CE=0.7",
        "CE=0.7,LAA=0.4",
        "CE=1,LAA=0",
        "CE=x,LAA=1",
        "CE=nan,LAA=1",
        "CE=0.1,CE=0.7,LAA=0.3",
    ],
)
def test_what_is_no_prior_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(MilError, match=r"CE=0.5,LAA=0.5"):
        parse_prior(text, CLASSES, COUNTS)


@given(first=st.floats(0.01, 0.99), old=st.floats(0.05, 0.95), new=st.floats(0.05, 0.95))
def test_a_shift_keeps_rows_at_one_and_can_be_taken_back(
    first: float, old: float, new: float
) -> None:
    proba = np.array([[first, 1 - first]])
    a, b = np.array([old, 1 - old]), np.array([new, 1 - new])
    shifted = shift_prior(proba, old=a, new=b)
    assert shifted.sum() == pytest.approx(1)
    np.testing.assert_allclose(shift_prior(shifted, old=b, new=a), proba, rtol=1e-9)


def test_knowing_nothing_at_a_balanced_prior_is_the_cohort_at_its_own() -> None:
    shares = np.array([0.7, 0.3])
    shifted = shift_prior(np.array([[0.5, 0.5]]), old=balanced(CLASSES), new=shares)
    np.testing.assert_allclose(shifted[0], shares)
