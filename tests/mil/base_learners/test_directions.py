"""Directions along which a few tiles set a class apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mil.arrays import Floats, Ints
from mil.base_learners import directions as module
from mil.base_learners.directions import N_COMPONENTS, fit_directions
from mil.base_learners.learners import BaseLearners
from mil.base_learners.pooling import mean_and_extremes
from mil.base_learners.storage import base_learners_from_tensors, base_learners_to_tensors
from mil.data.bags import PatientBags
from mil.heads.whitening import Whitening, fit_pca_whitening, fit_pca_whitenings
from mil.training.config import TrainConfig
from mil.training.ensemble import train_ensemble
from tests.fakes import FINGERPRINT

DIM = 20


def drawn(
    n: int = 36, *, n_unlike: int = 3, shift: float = 4.0, seed: int = 0, n_classes: int = 2
) -> tuple[list[Tensor], Ints, Floats]:
    """Bags of 40 tiles, of which a few lie apart in all classes but the first, each its own way."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    unlike = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:, :n_classes]
    bags = []
    for label in labels:
        tiles = rng.normal(size=(40, DIM)) + 0.5 * rng.normal(size=DIM)
        tiles[:n_unlike] += shift * unlike[:, label] * (label > 0)
        bags.append(torch.from_numpy(tiles).float())
    return bags, labels, unlike


def fit(
    bags: list[Tensor], labels: Ints, *, n_leading: int = DIM, n_classes: int = 2
) -> tuple[Floats, Floats]:
    return fit_directions(
        bags, labels, n_classes=n_classes, balanced=True, n_leading=n_leading
    )[:2]  # fmt: skip


def cosine(direction: Floats, other: Floats) -> float:
    return float(direction @ other / np.linalg.norm(direction) / np.linalg.norm(other))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_mixture_comes_nearer_to_what_few_tiles_set_a_class_apart_by(n_classes: int) -> None:
    bags, labels, unlike = drawn(n_classes=n_classes)
    by_variance, by_mixture = fit(bags, labels, n_classes=n_classes)
    for label in range(1, n_classes):
        near = cosine(by_mixture[:, label], unlike[:, label])
        assert near > 0.93  # and of the sense in which the tiles lie
        assert near > abs(cosine(by_variance[:, label], unlike[:, label]))


def test_half_of_the_tiles_are_found_by_their_variance() -> None:
    bags, labels, unlike = drawn(n_unlike=20)
    by_variance, _ = fit(bags, labels)
    assert abs(cosine(by_variance[:, 1], unlike[:, 1])) > 0.9


def test_what_the_first_components_do_not_have_is_found() -> None:
    bags, labels, _ = drawn(shift=0)
    for bag, label in zip(bags, labels, strict=True):
        bag[:3, -1] += 5.0 * int(label)
    _, by_mixture = fit(bags, labels, n_leading=4)
    assert cosine(by_mixture[:, 1], np.eye(DIM)[-1]) > 0.9


def test_evenly_spaced_tiles_of_each_patient_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    bags, labels, unlike = drawn(n_unlike=8, shift=5)
    monkeypatch.setattr(module, "_MOST_TILES", 20 * len(bags))
    seen: list[npt.NDArray[np.int64]] = []
    original = module._DrawnTiles.membership

    def watch(tiles: module._DrawnTiles, shifts: Floats, shares: Floats) -> Floats:
        seen.append(tiles.n_tiles)
        return original(tiles, shifts, shares)

    monkeypatch.setattr(module._DrawnTiles, "membership", watch)
    assert cosine(fit(bags, labels)[1][:, 1], unlike[:, 1]) > 0.8
    assert seen
    assert all((n_tiles == 20).all() for n_tiles in seen)


def test_halves_hold_every_class_and_keep_groups_together() -> None:
    labels = np.arange(24) % 3
    alone = module._first_half(labels, np.arange(24))
    assert [np.bincount(labels[half]).tolist() for half in (alone, ~alone)] == [[4, 4, 4]] * 2
    groups = np.arange(24)
    groups[[3, 9, 20]] = 7
    linked = module._first_half(labels, groups)
    assert len(set(linked[groups == 7].tolist())) == 1
    assert np.bincount(labels[linked], minlength=3).min() >= 3


@pytest.mark.parametrize("n_of_class", [1, 3])
def test_a_class_of_few_patients_keeps_the_first_eigenvector(n_of_class: int) -> None:
    bags, _, _ = drawn()
    labels = (np.arange(len(bags)) < n_of_class).astype(np.int64)
    by_variance, by_mixture = fit(bags, labels)
    assert by_mixture.shape == (DIM, 2)
    for which in range(2):
        assert cosine(by_mixture[:, which], by_variance[:, which]) == pytest.approx(1)


@pytest.mark.parametrize("n_of_class", [1, 3, 18])
def test_the_emphasis_is_on_the_class_that_has_the_few_tiles(n_of_class: int) -> None:
    bags, labels, _ = drawn()
    if n_of_class < 18:
        labels = (np.arange(len(bags)) < n_of_class).astype(np.int64)
    emphasis = fit_directions(bags, labels, n_classes=2, balanced=True, n_leading=DIM)[2]
    if n_of_class < 18:  # nothing tells which
        assert emphasis.tolist() == [1, 1]
    else:
        assert emphasis[1] == 1
        assert emphasis[0] < 0.3


