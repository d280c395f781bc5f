"""Multiple-instance heads, one file per kind; importing the package registers all of them."""

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
    build_head,
    head_names,
    register_head,
)
from mil.heads.stacked import StackedHeads, can_stack
from mil.heads.whitening import Whitening

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
