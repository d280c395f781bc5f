from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mil.data.cohort import Cohort, Patient
from mil.errors import SplitError
from mil.multilabel.splits import iterative_stratification, label_folds
from mil.multilabel.table import LabelTable


def table_of(truth: np.ndarray) -> LabelTable:
    patients = tuple(
        Patient(patient_id=f"p{i}", slide_ids=(f"s{i}",), label=None, center_id=None)
        for i in range(len(truth))
    )
    names = tuple(f"label{i}" for i in range(truth.shape[1]))
    cohort = Cohort(path=Path("labels.csv"), patients=patients, classes=())
    return LabelTable(patients=cohort, names=names, truth=truth)


@given(st.integers(30, 120), st.integers(1, 5), st.integers(2, 6), st.integers(0, 99))
def test_the_rarest_label_differs_by_at_most_one_between_parts(
    n: int, n_labels: int, n_parts: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, n_labels)) < rng.uniform(0.1, 0.6, n_labels)).astype(np.int64)
    parts = iterative_stratification(truth, n_parts=n_parts, seed=(seed,))
    assert set(parts) <= set(range(n_parts))
    np.testing.assert_array_equal(
        parts, iterative_stratification(truth, n_parts=n_parts, seed=(seed,))
    )
    rarest = truth.sum(axis=0).argmin()
    assert np.ptp(np.bincount(parts, truth[:, rarest], minlength=n_parts)) <= 1


def test_several_labels_are_spread_far_better_than_by_chance() -> None:
    def unevenness(parts: np.ndarray) -> float:
        counts = [np.bincount(parts, column, minlength=5) for column in (*truth.T, np.ones(90))]
        return float(np.mean([np.ptp(count) for count in counts]))

    rng = np.random.default_rng(1)
    truth = (rng.random((90, 6)) < [0.4, 0.06, 0.2, 0.1, 0.15, 0.3]).astype(np.int64)
    stratified = [
        unevenness(iterative_stratification(truth, n_parts=5, seed=(seed,))) for seed in range(20)
    ]
    drawn = [unevenness(rng.integers(5, size=90)) for _ in range(20)]
    assert max(stratified) < min(drawn)
    assert np.mean(stratified) < 1.5


def test_a_rare_label_is_in_every_fold() -> None:
    rng = np.random.default_rng(0)
    truth = np.stack([rng.random(100) < 0.5, np.arange(100) < 5, rng.random(100) < 0.2], axis=1)
    folds = label_folds(table_of(truth.astype(np.int64)), n_folds=5, n_repeats=2, seed=1)
    assert len(folds) == 10
    for fold in folds:
        assert sum(name in fold.test_ids for name in ("p0", "p1", "p2", "p3", "p4")) == 1
        assert not set(fold.train_ids) & set(fold.test_ids)
    for repeat in range(2):
        held_out = [name for f in folds if f.repeat == repeat for name in f.test_ids]
        assert sorted(held_out) == sorted(f"p{i}" for i in range(100))


@pytest.mark.parametrize("n_with", [2, 18])
def test_a_label_too_rare_or_too_frequent_is_named(n_with: int) -> None:
    truth = np.stack([np.arange(20) % 2, np.arange(20) < n_with], axis=1).astype(np.int64)
    with pytest.raises(SplitError, match=f"{n_with} of 20 patients with label 'label1'"):
        label_folds(table_of(truth), n_folds=3, n_repeats=1, seed=0)
