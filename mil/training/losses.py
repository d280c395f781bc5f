"""Training losses of bags and of attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mil.errors import RunError

__all__ = ["LOSSES", "BagLoss", "bag_loss", "class_weights", "instance_attention_loss"]

LOSSES = ("balanced", "cross-entropy", "focal")
"""Names of losses: class-balanced log loss (the metric itself), log loss, focal loss."""

_GAMMA = 2.0  # of the focal loss, as in the paper
_MIN_ATTENTION = 1e-6  # keeps logarithms finite


@dataclass(frozen=True, kw_only=True, eq=False)
class BagLoss:
    """Loss per patient, in nats, with class weights for its mean, shape (classes,).

    The mean weight of the training patients is 1. ``gamma`` is the exponent of ``1 - p`` in the
    focal loss; 0 is log loss.
    """

    weights: Tensor
    gamma: float
    label_smoothing: float

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return unweighted losses of patients, shape (batch,), in nats.

        ``logits`` have shape (batch, classes), class indices ``target`` shape (batch,).
        """
        if not self.gamma:
            return functional.cross_entropy(
                logits, target, reduction="none", label_smoothing=self.label_smoothing
            )
        log_proba = torch.log_softmax(logits, dim=-1)
        n_classes = logits.shape[-1]
        smooth = functional.one_hot(target, n_classes).to(logits.dtype)
        smooth = smooth * (1 - self.label_smoothing) + self.label_smoothing / n_classes
        # expm1 is exact where p is near 1.
        modulating_factor = (-torch.expm1(log_proba)) ** self.gamma
        return -(smooth * modulating_factor * log_proba).sum(dim=-1)


def bag_loss(name: str, labels: Tensor, *, n_classes: int, label_smoothing: float = 0.0) -> BagLoss:
    """Build the loss of that name for training patients with these labels.

    ``balanced`` gives every class the same total weight (the metric itself). ``cross-entropy``
    gives every patient the same. ``focal`` is ``-w_y (1 - p_y)² log p_y`` (Lin et al., 2017),
    with the weights of ``balanced`` as its α.

    ``labels`` are class indices, shape (patients,). ``label_smoothing`` is the share of a label
    that is distributed over all classes (Szegedy et al., 2016).

    Raises
    ------
    RunError
        If the name is unknown.
    """
    if name not in LOSSES:
        raise RunError(f"loss {name!r}", actual="unknown", expected=" or ".join(LOSSES))
    weights = class_weights(labels, n_classes)
    return BagLoss(
        weights=torch.ones_like(weights) if name == "cross-entropy" else weights,
        gamma=_GAMMA if name == "focal" else 0.0,
        label_smoothing=label_smoothing,
    )


def instance_attention_loss(attention: Tensor, mask: Tensor, instance_labels: Tensor) -> Tensor:
    """Return the log loss of attending to positive images, shape (batch,), in nats.

    It is minus the logarithm of the share of positive images in the attention to all labelled
    images of a patient; 0 for patients without images of both labels. All arguments have shape
    (batch, tiles); instance labels are 1, 0, or -1 if unknown.
    """
    positive, known = (instance_labels == 1) & mask, (instance_labels >= 0) & mask
    on_positive, on_known = (
        (attention * where).sum(dim=1).clamp(min=_MIN_ATTENTION) for where in (positive, known)
    )  # (batch,) each
    has_both = positive.any(dim=1) & (known & ~positive).any(dim=1)
    losses = on_known.log() - on_positive.log()
    return torch.where(has_both, losses, torch.zeros_like(losses))


def class_weights(labels: Tensor, n_classes: int) -> Tensor:
    """Return weights, shape (classes,), with equal totals per class and mean 1 over patients."""
    counts = torch.bincount(labels, minlength=n_classes).clamp(min=1)
    return len(labels) / (n_classes * counts.float())
