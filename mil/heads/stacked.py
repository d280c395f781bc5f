"""Heads side by side: one module whose linear maps hold the weights of all."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mil.heads.base import ByteDropout, Head
from mil.heads.random_streams import RandomStreams

__all__ = ["StackedHeads", "can_stack"]


def can_stack(head: Head) -> bool:
    """Whether all that the head learns are linear maps, which can be taken for many at once."""
    linear = [part for part in head.modules() if isinstance(part, nn.Linear)]
    return {id(weight) for part in linear for weight in part.parameters()} == {
        id(weight) for weight in head.parameters()
    }


class StackedHeads:
    """Heads of one kind that are trained together, each on patients of its own.

    ``module`` is used like a single head. Its batch holds as many patients for the first head, then
    as many for the second, and so on; pooling does not care, and each linear map takes the patients
    of a head by that head's weights, all in one batched product. A single head is its own module.

    Parameters
    ----------
    heads
        Of one kind and size; more than one only if :func:`can_stack`. Their weights are copied.
    luck
        What dropout draws from.
    """

    def __init__(self, heads: Sequence[Head], luck: RandomStreams) -> None:
        self.module: Head = copy.deepcopy(heads[0])
        self.n_heads = len(heads)
        if self.n_heads > 1:
            for name, part in heads[0].named_modules():
                if isinstance(part, nn.Linear):
                    same = [head.get_submodule(name) for head in heads]
                    self.module.set_submodule(name, _StackedLinear(same))
        for part in self.module.modules():
            if isinstance(part, ByteDropout):
                part.luck = luck

    def parameters(self) -> list[nn.Parameter]:
        """What is learned; with several heads, the first axis of each is that of the heads."""
        return list(self.module.parameters())

    def by_head(self, weights: Tensor) -> Tensor:
        """One of the parameters or its gradient as a table, shape (heads, numbers)."""
        return weights.reshape(self.n_heads, -1)

    def copy_to(self, place: int, head: Head) -> None:
        """Copy the weights of the head at ``place`` into ``head``."""
        with torch.no_grad():
            for own, other in zip(self.parameters(), head.parameters(), strict=True):
                other.copy_(self.by_head(own)[place].view_as(other))

    def keep(self, places: Sequence[int], optimiser: torch.optim.Optimizer) -> None:
        """Go on with these heads only, and with what the optimiser knows of them."""
        fewer = []
        for name, weights in list(self.module.named_parameters()):
            kept = torch.tensor(places, device=weights.device)
            known = optimiser.state.pop(weights)
            own = nn.Parameter(weights.detach()[kept])
            optimiser.state[own] = {
                key: value[kept] if value.shape == weights.shape else value
                for key, value in known.items()
            }
            parent, _, leaf = name.rpartition(".")
            setattr(self.module.get_submodule(parent), leaf, own)
            fewer.append(own)
        optimiser.param_groups[0]["params"] = fewer
        self.n_heads = len(places)


class _StackedLinear(nn.Module):
    """Linear maps of several heads, each for its own share of the rows."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        weights, biases = ([getattr(p, name) for p in parts] for name in ("weight", "bias"))
        self.weight = nn.Parameter(torch.stack([w.detach() for w in weights]))  # (heads, out, in)
        self.bias = nn.Parameter(torch.stack([b.detach() for b in biases]))  # (heads, out)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``x``, shape (heads × batch, ..., in), to shape (heads × batch, ..., out)."""
        rows = x.reshape(len(self.weight), -1, x.shape[-1])
        found = torch.baddbmm(self.bias[:, None], rows, self.weight.transpose(1, 2))
        return found.view(*x.shape[:-1], -1)
