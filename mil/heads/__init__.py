"""Heads: what learns. One file a kind; importing the package makes all of them known."""

from mil.heads import (
    additive,
    attention,
    clam,
    dsmil,
    ordered,
    pooling,
    tokens,
    transmil,
)
from mil.heads.base import (
    Head,
    HeadOutput,
    Whitening,
    build_head,
    head_names,
    register_head,
)
from mil.heads.stacked import StackedHeads, can_stack

__all__ = [
    "Head",
    "HeadOutput",
    "StackedHeads",
    "Whitening",
    "additive",
    "attention",
    "build_head",
    "can_stack",
    "clam",
    "dsmil",
    "head_names",
    "ordered",
    "pooling",
    "register_head",
    "tokens",
    "transmil",
]
