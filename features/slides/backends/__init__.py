"""One module per reader library."""

from __future__ import annotations

__all__: list[str] = []
