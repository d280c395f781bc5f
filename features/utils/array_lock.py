"""Limit on the threads that do series of short array operations side by side."""

from __future__ import annotations

from threading import BoundedSemaphore

from features.utils.hardware import CPU_COUNT

__all__ = ["ARRAY_LOCK"]

ARRAY_LOCK = BoundedSemaphore(max(1, CPU_COUNT // 2))
"""Held by each thread that scales or judges a tile: at most one for two cores.

NumPy gives the interpreter up in every operation, and takes it again a few µs later. Threads that
do so wake each other dozens of times per tile: on two cores, two take twice the processor time of
one, and as long. More cores were not measured; one thread alone would hold them up.
"""
