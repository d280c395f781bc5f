"""Readers, one module per library."""

from __future__ import annotations

__all__: list[str] = []
