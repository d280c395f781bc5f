"""What heads are trained to make small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mil.errors import RunError

__all__ = ["LOSSES", "BagLoss", "bag_loss", "class_weights", "instance_attention_loss"]

LOSSES = ("balanced", "cross-entropy", "focal")
"""Names of losses: class-balanced log loss (the metric itself), log loss, focal loss."""

_FOCUSING = 2.0  # of the focal loss, as in the paper
_LEAST = 1e-6  # share of the attention whose logarithm is still taken


@dataclass(frozen=True, kw_only=True, eq=False)
class BagLoss:
    """A loss by patient."""

    weights: Tensor
    """Shape (classes,): of the patients of a class; averages 1 over the patients."""
    focusing: float
    """Exponent of ``1 - p`` in the focal loss; 0 is log loss."""
    label_smoothing: float
    """Share of a label that is spread evenly over all classes."""

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Losses of patients, not weighted.

        Parameters
        ----------
        logits
            Shape (batch, classes).
        truth
            Shape (batch,), int64: class indices.

        Returns
        -------
        torch.Tensor
            Shape (batch,), in nats.
        """
        if not self.focusing:
            return functional.cross_entropy(
                logits, truth, reduction="none", label_smoothing=self.label_smoothing
            )
        log_proba = torch.log_softmax(logits, dim=-1)
        n_classes = logits.shape[-1]
        smooth = functional.one_hot(truth, n_classes).to(logits.dtype)
        smooth = smooth * (1 - self.label_smoothing) + self.label_smoothing / n_classes
        # 1 - p from its logarithm: exact where p is near 1.
        unsure = (-torch.expm1(log_proba)) ** self.focusing
        return -(smooth * unsure * log_proba).sum(dim=-1)


def bag_loss(name: str, labels: Tensor, *, n_classes: int, label_smoothing: float = 0.0) -> BagLoss:
    """The loss of that name for patients with these labels.

    ``balanced`` gives every class the same total weight (the metric itself). ``cross-entropy``
    gives every patient the same. ``focal`` is ``-w_y (1 - p_y)² log p_y`` (Lin et al., 2017),
    with the weights of ``balanced`` as its α.

    Parameters
    ----------
    name
        One of :data:`LOSSES`.
    labels
        Shape (patients,), int64: class indices of those who are learned from.
    n_classes
        Number of classes.
    label_smoothing
        Share of a label that is spread over all classes (Szegedy et al., 2016).

    Raises
    ------
    RunError
        If there is no loss of that name.
    """
    if name not in LOSSES:
        raise RunError(f"loss {name!r}", actual="unknown", expected=" or ".join(LOSSES))
    weights = class_weights(labels, n_classes)
    return BagLoss(
        weights=torch.ones_like(weights) if name == "cross-entropy" else weights,
        focusing=_FOCUSING if name == "focal" else 0.0,
        label_smoothing=label_smoothing,
    )


def instance_attention_loss(attention: Tensor, mask: Tensor, marks: Tensor) -> Tensor:
    """How far the attention is from images that show something, where labels of images tell.

    Minus the logarithm of the share that lies on them, of all attention on images with a label: the
    likelihood of drawing one of them. Patients whose images do not have both answers teach nothing.

    Parameters
    ----------
    attention
        Shape (batch, tiles).
    mask
        Shape (batch, tiles), bool: real tiles.
    marks
        Shape (batch, tiles): 1, 0, or -1 where nobody looked.

    Returns
    -------
    torch.Tensor
        Shape (batch,), in nats.
    """
    shown, known = (marks == 1) & mask, (marks >= 0) & mask  # (batch, tiles)
    on, of = ((attention * where).sum(dim=1).clamp(min=_LEAST) for where in (shown, known))
    both = shown.any(dim=1) & (known & ~shown).any(dim=1)  # (batch,), as on and of
    return torch.where(both, of.log() - on.log(), torch.zeros_like(on))


def class_weights(labels: Tensor, n_classes: int) -> Tensor:
    """Weights by class that give every class the same total and average 1 over patients."""
    counts = torch.bincount(labels, minlength=n_classes).clamp(min=1)
    return len(labels) / (n_classes * counts.float())
