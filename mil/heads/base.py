"""Base class of heads: whitened embeddings of a patient's tiles in, logits and attention out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mil.errors import RunError
from mil.heads.dropout import ByteDropout
from mil.heads.whitening import Whitening

__all__ = [
    "HIDDEN",
    "Head",
    "HeadOutput",
    "build_head",
    "fast_tanh",
    "head_names",
    "instance_projection",
    "masked_max",
    "masked_softmax",
    "register_head",
]

HIDDEN = 64
"""Hidden features per tile: few, for cohorts of tens to hundreds of patients."""
_DROPPED_OF_256 = 64


class HeadOutput(NamedTuple):
    """Output of a head for a batch of patients.

    Parameters
    ----------
    logits
        Shape (batch, classes).
    attention
        Shape (batch, tiles): non-negative, sums to 1 over a patient's real tiles, 0 on padding.
    contributions
        Shape (batch, tiles, classes): summands of the logits, 0 on padding. None where the logits
        are not a sum over tiles; while it trains, a head may leave them out.
    tile_logits
        Shape (batch, tiles, classes): logits of each tile by itself, arbitrary on padding. None
        where a head does not classify single tiles.
    """

    logits: Tensor
    attention: Tensor
    contributions: Tensor | None = None
    tile_logits: Tensor | None = None


class Head(nn.Module):
    """Pooling of a patient's tiles, shape (tiles, dim), into logits, shape (classes,).

    A new head is one class in one file: it takes ``n_components`` and ``n_classes``, implements
    :meth:`forward_components`, and is registered with :func:`register_head`. The whitening is part
    of the head, so that the two cannot be separated or mixed up. So is ``logit_scale``, a number
    that the logits of a trained head are divided by, see :func:`mil.heads.ensemble.logit_spread`.
    """

    depends_on_order: ClassVar[bool] = False
    """Whether the order of a patient's tiles changes the output."""
    logit_scale: Tensor

    def __init__(self, *, dim: int, n_components: int) -> None:
        super().__init__()
        self.whitening = Whitening(dim, n_components)
        self.register_buffer("logit_scale", torch.ones(()))

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """Return the output for embeddings, shape (batch, tiles, dim), float32."""
        return self.predict(self.whitening(features), mask)

    @abstractmethod
    def forward_components(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Return the output for embeddings that are whitened already.

        Parameters
        ----------
        components
            Shape (batch, tiles, n_components), float32.
        mask
            Shape (batch, tiles), bool: True on real tiles, False on padding.
        """

    def predict(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Return the output with logits and their summands divided by ``logit_scale``.

        ``components`` have shape (batch, tiles, n_components), ``mask`` shape (batch, tiles).
        Training uses :meth:`forward_components`, everything after it this method.
        """
        output = self.forward_components(components, mask)
        parts = output.contributions
        return output._replace(
            logits=output.logits / self.logit_scale,
            contributions=None if parts is None else parts / self.logit_scale,
        )

    def auxiliary_loss(self, output: HeadOutput, mask: Tensor, target: Tensor) -> Tensor | None:
        """Return a loss that is added to that of the logits in training, or None for none.

        Parameters
        ----------
        output
            Result of :meth:`forward_components`.
        mask
            Shape (batch, tiles), bool: the mask of that call.
        target
            Shape (batch,), int64: class index of each patient.

        Returns
        -------
        torch.Tensor or None
            Shape (batch,), in nats.
        """
        del output, mask, target
        return None


_HEADS: dict[str, Callable[..., Head]] = {}


def register_head(name: str) -> Callable[[type[Head]], type[Head]]:
    """Register the decorated class under a name for :func:`build_head`."""

    def register(kind: type[Head]) -> type[Head]:
        _HEADS[name] = kind
        return kind

    return register


def head_names() -> tuple[str, ...]:
    """Return the names of all registered heads, sorted."""
    return tuple(sorted(_HEADS))


def build_head(name: str, *, dim: int, n_components: int, n_classes: int) -> Head:
    """Build a head with random weights for embeddings of shape (tiles, dim).

    ``name`` is one of :func:`head_names`, and ``n_components`` the number of whitened components.

    Raises
    ------
    RunError
        If no head of that name is registered.
    """
    if name not in _HEADS:
        raise RunError(f"head {name!r}", actual="unknown", expected=" or ".join(head_names()))
    return _HEADS[name](dim=dim, n_components=n_components, n_classes=n_classes)


def instance_projection(n_components: int) -> nn.Sequential:
    """Return the layers (linear, ReLU, dropout) to hidden features of shape (..., hidden)."""
    return nn.Sequential(nn.Linear(n_components, HIDDEN), nn.ReLU(), ByteDropout(_DROPPED_OF_256))


def fast_tanh(x: Tensor) -> Tensor:
    """Return tanh, any shape, through the sigmoid: several times faster on CPUs."""
    return 2 * torch.sigmoid(2 * x) - 1


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the last axis on real tiles only, shape of ``scores``.

    It is 0 on padding, and 0 everywhere where no tile is real.
    """
    lowest = torch.finfo(scores.dtype).min
    weights = torch.softmax(scores.masked_fill(~mask, lowest), dim=-1)
    return weights * mask


def masked_max(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the maximum over real tiles, 0 where no tile is real, shape (batch, classes).

    ``scores`` has shape (batch, tiles, classes), ``mask`` shape (batch, tiles).
    """
    lowest = torch.finfo(scores.dtype).min
    largest = scores.masked_fill(~mask[..., None], lowest).amax(dim=1)
    return largest.masked_fill(~mask.any(dim=1, keepdim=True), 0)
