from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.evaluation.bootstrap import paired_differences, stratified_bootstrap
from mil.evaluation.metrics import Metric, auroc, balanced_accuracy, weighted_log_loss

METRICS: Mapping[str, Metric] = {
    "weighted_log_loss": weighted_log_loss,
    "auroc": auroc,
    "balanced_accuracy": balanced_accuracy,
}


def draw(
    n_classes: int, seed: int, *, n: int = 60, n_repeats: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Rounded probabilities, so that there are ties, and labels with every class."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    proba = rng.dirichlet(np.ones(n_classes), (n_repeats, n)).round(1) + 1e-3
    return proba, rng.permutation(labels)


def loop_over_resamples(
    metric: Metric, proba: np.ndarray, labels: np.ndarray, *, n_resamples: int, seed: int
) -> np.ndarray:
    """Scores of resamples that are drawn and scored one by one: the plain form of the bootstrap."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == index) for index in range(proba.shape[2])]
    scores = []
    for index in range(n_resamples):
        rows = np.concatenate([rng.choice(part, len(part)) for part in members])
        scores.append(metric(proba[index % len(proba)][rows], labels[rows]))
    return np.array(scores)


@pytest.mark.parametrize("block", [2**20, 64])
@settings(max_examples=15)
@given(n_classes=st.integers(2, 4), n_repeats=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_intervals_are_those_of_a_plain_loop(
    block: int, n_classes: int, n_repeats: int, seed: int
) -> None:
    proba, labels = draw(n_classes, seed, n=24, n_repeats=n_repeats)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mil.evaluation.bootstrap._VALUES_PER_BLOCK", block)
        result = stratified_bootstrap(METRICS, proba, labels, n_resamples=50, seed=seed)
    for name, metric in METRICS.items():
        samples = loop_over_resamples(metric, proba, labels, n_resamples=50, seed=seed)
        assert [result[name].low, result[name].high] == np.percentile(samples, [2.5, 97.5]).tolist()
        assert result[name].value == np.mean([metric(one, labels) for one in proba])


@settings(max_examples=15)
@given(n_repeats=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_paired_differences_are_those_of_a_plain_loop(n_repeats: int, seed: int) -> None:
    proba, labels = draw(2, seed, n_repeats=n_repeats)
    baseline = draw(2, seed + 1, n_repeats=n_repeats)[0]
    gains = paired_differences(proba, {"other": baseline}, labels, n_resamples=50, seed=seed)
    for name, sign in (("weighted_log_loss", -1), ("auroc", 1)):
        own, other = (
            loop_over_resamples(METRICS[name], kind, labels, n_resamples=50, seed=seed)
            for kind in (proba, baseline)
        )
        limits = np.percentile(sign * (own - other), [2.5, 97.5]).tolist()
        assert [gains["other"][name].low, gains["other"][name].high] == limits


def test_the_interval_holds_the_score_and_follows_the_seed() -> None:
    proba, labels = draw(2, 5, n=80)
    first, same, other = (
        stratified_bootstrap({"auroc": auroc}, proba, labels, n_resamples=300, seed=seed)["auroc"]
        for seed in (1, 1, 2)
    )
    assert first.low < first.value < first.high
    assert first == same
    assert first != other
    assert str(first).startswith(f"{first.value:.4f} [")


def test_a_missing_class_has_no_auroc_and_no_resamples_give_no_limits() -> None:
    proba, labels = draw(2, 0)
    nothing = stratified_bootstrap({"auroc": auroc}, proba, labels, n_resamples=0, seed=0)["auroc"]
    assert np.isnan([nothing.low, nothing.high]).all()
    assert not np.isnan(nothing.value)
    missing = stratified_bootstrap({"auroc": auroc}, proba, 0 * labels, n_resamples=9, seed=0)
    assert np.isnan(missing["auroc"].high)
