"""Ensembles of heads as named tensors, for files; their one whitening is kept once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mil.heads.base import Head, build_head

__all__ = ["heads_from_state_dict", "heads_to_state_dict"]

_WHITENING = "whitening."


def heads_to_state_dict(heads: Sequence[Head]) -> dict[str, Tensor]:
    """Weights of an ensemble by name, on the CPU.

    Parameters
    ----------
    heads
        Heads of one kind that share their whitening; at least one.
    """
    packed = {
        f"{index}.{name}": value
        for index, head in enumerate(heads)
        for name, value in head.state_dict().items()
        if not name.startswith(_WHITENING)
    }
    shared = {f"{_WHITENING}{n}": value for n, value in heads[0].whitening.state_dict().items()}
    return {name: value.detach().cpu().contiguous() for name, value in (shared | packed).items()}


def heads_from_state_dict(
    packed: Mapping[str, Tensor], *, name: str, n_heads: int, n_classes: int
) -> tuple[Head, ...]:
    """The heads that :func:`heads_to_state_dict` took, in evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        If the weights are not those of so many such heads, or one is not finite.
    """
    try:
        dim, n_components = packed[f"{_WHITENING}matrix"].shape
        heads = tuple(
            _unpack(packed, index, build_head(name, dim=dim, n_components=n_components,
                                              n_classes=n_classes))
            for index in range(n_heads if dim else 0)  # an empty matrix may claim any width
        )  # fmt: skip
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"weights of heads {name!r}: {error}") from error
    if not heads:
        raise ValueError(f"no weights of heads {name!r}")
    if not all(torch.isfinite(value).all() for value in packed.values()):
        raise ValueError(f"weights of heads {name!r} hold NaN or infinity")
    return heads


def _unpack(packed: Mapping[str, Tensor], index: int, head: Head) -> Head:
    start = f"{index}."
    own = {name.removeprefix(start): v for name, v in packed.items() if name.startswith(start)}
    shared = {name: v for name, v in packed.items() if name.startswith(_WHITENING)}
    head.load_state_dict(own | shared)
    return head.eval()
