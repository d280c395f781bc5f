"""Weights of an ensemble as named tensors for files; the common whitening is stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mil.heads.base import Head, build_head

__all__ = [
    "heads_from_state_dict",
    "heads_to_state_dict",
    "load_stored_state",
    "stored_state_dict",
]

_WHITENING, _SCALE = "whitening.", "logit_scale"
# Names of modules in files where they differ from the attributes of the heads.
_STORED_NAMES = {
    "fc_v": "look", "fc_w": "weigh", "fc_u": "gate", "classify_tiles": "judge",
    "previous": "before", "next": "after", "position": "locate",
    "mlp": "think", "norm": "settle", "qkv": "mixes", "proj": "joins",
}  # fmt: skip


def heads_to_state_dict(heads: Sequence[Head]) -> dict[str, Tensor]:
    """Return the weights of heads that share their whitening, by stored name, on the CPU."""
    packed = {
        f"{index}.{name}": value
        for index, head in enumerate(heads)
        for name, value in stored_state_dict(head).items()
        if not name.startswith(_WHITENING)
    }
    shared = {f"{_WHITENING}{n}": value for n, value in heads[0].whitening.state_dict().items()}
    return {name: value.detach().cpu().contiguous() for name, value in (shared | packed).items()}


def heads_from_state_dict(
    packed: Mapping[str, Tensor], *, name: str, n_heads: int, n_classes: int
) -> tuple[Head, ...]:
    """Return the heads of :func:`heads_to_state_dict`, in evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        If the weights do not belong to that number of such heads, or one is not finite.
    """
    try:
        dim, n_components = packed[f"{_WHITENING}matrix"].shape
        heads = tuple(
            _unpack(packed, index, build_head(name, dim=dim, n_components=n_components,
                                              n_classes=n_classes))
            for index in range(n_heads if dim else 0)  # an empty matrix may have any width
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
    stored = {name.removeprefix(start): v for name, v in packed.items() if name.startswith(start)}
    stored |= {name: v for name, v in packed.items() if name.startswith(_WHITENING)}
    load_stored_state(head, stored)
    return head.eval()


def stored_state_dict(head: Head) -> dict[str, Tensor]:
    """Return the weights of a head by the names that files have for them."""
    return {_stored_name(name): value for name, value in head.state_dict().items()}


def load_stored_state(head: Head, stored: Mapping[str, Tensor]) -> None:
    """Load weights by the names that files have for them.

    Raises
    ------
    RuntimeError
        If names or shapes are not those of the head, or its logits have no positive scale.
    """
    names = {_stored_name(name): name for name in head.state_dict()}
    # Files of earlier versions have no scale of the logits: they were not divided.
    stored = {_SCALE: torch.ones(()), **stored}
    head.load_state_dict({names.get(name, name): value for name, value in stored.items()})
    if not head.logit_scale > 0:
        raise RuntimeError(f"{_SCALE} {float(head.logit_scale):g}, not above 0")


def _stored_name(name: str) -> str:
    return ".".join(_STORED_NAMES.get(part, part) for part in name.split("."))
