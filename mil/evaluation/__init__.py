"""Metrics, reliability, baselines, and scores of a predictions file."""

from __future__ import annotations

__all__: list[str] = []
