"""Baselines on pooled embeddings: fair, cheap, and compared in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest

from mil.data.bags import PatientBags
from mil.data.features import Features
from mil.evaluation.baseline_models import BASELINE_MODELS, baseline_logits, pool_embeddings
from mil.evaluation.baselines import (
    compare_with_baselines,
    decisive_comparison,
    embedding_baselines,
)
from mil.evaluation.metrics import Interval, auroc
from mil.training.cross_validation import OutOfFoldPredictions
from tests.fakes import FINGERPRINT

NAMES = tuple(BASELINE_MODELS)


def sample_cohort(
    *, n_classes: int = 2, dim: int = 8, n: int = 40, seed: int = 0, focal: bool = False
) -> tuple[PatientBags, OutOfFoldPredictions]:
    """Bags of nine tiles whose first dimension differs by class, in all tiles or in one."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    names = tuple(map(str, range(n)))
    features = {}
    for name, label in zip(names, labels.tolist(), strict=True):
        tiles = rng.normal(size=(9, dim))
        tiles[: 1 if focal else 9, 0] += (6 if focal else 1.5) * label
        features[name] = tiles.astype(np.float16)
    fold = np.stack([np.arange(n) // n_classes % 4, rng.permutation(np.arange(n) % 4)])
    oof = OutOfFoldPredictions(
        patient_ids=names, labels=labels, logits=np.zeros((2, n, n_classes)), history={}, heads={},
        fold=fold,
    )  # fmt: skip
    fingerprint = replace(FINGERPRINT, dim=dim)
    return PatientBags(features=features, fingerprint=fingerprint, slides=()), oof


class CountedReads(Mapping[str, Features]):
    """Embeddings by patient that count how often each is read."""

    def __init__(self, features: Mapping[str, Features]) -> None:
        self._features = features
        self.n_reads: Counter[str] = Counter()

    def __getitem__(self, patient_id: str) -> Features:
        self.n_reads[patient_id] += 1
        return self._features[patient_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("dim", [4, 16])
def test_each_baseline_learns_what_its_pooling_shows(n_classes: int, dim: int) -> None:
    bags, oof = sample_cohort(n_classes=n_classes, dim=dim, n=60)
    proba = embedding_baselines(bags, oof, calibrator="platt", seed=0)
    assert tuple(proba) == NAMES
    for name, values in proba.items():
        assert values.shape == (2, 60, n_classes)
        np.testing.assert_allclose(values.sum(axis=2), 1)
        if name != "min-max logistic":
            assert auroc(values.mean(axis=0), oof.labels) > 0.75, name
    focal, oof = sample_cohort(n_classes=n_classes, dim=dim, n=60, focal=True)
    proba = embedding_baselines(focal, oof, calibrator="platt", seed=0)
    areas = {name: auroc(values.mean(axis=0), oof.labels) for name, values in proba.items()}
    assert max(areas, key=areas.__getitem__) == "min-max logistic"


def test_no_baseline_is_trained_on_labels_of_test_patients() -> None:
    bags, oof = sample_cohort()
    turned = oof.labels.copy()
    turned[7] = 1 - turned[7]
    before, after = (
        embedding_baselines(bags, one, calibrator="none", seed=0)
        for one in (oof, replace(oof, labels=turned))
    )
    for name in NAMES:
        np.testing.assert_array_equal(before[name][:, 7], after[name][:, 7])
        assert (before[name] != after[name]).any()


def test_no_baseline_learns_from_the_tiles_of_test_patients() -> None:
    bags, oof = sample_cohort()
    loud = replace(bags, features={**bags.features, "7": np.full((9, 8), 300, np.float16)})
    clean, poison = (
        embedding_baselines(store, oof, calibrator="none", seed=0) for store in (bags, loud)
    )
    same_fold = oof.fold[0] == oof.fold[0, 7]
    same_fold[7] = False
    for name in NAMES:
        np.testing.assert_array_equal(clean[name][0, same_fold], poison[name][0, same_fold])
        assert (clean[name][0, 7] != poison[name][0, 7]).any()


def test_bags_are_read_once_for_all_baselines_and_folds() -> None:
    bags, oof = sample_cohort()
    counted = CountedReads(bags.features)
    embedding_baselines(replace(bags, features=counted), oof, calibrator="platt", seed=0)
    assert set(counted.n_reads.values()) == {1}


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_embeddings_that_are_all_alike_give_chance(value: float) -> None:
    bags, oof = sample_cohort()
    same = {name: np.full((9, 8), value, np.float16) for name in bags.features}
    proba = embedding_baselines(replace(bags, features=same), oof, calibrator="platt", seed=0)
    for name in NAMES:
        np.testing.assert_allclose(proba[name], 0.5, atol=0.01, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_and_order_of_dimensions_change_nothing(name: str) -> None:
    bags, oof = sample_cohort(dim=12)
    pooled = pool_embeddings(bags.features, oof.patient_ids, dim=12)
    order = np.random.default_rng(0).permutation(12)
    other = {
        "mean": pooled["mean"][:, order] * 1e-3,
        "min-max": pooled["min-max"][:, [*order, *(order + 12)]] * 1e-3,
    }
    one, two = (
        baseline_logits(name, values, oof.labels, values, seed=0) for values in (pooled, other)
    )
    np.testing.assert_allclose(one, two, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_patient_without_tiles_is_neither_learned_from_nor_an_error(name: str) -> None:
    bags, oof = sample_cohort()
    features = {**bags.features, "3": np.empty((0, 8), np.float16)}
    pooled = pool_embeddings(features, oof.patient_ids, dim=8)
    logits = baseline_logits(name, pooled, oof.labels, pooled, seed=0)
    assert np.isfinite(logits).all()
    kept = np.arange(40) != 3
    known = {pooling: values[kept] for pooling, values in pooled.items()}
    without = baseline_logits(name, known, oof.labels[kept], pooled, seed=0)
    np.testing.assert_array_equal(logits, without)


def gain(value: float, width: float = 0.05) -> dict[str, Interval]:
    interval = Interval(value=value, low=value - width, high=value + width)
    return {"weighted_log_loss": interval, "auroc": interval}


@pytest.mark.parametrize(
    ("gains", "verdict", "sentence"),
    [
        (
            {"mean + logistic": gain(0.1), "mean + ridge": gain(0.2)},
            "better",
            (
                "By log loss, the run is better than the best baseline, mean + logistic, by 0.100 "
                "[0.050, 0.150]."
            ),
        ),
        (
            {"mean + logistic": gain(0.1), "min-max logistic": gain(-0.1)},
            "worse",
            (
                "By log loss, the run is worse than the baseline min-max logistic by 0.100 [0.050, "
                "0.150]."
            ),
        ),
        (
            {"mean + logistic": gain(-0.01), "constant": gain(-9)},
            "no difference shown",
            (
                "By log loss, the run is not shown to differ from the best baseline, mean + "
                "logistic (log loss 0.010 worse; gain between -0.060 and 0.040)."
            ),
        ),
        (
            {"mean + logistic": gain(-0.0004, 0.0002)},
            "worse",
            (
                "By log loss, the run is worse than the baseline mean + logistic by 0.000 [0.000, "
                "0.001]."
            ),
        ),
        (
            {"mean + logistic": gain(-0.0001, 0.0003)},
            "no difference shown",
            (
                "By log loss, the run is not shown to differ from the best baseline, mean + "
                "logistic (log loss equal; gain between 0.000 and 0.000)."
            ),
        ),
        (  # what is beyond noise comes before what is only larger
            {"mean + logistic": gain(-0.2, 0.3), "mean + ridge": gain(-0.1)},
            "worse",
            "By log loss, the run is worse than the baseline mean + ridge by 0.100 [0.050, 0.150].",
        ),
    ],
    ids=["better", "worse", "unclear", "small", "equal", "beyond noise first"],
)
def test_the_comparison_names_the_baseline_that_is_hardest_to_beat(
    gains: dict[str, dict[str, Interval]], verdict: str, sentence: str
) -> None:
    comparison = compare_with_baselines(gains)
    assert comparison.verdict == verdict
    assert str(comparison) == sentence


@pytest.mark.parametrize(
    ("loss", "area", "sentence"),
    [
        (0.2, -0.1, "By AUROC, the run is worse than the baseline mean + ridge by 0.100"),
        (0.0, -0.1, "By AUROC, the run is worse than the baseline mean + ridge by 0.100"),
        (-0.2, -0.1, "By log loss, the run is worse than the baseline mean + ridge by 0.200"),
        (-0.2, 0.1, "By log loss, the run is worse than the baseline mean + ridge by 0.200"),
        (0.2, 0.0, "By log loss, the run is better than the best baseline, mean + ridge"),
        (0.0, 0.1, "By log loss, the run is not shown to differ"),
    ],
)
def test_a_baseline_that_ranks_better_is_named_where_none_has_the_lower_loss(
    loss: float, area: float, sentence: str
) -> None:
    metrics = {
        "weighted_log_loss": gain(loss)["weighted_log_loss"], "auroc": gain(area)["auroc"],
    }  # fmt: skip
    assert str(decisive_comparison({"mean + ridge": metrics})).startswith(sentence)
