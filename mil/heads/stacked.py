"""Several heads of one kind as one module with batched linear maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mil.heads.base import Head
from mil.heads.dropout import ByteDropout
from mil.heads.random_streams import RandomStreams

__all__ = ["StackedHeads", "can_stack"]


def can_stack(head: Head) -> bool:
    """Return whether all parameters of a head belong to linear maps, which can be batched."""
    linear = [part for part in head.modules() if isinstance(part, nn.Linear)]
    return {id(weight) for part in linear for weight in part.parameters()} == {
        id(weight) for weight in head.parameters()
    }


class StackedHeads:
    """Heads of one kind that are trained together, with parameters of shape (heads, ...).

    ``module`` is called like a single head. Its batch holds the patients of the first head, then
    equally many of the second, and so on; each linear map is one batched product that applies a
    head's weights to its own patients. This is what ``torch.func.stack_module_state`` and ``vmap``
    do, which do not support the autograd function of gated attention.

    The weights of ``heads`` are copied; there is more than one only if :func:`can_stack`.
    ``random_streams`` gives the random numbers of dropout.
    """

    def __init__(self, heads: Sequence[Head], random_streams: RandomStreams) -> None:
        self.module: Head = copy.deepcopy(heads[0])
        self.n_heads = len(heads)
        if self.n_heads > 1:
            for name, part in heads[0].named_modules():
                if isinstance(part, nn.Linear):
                    same = [head.get_submodule(name) for head in heads]
                    self.module.set_submodule(name, _StackedLinear(same))
        for part in self.module.modules():
            if isinstance(part, ByteDropout):
                part.random_streams = random_streams

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters, with several heads each of shape (heads, ...)."""
        return list(self.module.parameters())

    def per_head(self, weights: Tensor) -> Tensor:
        """Return a parameter or its gradient as a table, shape (heads, numbers)."""
        return weights.reshape(self.n_heads, -1)

    def export(self, index: int, head: Head) -> None:
        """Copy the weights of the head at ``index`` into ``head``."""
        with torch.no_grad():
            for source, target in zip(self.parameters(), head.parameters(), strict=True):
                target.copy_(self.per_head(source)[index].view_as(target))

    def select(self, indices: Sequence[int], optimizer: torch.optim.Optimizer) -> None:
        """Keep only these heads, and their part of the optimizer's state."""
        selected = []
        for name, weights in list(self.module.named_parameters()):
            index = torch.tensor(indices, device=weights.device)
            state = optimizer.state.pop(weights, {})  # empty for weights without a gradient
            remaining = nn.Parameter(weights.detach()[index])
            if state:
                optimizer.state[remaining] = {
                    key: value[index] if value.shape == weights.shape else value
                    for key, value in state.items()
                }
            parent, _, leaf = name.rpartition(".")
            setattr(self.module.get_submodule(parent), leaf, remaining)
            selected.append(remaining)
        optimizer.param_groups[0]["params"] = selected
        self.n_heads = len(indices)


class _StackedLinear(nn.Module):
    """Linear maps of several heads, each applied to its own rows."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        weights, biases = ([getattr(p, name) for p in parts] for name in ("weight", "bias"))
        self.weight = nn.Parameter(torch.stack([w.detach() for w in weights]))  # (heads, out, in)
        self.bias = nn.Parameter(torch.stack([b.detach() for b in biases]))  # (heads, out)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, shape (heads × batch, ..., in), to shape (heads × batch, ..., out)."""
        rows = x.reshape(len(self.weight), -1, x.shape[-1])
        mapped = torch.baddbmm(self.bias[:, None], rows, self.weight.transpose(1, 2))
        return mapped.view(*x.shape[:-1], -1)
