from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize

from mil.arrays import Floats
from mil.base_learners import (
    BASE_LEARNERS,
    EARLIER_LEARNERS,
    head_kind,
    learner_names,
    logistic,
)
from mil.base_learners.directions import fit_directions
from mil.base_learners.joined_bags import joined_bags
from mil.base_learners.learners import BaseLearners
from mil.base_learners.logistic import LinearModel
from mil.base_learners.pooling import Codebook, log_spread, mean_and_extremes
from mil.base_learners.second_order import covariances, project, tail_parts, tail_statistics
from mil.base_learners.storage import base_learners_from_tensors, base_learners_to_tensors
from mil.heads.whitening import Whitening, fit_pca_whitening

EARLIER = Path(__file__).parents[2] / "data" / "base-learners-v5.safetensors"
"""Base learners of version 5 as they were stored, and what they said of some tiles."""


def drawn(
    n: int = 24, dim: int = 12, *, n_tiles: int = 9, n_classes: int = 2, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Bags whose class moves the mean of all tiles."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    bags = {}
    for index, label in enumerate(labels):
        tiles = rng.normal(size=(n_tiles + index % 3, dim)) + np.eye(dim)[label]
        bags[f"p{index}"] = tiles.astype(np.float32)
    return bags, labels


def fit(
    bags: dict[str, np.ndarray], labels: np.ndarray, *, n_classes: int = 2
) -> tuple[BaseLearners, Whitening]:
    whitening = fit_pca_whitening(bags, list(bags), 6)
    tiles = [torch.from_numpy(bag) for bag in bags.values()]
    with torch.inference_mode():
        components = [whitening(bag) for bag in tiles]
    pooled = np.stack([mean_and_extremes(bag) for bag in tiles])
    learners = BaseLearners.fit(
        pooled, components, labels, n_classes=n_classes, balanced=True, whitening=whitening,
        n_leading=4,
    )  # fmt: skip
    return learners, whitening


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**-27, 2.0**20])
def test_learners_do_not_depend_on_the_unit_of_embeddings(factor: float) -> None:
    bags, labels = drawn()
    scaled = {name: bag * np.float32(factor) for name, bag in bags.items()}
    expected, of_factor = fit(bags, labels), fit(scaled, labels)
    assert not of_factor[0].constant
    for name, bag in bags.items():
        np.testing.assert_allclose(
            of_factor[0].logits(scaled[name], of_factor[1]), expected[0].logits(bag, expected[1]),
            atol=1e-3,
        )  # fmt: skip
        np.testing.assert_allclose(
            of_factor[1](torch.from_numpy(scaled[name])), expected[1](torch.from_numpy(bag)),
            atol=1e-3,
        )  # fmt: skip


def test_contributions_sum_to_the_logits_of_embeddings_far_from_0() -> None:
    bags, labels = drawn()
    far = {name: bag + np.float32(1e6) for name, bag in bags.items()}
    learners, whitening = fit(far, labels)
    logits = learners.logits(far["p0"], whitening)
    for name, parts in learners.contributions(far["p0"], whitening).items():
        expected = logits[list(learners.models).index(name)]
        np.testing.assert_allclose(parts.sum(axis=0), expected, atol=1e-6)


def test_the_stack_has_gated_heads_and_single_heads_are_themselves() -> None:
    assert (head_kind("stack"), head_kind("mean")) == ("gated", "mean")
    assert learner_names("stack") == ("gated", *BASE_LEARNERS)
    assert learner_names("lse") == ("lse",)


@pytest.mark.parametrize("n_features", [3, 40])
def test_the_fit_is_the_minimum_of_the_penalised_loss(n_features: int) -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(15) % 3 // 2  # 10 and 5 patients
    x = rng.normal(size=(15, n_features)) + labels[:, None] * 0.4
    model = LinearModel.fit(x, labels, n_classes=2, balanced=True, standardise=False)
    centred = x - x.mean(axis=0)
    scaled = centred * 4 / np.sqrt((centred**2).sum(axis=1).mean())
    weights = np.where(labels == 1, 15 / 10, 15 / 20)

    def loss(theta: Floats) -> float:
        margin = (2 * labels - 1) * (scaled @ theta[1:] + theta[0])
        return float(7 * weights @ np.logaddexp(0, -margin) + theta[1:] @ theta[1:] / 2)

    best = minimize(loss, np.zeros(n_features + 1), options={"gtol": 1e-8})
    logits = model.logits(x)
    np.testing.assert_allclose(
        logits[:, 1] - logits[:, 0], scaled @ best.x[1:] + best.x[0], atol=2e-3
    )


