"""Lock for series of short array operations, which threads do no faster side by side."""

from __future__ import annotations

from threading import Lock

__all__ = ["ARRAY_LOCK"]

ARRAY_LOCK = Lock()
"""Held by the one thread that scales or judges a tile.

NumPy gives the interpreter up in every operation, and takes it again a few µs later. Two threads
that do so wake each other dozens of times per tile: they take twice the processor time of one, and
as long.
"""
