"""Atomic files, CSV tables, paths, text, hardware, torch files and image headers."""

from __future__ import annotations

__all__: list[str] = []