def test_a_class_too_small_to_be_measured_counts_fully_beside_measured_ones() -> None:
    bags, _, unlike = drawn(43, shift=0)
    labels = np.repeat([0, 1, 2], [20, 20, 3])
    for bag in bags[40:]:
        bag[:3] += torch.from_numpy(6 * unlike[:, 0]).float()
    emphasis = fit_directions(bags, labels, n_classes=3, balanced=True, n_leading=DIM)[2]
    assert emphasis[2] == 1
    assert emphasis[:2].max() == 1  # of the measured ones


def fitted(*, n_leading: int) -> tuple[list[Tensor], Whitening, BaseLearners]:
    """Bags, their whitening, and all base learners of them."""
    bags, labels, _ = drawn()
    of_patients = {str(i): bag.numpy() for i, bag in enumerate(bags)}
    whitening = fit_pca_whitening(of_patients, list(of_patients), DIM)
    with torch.inference_mode():
        components = [whitening(bag) for bag in bags]
    learners = BaseLearners.fit(
        np.stack([mean_and_extremes(bag) for bag in bags]), components, labels, n_classes=2,
        balanced=True, whitening=whitening, n_leading=n_leading,
    )  # fmt: skip
    return bags, whitening, learners


@pytest.mark.parametrize(
    ("contrasts", "expected"),
    [([2, 4, np.nan], [0.25, 1, 1]), ([-1, 4, 0], [0, 1, 0]), ([-1, -2, np.nan], [1, 1, 1]),
     ([np.nan, np.nan], [1, 1])],
)  # fmt: skip
def test_the_emphasis_follows_what_was_measured(
    contrasts: list[float], expected: list[float]
) -> None:
    assert module._emphasis(np.array(contrasts)).tolist() == expected


def test_what_has_little_emphasis_has_little_weight() -> None:
    _, _, learners = fitted(n_leading=DIM)
    weights = np.abs(learners.models["mixture"].weights[:, 1]).reshape(6, 2).sum(axis=0)
    assert weights[0] < 0.1 * weights[1]


def test_tiles_that_are_all_alike_give_finite_directions() -> None:
    labels = np.arange(12) % 2
    assert np.isfinite(fit([torch.ones(5, DIM)] * 12, labels)).all()


def test_two_dimensions_have_two_eigenvectors() -> None:
    bags, labels, _ = drawn()
    found = fit([bag[:, :2].contiguous() for bag in bags], labels, n_leading=1)
    assert np.shape(found) == (2, 2, 2)
    assert np.isfinite(found).all()


def test_an_ensemble_of_few_patients_looks_in_more_components_than_its_heads() -> None:
    rng = np.random.default_rng(3)
    features = {f"p{i:02d}": rng.normal(size=(12, 80)).astype(np.float32) for i in range(24)}
    labels = {name: index % 2 for index, name in enumerate(features)}
    bags = PatientBags(features=features, fingerprint=replace(FINGERPRINT, dim=80), slides=())
    config = TrainConfig(head="stack", n_components=8, fixed_steps=1, n_members=1)
    ensemble = train_ensemble(bags, labels, n_classes=2, config=config, seed=(0,))
    assert ensemble.heads[0].whitening.matrix.shape == (80, 8)
    assert ensemble.base_learners is not None
    narrow, wide = fit_pca_whitenings(bags.features, [bags.nonempty()], 8, N_COMPONENTS)[0]
    torch.testing.assert_close(narrow.matrix, ensemble.heads[0].whitening.matrix)
    with torch.inference_mode():
        components = [wide(torch.from_numpy(bags.features[n]).float()) for n in bags.nonempty()]
    of_patients = np.array([labels[name] for name in bags.nonempty()])
    expected = fit_directions(components, of_patients, n_classes=2, balanced=True, n_leading=8)
    stored = ensemble.base_learners.directions.values()
    for found, of_kind in zip(stored, expected[:2], strict=True):
        np.testing.assert_allclose(found, wide.matrix.double().numpy() @ of_kind, atol=1e-6)


def test_directions_of_components_as_in_version_6_predict_as_those_of_tiles() -> None:
    bags, whitening, learners = fitted(n_leading=8)
    inverse = np.linalg.inv(whitening.matrix.double().numpy())
    earlier = replace(
        learners,
        models={name: model for name, model in learners.models.items() if name != "mixture"},
        directions={},
        component_directions=inverse @ learners.directions["projections"],
    )
    back = base_learners_from_tensors(
        base_learners_to_tensors(earlier), dim=DIM, n_components=DIM, n_classes=2
    )
    assert tuple(back.models) == ("mean", "projections", "value kernel", "rank kernel")
    tiles = bags[1].numpy()
    expected = np.delete(learners.logits(tiles, whitening), 2, axis=0)  # without the mixture
    np.testing.assert_allclose(back.logits(tiles, whitening), expected, atol=1e-4)