def test_three_classes_are_penalised_as_two_are() -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(30) % 2
    x = rng.normal(size=(30, 5)) + labels[:, None]
    two = LinearModel.fit(x, labels, n_classes=2, balanced=True, standardise=True)
    own, bias = logistic._fit_logistic(x, labels, n_classes=2, balanced=True)
    assert np.allclose(own.sum(axis=1), 0)
    assert bias.sum() == pytest.approx(0)
    three = np.arange(30) % 3
    logits = LinearModel.fit(
        x + 3 * np.eye(5)[three], three, n_classes=3, balanced=True, standardise=True
    ).logits(x + 3 * np.eye(5)[three])
    assert (logits.argmax(axis=1) == three).mean() > 0.9
    np.testing.assert_allclose(logits.sum(axis=1), 0, atol=1e-9)
    assert two.weights.shape == (5, 2)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n_features", [90, 25])
def test_the_fit_on_the_gram_matrix_is_that_on_the_features(
    n_features: int, n_classes: int, balanced: bool
) -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(40) ** 2 % 5 % n_classes
    x = rng.normal(size=(40, n_features)) * rng.uniform(0.05, 1, size=n_features)
    x += 0.3 * labels[:, None]
    x -= x.mean(axis=0)  # so the Gram matrix is singular
    x[1] = x[0]
    fits = [
        fit(x, labels, n_classes=n_classes, balanced=balanced)
        for fit in (logistic._fit_logistic_by_gram, logistic._fit_logistic)
    ]
    (weights, bias), (expected, expected_bias) = fits
    np.testing.assert_allclose(weights, expected, atol=1e-4)
    np.testing.assert_allclose(bias, expected_bias, atol=1e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_contributions_of_tiles_sum_to_the_logits(n_classes: int) -> None:
    bags, labels = drawn(n_classes=n_classes)
    learners, whitening = fit(bags, labels, n_classes=n_classes)
    far = 30 * np.ones((5, 12), np.float32)  # so far off that the limit shortens it
    for bag in (*list(bags.values())[:3], far):
        logits = dict(zip(BASE_LEARNERS, learners.logits(bag, whitening), strict=True))
        parts = learners.contributions(bag, whitening)
        assert tuple(parts) == ("mean", "projections", "mixture")
        for name, part in parts.items():
            assert part.shape == (len(bag), n_classes)
            np.testing.assert_allclose(part.sum(axis=0), logits[name], rtol=1e-4, atol=1e-4)


def test_new_patients_far_off_stay_finite_and_limited() -> None:
    bags, labels = drawn()
    learners, whitening = fit(bags, labels)
    near, far = (
        learners.logits(scale * np.ones((4, 12), np.float32), whitening) for scale in (50, 5000)
    )
    for name in ("projections", "value kernel", "rank kernel"):
        row = BASE_LEARNERS.index(name)
        np.testing.assert_allclose(near[row], far[row], atol=1e-6)
    assert np.isfinite(far).all()


@pytest.mark.parametrize(
    ("change", "constant"),
    [
        ({}, ()),
        ({"n_tiles": 1}, ("projections",)),
        ({"dim": 4}, ()),
        ({"dim": 4096, "n": 8}, ()),
        ({"n": 4, "n_tiles": 1}, ("projections",)),
    ],
)
def test_unusual_sizes_make_a_smaller_stack(
    change: dict[str, int], constant: tuple[str, ...]
) -> None:
    bags, labels = drawn(**change)
    if change.get("n_tiles") == 1:
        bags = {name: bag[:1] for name, bag in bags.items()}
    learners, whitening = fit(bags, labels)
    assert set(constant) <= set(learners.constant)
    assert np.isfinite(learners.logits(bags["p0"], whitening)).all()


def test_equal_embeddings_teach_nothing() -> None:
    bags = {f"p{i}": np.full((3, 8), 0.5, np.float32) for i in range(10)}
    learners, whitening = fit(bags, np.arange(10) % 2)
    assert learners.constant == BASE_LEARNERS
    np.testing.assert_array_equal(learners.logits(bags["p0"], whitening), 0)


def test_a_large_bag_is_pooled_as_a_small_one() -> None:
    rng = np.random.default_rng(0)
    tiles = torch.from_numpy(rng.normal(size=(20_000, 3)).astype(np.float32))
    codebook = Codebook(centres=tiles[:150], squared_width=0.1)
    whole = codebook.occupancy(tiles).double().mean(dim=0).numpy()
    np.testing.assert_allclose(codebook.mean_occupancies([tiles])[0], whole, rtol=1e-6)
    np.testing.assert_allclose(
        log_spread(covariances([tiles]))[0], np.log(tiles.numpy().std(axis=0) + 0.3), rtol=1e-5
    )


def earlier() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Whitening]:
    """Tensors of version 5, what is expected of them, and the whitening of their heads."""
    tensors = load_file(EARLIER)
    stored, expected = (
        {name.removeprefix(of): own for name, own in tensors.items() if name.startswith(of)}
        for of in ("stored.", "expected.")
    )
    whitening = Whitening(4, 3)
    whitening.load_state_dict({
        name: expected[f"whitening.{name}"] for name in ("mean", "matrix")
    })  # fmt: skip
    return stored, expected, whitening


