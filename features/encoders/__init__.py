"""Frozen encoders: weights, preprocessing, runtime."""

from __future__ import annotations

__all__: list[str] = []
