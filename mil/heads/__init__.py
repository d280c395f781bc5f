"""Heads: what learns. One file a kind; importing the package makes all of them known."""

from mil.heads import attention, mean
from mil.heads.base import (
    Head,
    HeadOutput,
    Whitening,
    build_head,
    head_names,
    register_head,
)

__all__ = [
    "Head",
    "HeadOutput",
    "Whitening",
    "attention",
    "build_head",
    "head_names",
    "mean",
    "register_head",
]
