"""Code that several commands share: arguments, executors, progress, output."""

from __future__ import annotations

__all__: list[str] = []
