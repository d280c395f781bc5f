from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mil.errors import RunError
from mil.training.losses import LOSSES, bag_loss, class_weights

LABELS = torch.tensor([0, 0, 0, 1])


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def test_class_weights_give_classes_the_same_total_and_average_one() -> None:
    weights = class_weights(LABELS, 2)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0]))
    assert weights[LABELS].mean() == pytest.approx(1)


def test_only_the_plain_log_loss_gives_every_patient_the_same_weight() -> None:
    weights = {name: bag_loss(name, LABELS, n_classes=2).weights.tolist() for name in LOSSES}
    balanced = class_weights(LABELS, 2).tolist()
    assert weights == {"balanced": balanced, "cross-entropy": [1, 1], "focal": balanced}


@given(smoothing=st.floats(0, 0.9))
def test_the_log_loss_equals_its_formula_under_label_smoothing(smoothing: float) -> None:
    logits, truth = sample()
    log_proba = logits.log_softmax(dim=1)
    expected = -(1 - smoothing) * log_proba[range(12), truth] - smoothing * log_proba.mean(dim=1)
    found = bag_loss("balanced", truth, n_classes=3, label_smoothing=smoothing)(logits, truth)
    torch.testing.assert_close(found, expected)


@given(smoothing=st.floats(0, 0.9))
def test_the_focal_loss_equals_its_formula_under_label_smoothing(smoothing: float) -> None:
    logits, truth = sample()
    proba = logits.softmax(dim=1)
    losses = -((1 - proba) ** 2) * proba.log()
    expected = (1 - smoothing) * losses[range(12), truth] + smoothing * losses.mean(dim=1)
    found = bag_loss("focal", truth, n_classes=3, label_smoothing=smoothing)(logits, truth)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_slopes_stay_finite_when_a_head_is_sure(name: str) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    losses = bag_loss(name, torch.tensor([0, 1]), n_classes=2)(logits, torch.tensor([0, 0]))
    losses.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert losses.tolist() == [0, 400]


def test_an_unknown_loss_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RunError, match="balanced or cross-entropy or focal"):
        bag_loss("hinge", LABELS, n_classes=2)
