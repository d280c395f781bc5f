"""Files, tables, paths, text, and hardware: shared by all rooms, knows none."""

from __future__ import annotations

__all__: list[str] = []
