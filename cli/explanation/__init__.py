"""Pictures of ``mil explain``."""

from __future__ import annotations
