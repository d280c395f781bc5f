"""Pictures of ``mil explain``."""

from __future__ import annotations

__all__: list[str] = []
