from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from mil.calibration.priors import shift_prior
from mil.evaluation.metrics import brier_score, expected_calibration_error, prior_weights
from mil.evaluation.reliability import brier_parts, expected_error, reliability_table

HALF = np.array([0.5, 0.5])


def perfect(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.05, 0.95, n)
    labels = (rng.uniform(size=n) < share).astype(int)
    return np.stack([1 - share, share], axis=1), labels


def shares_of(labels: np.ndarray, n_classes: int = 2) -> np.ndarray:
    return np.bincount(labels, minlength=n_classes) / len(labels)


def test_bins_hold_equal_counts_and_wilsons_interval() -> None:
    proba, labels = perfect(200, 0)
    table = reliability_table(proba, labels, 1, prior=shares_of(labels))
    assert [row.n_patients for row in table] == [20] * 10
    order = np.argsort(proba[:, 1])
    for number, row in enumerate(table):
        members = order[20 * number : 20 * number + 20]
        n_with = int(labels[members].sum())
        assert row.observed == pytest.approx(n_with / 20)
        assert row.promised == pytest.approx(proba[members, 1].mean())
        assert (row.low, row.high) == (proba[members, 1].min(), proba[members, 1].max())
        expected = binomtest(n_with, 20).proportion_ci(method="wilson")
        assert row.observed_low == pytest.approx(expected.low, abs=1e-9)
        assert row.observed_high == pytest.approx(expected.high, abs=1e-9)


def test_equal_probabilities_share_a_bin() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    table = reliability_table(np.full((40, 2), 0.5), labels, 1, prior=shares_of(labels))
    assert [row.n_patients for row in table] == [40]
    assert table[0].observed == pytest.approx(0.25)


def test_at_another_prior_the_table_is_that_of_a_cohort_with_those_shares() -> None:
    labels = np.array([0] * 300 + [1] * 100)
    even = np.full((400, 2), 0.5)
    (row,) = reliability_table(even, labels, 1, prior=HALF)
    assert row.observed == pytest.approx(0.5)
    # Unequal weights are worth fewer patients, so the interval is wider than of 400 equal ones.
    fair = binomtest(200, 400).proportion_ci(method="wilson")
    assert row.observed_high - row.observed_low > fair.high - fair.low


def test_perfect_probabilities_show_no_more_error_than_chance_gives() -> None:
    inside = 0
    for seed in range(40):
        proba, labels = perfect(150, seed)
        error = expected_error(proba, labels, prior=shares_of(labels), n_draws=60, seed=seed)
        inside += error.value <= error.if_perfect_high
        assert error.value > 0
        assert 0.03 < error.if_perfect < 0.12
    assert inside >= 34


def test_the_bias_shrinks_with_patients_and_wrong_probabilities_stand_out() -> None:
    few, many = (
        expected_error(*perfect(n, 1), prior=HALF, n_draws=50, seed=0) for n in (100, 6400)
    )
    assert many.if_perfect < few.if_perfect / 4
    proba, labels = perfect(400, 2)
    wrong = expected_error(proba[:, ::-1], labels, prior=shares_of(labels), n_draws=50, seed=0)
    assert wrong.value > 3 * wrong.if_perfect_high


def test_the_error_is_that_of_the_score_and_follows_the_seed() -> None:
    proba, labels = perfect(120, 3)
    shifted = shift_prior(proba, old=shares_of(labels), new=HALF)
    one, same, other = (
        expected_error(shifted, labels, prior=HALF, n_draws=20, seed=seed) for seed in (1, 1, 2)
    )
    weights = prior_weights(labels, HALF, n_classes=2)
    assert one.value == pytest.approx(expected_calibration_error(shifted, labels, weights=weights))
    assert one == same
    assert one.if_perfect != other.if_perfect


@settings(max_examples=40)
@given(
    n_classes=st.integers(2, 4),
    n=st.integers(8, 80),
    digits=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_the_parts_of_the_brier_score_add_up(
    n_classes: int, n: int, digits: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    # Rounding makes ties, so that some bins are empty.
    proba = np.round(rng.dirichlet(np.ones(n_classes), n), digits)
    prior = rng.dirichlet(5 * np.ones(n_classes))
    parts = [brier_parts(proba, labels, index, prior=prior) for index in range(n_classes)]
    for one in parts:
        assert one.brier == pytest.approx(
            one.reliability - one.resolution + one.uncertainty + one.within_bins, abs=1e-12
        )
        assert min(one.reliability, one.resolution, one.uncertainty) >= 0
    weights = prior_weights(labels, prior, n_classes=n_classes)
    assert sum(one.brier for one in parts) == pytest.approx(
        brier_score(proba, labels, weights=weights)
    )


def test_known_parts_are_found() -> None:
    # Two values of probability, each right: no unreliability, nothing hidden inside the bins.
    proba = np.repeat([[0.75, 0.25], [0.25, 0.75]], 4, axis=0)
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    parts = brier_parts(proba, labels, 1, prior=HALF)
    assert parts.reliability == pytest.approx(0, abs=1e-15)
    assert parts.resolution == pytest.approx(1 / 16)
    assert parts.uncertainty == pytest.approx(1 / 4)
    assert parts.within_bins == pytest.approx(0, abs=1e-15)
