"""Embedding of slides: configuration, pipeline, workers, results."""

from __future__ import annotations

__all__: list[str] = []
