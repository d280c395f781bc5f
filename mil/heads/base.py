"""What every head is: whitened embeddings of a patient's tiles in, logits and attention out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mil.errors import RunError
from mil.heads.random_streams import RandomStreams

__all__ = [
    "HIDDEN",
    "ByteDropout",
    "Head",
    "HeadOutput",
    "Whitening",
    "build_head",
    "fast_tanh",
    "head_names",
    "instance_projection",
    "masked_max",
    "masked_softmax",
    "register_head",
]

HIDDEN = 64
"""Numbers that a head keeps of a tile: few, for cohorts of tens to hundreds of patients."""
_DROPPED_OF_256 = 64


class HeadOutput(NamedTuple):
    """What a head says of a batch of patients."""

    logits: Tensor
    """Shape (batch, classes)."""
    attention: Tensor
    """Shape (batch, tiles): not negative, sums to 1 over a patient's real tiles, 0 on padding."""
    contributions: Tensor | None = None
    """Shape (batch, tiles, classes): what each tile adds to the logits, 0 on padding; their sum
    over tiles is the logits. None where a head has no such parts."""
    tile_logits: Tensor | None = None
    """Shape (batch, tiles, classes): logits of each tile by itself, of any value on padding. None
    where a head does not judge single tiles."""


class Whitening(nn.Module):
    """Affine map of embeddings to a few uncorrelated components, fitted without labels.

    Kept inside the head, so that whoever uses the head cannot forget or mix it.
    """

    mean: Tensor
    """Shape (dim,): taken off first."""
    matrix: Tensor
    """Shape (dim, n_components): then multiplied with."""

    def __init__(self, dim: int, n_components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim, n_components))

    def forward(self, features: Tensor) -> Tensor:
        """Components, shape (..., n_components), of embeddings, shape (..., dim)."""
        return torch.matmul(features - self.mean, self.matrix)


class Head(nn.Module):
    """A pooling of a patient's tiles into logits.

    A new head is one class in one file: it takes ``n_components`` and ``n_classes``, implements
    :meth:`score`, and is registered with :func:`register_head`.
    """

    depends_on_order: ClassVar[bool] = False
    """Whether the order of a patient's tiles means something to it."""

    def __init__(self, *, dim: int, n_components: int) -> None:
        super().__init__()
        self.whitening = Whitening(dim, n_components)

    @abstractmethod
    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Logits and attention from whitened embeddings.

        Parameters
        ----------
        components
            Shape (batch, tiles, n_components), float32.
        mask
            Shape (batch, tiles), bool: which tiles are real and not padding.
        """

    def auxiliary_loss(self, output: HeadOutput, mask: Tensor, truth: Tensor) -> Tensor | None:
        """A loss of its own that a head adds to that of its logits while it is trained.

        Parameters
        ----------
        output
            What :meth:`score` gave.
        mask
            Shape (batch, tiles), bool: the mask it was given.
        truth
            Shape (batch,), int64: class index of each patient.

        Returns
        -------
        torch.Tensor or None
            Shape (batch,), in nats; None, the rule, where a head adds nothing.
        """
        del output, mask, truth
        return None

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """Logits and attention from embeddings, shape (batch, tiles, dim), float32."""
        return self.score(self.whitening(features), mask)


_HEADS: dict[str, Callable[..., Head]] = {}


def register_head(name: str) -> Callable[[type[Head]], type[Head]]:
    """Make a class known under a name."""

    def register(kind: type[Head]) -> type[Head]:
        _HEADS[name] = kind
        return kind

    return register


def head_names() -> tuple[str, ...]:
    """Names of all heads, sorted."""
    return tuple(sorted(_HEADS))


def build_head(name: str, *, dim: int, n_components: int, n_classes: int) -> Head:
    """A new head of that name, with random weights.

    Parameters
    ----------
    name
        One of :func:`head_names`.
    dim
        Length of an embedding.
    n_components
        Components that are kept of it.
    n_classes
        Number of classes.

    Raises
    ------
    RunError
        If there is no head of that name.
    """
    if name not in _HEADS:
        raise RunError(f"head {name!r}", actual="unknown", expected=" or ".join(head_names()))
    return _HEADS[name](dim=dim, n_components=n_components, n_classes=n_classes)


class ByteDropout(nn.Module):
    """Dropout (Srivastava et al., 2014) that spends a random byte on a number.

    The framework's own draws a whole random number for each, in sequence on a CPU, which takes a
    quarter of a training step; eight bytes at once take a sixth of that.
    """

    luck = RandomStreams()
    """Where its random numbers come from: torch's own stream, unless one is set."""

    def __init__(self, n_of_256: int) -> None:
        super().__init__()
        self._n_of_256 = n_of_256

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with that many of 256 numbers set to 0 and the others raised for it."""
        if not self.training:
            return x
        kept = (self.luck.bytes(x) >= self._n_of_256).to(x.dtype)
        return x * kept.mul_(256 / (256 - self._n_of_256))


def instance_projection(n_components: int) -> nn.Sequential:
    """How heads see a tile: a linear map of its whitened components, ReLU, dropout."""
    return nn.Sequential(nn.Linear(n_components, HIDDEN), nn.ReLU(), ByteDropout(_DROPPED_OF_256))


def fast_tanh(x: Tensor) -> Tensor:
    """Tanh by way of the sigmoid, which CPUs compute several times faster."""
    return 2 * torch.sigmoid(2 * x) - 1


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis on real tiles only; all zeros where no tile is real."""
    lowest = torch.finfo(scores.dtype).min
    weights = torch.softmax(scores.masked_fill(~mask, lowest), dim=-1)
    return weights * mask


def masked_max(scores: Tensor, mask: Tensor) -> Tensor:
    """Largest score of the real tiles; zero where no tile is real.

    Parameters
    ----------
    scores
        Shape (batch, tiles, classes).
    mask
        Shape (batch, tiles), bool.

    Returns
    -------
    torch.Tensor
        Shape (batch, classes).
    """
    lowest = torch.finfo(scores.dtype).min
    largest = scores.masked_fill(~mask[..., None], lowest).amax(dim=1)
    return largest.masked_fill(~mask.any(dim=1, keepdim=True), 0)