def test_many_bags_are_pooled_as_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    bags = [
        torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32))
        for n in (1, 5, 9000, 8000, 150, 60, 1, 300)
    ]
    blocks = [own for own, _, _ in joined_bags(bags)]
    assert blocks == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 8)]
    codebook = Codebook(centres=bags[2][:150], squared_width=0.1)
    directions = rng.normal(size=(3, 2))
    occupancy, within = codebook.mean_occupancies(bags), covariances(bags)
    tails = tail_statistics([project(bag, directions) for bag in bags])
    for index, bag in enumerate(bags):
        tiles = bag.double().numpy()
        centred = tiles - tiles.mean(axis=0)
        along = np.sort(centred @ directions, axis=0)
        n_tail = max(1, round(0.1 * len(along)))
        np.testing.assert_allclose(
            occupancy[index], codebook.occupancy(bag).double().mean(dim=0), atol=1e-6
        )
        np.testing.assert_allclose(
            tail_parts(bag, directions).mean(axis=0), tails[index], rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(within[index], centred.T @ centred / len(tiles), atol=1e-12)
        expected = [
            along[-n_tail:].mean(axis=0), along[:n_tail].mean(axis=0), along[-1], along[0],
            (along**3).mean(axis=0), np.sqrt((along**4).mean(axis=0)),
        ]  # fmt: skip
        np.testing.assert_allclose(tails[index], expected, atol=1e-10)


@pytest.mark.parametrize(
    ("n_learners", "later"),
    [
        (8, ()),
        (7, ("kernel.", "similarity.")),
        (5, ("kernel.", "similarity.", "covariance.", "projections.", "directions")),
    ],
)
def test_stacks_of_earlier_versions_say_what_they_said(
    n_learners: int, later: tuple[str, ...]
) -> None:
    stored, expected, whitening = earlier()
    own = {name: value for name, value in stored.items() if not name.startswith(later)}
    learners = base_learners_from_tensors(own, dim=4, n_components=3, n_classes=3)
    assert tuple(learners.models) == EARLIER_LEARNERS[:n_learners]
    tiles = expected["tiles"].numpy()
    np.testing.assert_allclose(
        learners.logits(tiles, whitening), expected["logits"][:n_learners], atol=1e-5
    )
    parts = learners.contributions(tiles, whitening)
    with_parts = {"mean", "mean + logistic", "histogram", "projections", "covariance"}
    assert parts.keys() == with_parts & learners.models.keys()
    logits = dict(zip(learners.models, learners.logits(tiles, whitening), strict=True))
    for name, part in parts.items():
        np.testing.assert_allclose(part.sum(axis=0), logits[name], atol=1e-5)
        if name != "projections":  # not known then
            np.testing.assert_allclose(part, expected[f"contributions.{name}"], atol=1e-5)
    again = base_learners_to_tensors(learners)
    assert set(again) == set(own)
    assert all(torch.equal(again[name], own[name]) for name in own)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("histogram.bias"),
        lambda t: t.pop("codebook.squared_width"),
        lambda t: t.update({"codebook.centres": t["codebook.centres"][:, :2]}),
        lambda t: t.update({"codebook.centres": t["codebook.centres"][0, 0]}),
        lambda t: t.update({"codebook.squared_width": torch.tensor(0.0, dtype=torch.float64)}),
        lambda t: t.update({"extremes.scale": torch.zeros_like(t["extremes.scale"])}),
        lambda t: t.update({"similarity.width": torch.tensor(0.0, dtype=torch.float64)}),
    ],
)
def test_a_damaged_stack_of_an_earlier_version_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object],
) -> None:
    stored, *_ = earlier()
    change(stored)
    with pytest.raises(ValueError, match="base learners: "):
        base_learners_from_tensors(stored, dim=4, n_components=3, n_classes=3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_stored_stack_gives_the_same_logits(n_classes: int) -> None:
    bags, labels = drawn(n_classes=n_classes)
    learners, whitening = fit(bags, labels, n_classes=n_classes)
    back = base_learners_from_tensors(
        base_learners_to_tensors(learners), dim=12, n_components=6, n_classes=n_classes
    )
    for bag in bags.values():
        np.testing.assert_array_equal(back.logits(bag, whitening), learners.logits(bag, whitening))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rank kernel.width", torch.tensor(0.0, dtype=torch.float64), "out of range"),
        ("similarity.anchors", torch.zeros(24, 36), "not torch.float16"),
        ("similarity.anchors", torch.full((24, 36), torch.inf).half(), "out of range"),
        ("similarity.anchors", torch.zeros(23, 36).half(), "value kernel.centre"),
        ("similarity.scale", torch.ones(35).double(), "similarity.scale"),
    ],
)
def test_a_damaged_kernel_is_refused(name: str, value: torch.Tensor, expected: str) -> None:
    tensors = base_learners_to_tensors(fit(*drawn())[0])
    with pytest.raises(ValueError, match=expected):
        base_learners_from_tensors(tensors | {name: value}, dim=12, n_components=6, n_classes=2)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_few_unlike_tiles_are_found_along_a_direction_of_their_class(n_classes: int) -> None:
    rng = np.random.default_rng(5)
    labels = np.arange(48) % n_classes
    unlike = np.linalg.qr(rng.normal(size=(8, 8)))[0][:, :n_classes]
    bags = []
    for label in labels:
        tiles = rng.normal(size=(40, 8))
        tiles[:4] += 4 * unlike[:, label] if label else 0
        bags.append(torch.from_numpy(tiles))
    directions, *_ = fit_directions(bags, labels, n_classes=n_classes, balanced=True, n_leading=8)
    for label in range(1, n_classes):
        along = directions[:, label] / np.linalg.norm(directions[:, label])
        assert abs(along @ unlike[:, label]) > 0.9
    tails = tail_statistics([project(bag, directions) for bag in bags])
    assert tails.shape == (48, 6, n_classes)
    largest = tails[:, 2, 1]  # the maximum along the direction of class 1
    smallest = -tails[:, 3, 1]
    reach = np.maximum(largest, smallest)
    assert reach[labels == 1].mean() > reach[labels == 0].mean() + 1


