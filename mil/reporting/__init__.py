"""Pages and figures for people: run report, cohort report, model card."""

from __future__ import annotations

__all__: list[str] = []
