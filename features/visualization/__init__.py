"""Thumbnails, heatmaps, Deep Zoom tiles, and the preview page."""

from __future__ import annotations

__all__: list[str] = []
