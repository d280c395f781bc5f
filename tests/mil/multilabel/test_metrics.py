from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss

from mil.multilabel.metrics import (
    label_log_losses,
    label_weights,
    shift_labels,
    weighted_label_loss,
)

RNG = np.random.default_rng(0)
TRUTH = (RNG.random((80, 6)) < 0.3).astype(np.int64)
PROBA = RNG.uniform(0.01, 0.99, (80, 6))
NAMES = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


def test_any_weighs_twice_and_the_weights_sum_to_one() -> None:
    np.testing.assert_allclose(label_weights(NAMES), np.array([2, 1, 1, 1, 1, 1]) / 7)
    np.testing.assert_allclose(label_weights(("a", "b")), [0.5, 0.5])


def test_the_loss_is_the_weighted_mean_of_each_labels_log_loss() -> None:
    each = [log_loss(TRUTH[:, i], PROBA[:, i]) for i in range(6)]
    np.testing.assert_allclose(label_log_losses(PROBA, TRUTH), each)
    loss = weighted_label_loss(PROBA, TRUTH, names=NAMES, n_resamples=200, seed=0)
    assert loss.value == pytest.approx(np.average(each, weights=[2, 1, 1, 1, 1, 1]))
    assert loss.low < loss.value < loss.high


def test_certainty_that_is_wrong_costs_much_and_not_everything() -> None:
    losses = label_log_losses(np.array([[1.0, 0.0]]), np.array([[0, 0]]))
    assert losses[0] == pytest.approx(-np.log(1e-15), rel=0.01)
    assert losses[1] == pytest.approx(0, abs=1e-12)


def test_a_shift_there_and_back_changes_nothing_and_ranks_stay() -> None:
    old, new = np.full(6, 0.5), np.linspace(0.05, 0.6, 6)
    moved = shift_labels(PROBA, old=old, new=new)
    np.testing.assert_allclose(shift_labels(moved, old=new, new=old), PROBA)
    np.testing.assert_array_equal(np.argsort(moved, axis=0), np.argsort(PROBA, axis=0))
    np.testing.assert_allclose(shift_labels(np.full((1, 6), 0.5), old=old, new=new)[0], new)


def test_of_several_repeats_the_mean_is_taken_and_not_of_their_mean() -> None:
    repeats = np.stack([PROBA, PROBA[::-1]])
    loss = weighted_label_loss(repeats, TRUTH, names=NAMES, n_resamples=50, seed=0)
    each = [
        weighted_label_loss(one, TRUTH, names=NAMES, n_resamples=0, seed=0).value for one in repeats
    ]
    assert loss.value == pytest.approx(np.mean(each))
    of_mean = weighted_label_loss(repeats.mean(0), TRUTH, names=NAMES, n_resamples=0, seed=0)
    assert loss.value > of_mean.value
