"""Tile classifiers that leave tiles out: examples, training, application."""

from __future__ import annotations

__all__: list[str] = []
