"""Tissue mask, tile grid, artefact rules, and the pixels of each tile."""

from __future__ import annotations

__all__: list[str] = []