def test_what_is_stored_is_read_back_and_damage_is_refused() -> None:
    bags, labels = drawn()
    learners, whitening = fit(bags, labels)
    tensors = base_learners_to_tensors(learners)
    sizes = {"dim": 12, "n_components": 6, "n_classes": 2}
    back = base_learners_from_tensors(tensors, **sizes)
    np.testing.assert_array_equal(
        back.logits(bags["p1"], whitening), learners.logits(bags["p1"], whitening)
    )
    nan = torch.full_like(tensors["mean.bias"], float("nan"))
    damaged = [
        {name: value for name, value in tensors.items() if name != "projections.bias"},
        {name: value for name, value in tensors.items() if name != "projections.directions"},
        tensors | {"projections.directions": tensors["projections.directions"][:, :1]},
        tensors | {"directions": tensors["projections.directions"]},
        tensors | {"other": nan},
        tensors | {"mean.bias": nan},
        tensors | {"mean.bias": torch.zeros(3, dtype=torch.float64)},
        tensors | {"mean.weights": tensors["mean.weights"].float()},
        tensors | {"projections.scale": torch.zeros_like(tensors["projections.scale"])},
        tensors | {"mean.limit": torch.tensor(-1.0, dtype=torch.float64)},
        {name: value for name, value in tensors.items() if name != "rank kernel.width"},
        tensors | {"similarity.anchors": tensors["similarity.anchors"][0, 0]},
    ]
    for broken in damaged:
        with pytest.raises(ValueError, match="base learners: "):
            base_learners_from_tensors(broken, **sizes)


@pytest.mark.parametrize("standardise", [False, True])
def test_features_are_changed_only_where_that_is_allowed(standardise: bool) -> None:
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(20, 50)), np.arange(20) % 2
    given = features.copy()
    options = {"n_classes": 2, "balanced": True, "standardise": standardise}
    kept = LinearModel.fit(given, labels, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(given, features)
    changed = LinearModel.fit(given, labels, overwrite=True, **options)  # type: ignore[arg-type]
    assert not np.array_equal(given, features)
    np.testing.assert_array_equal(changed.weights, kept.weights)
