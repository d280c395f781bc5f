"""Cohorts, patient bags, splits, linked patients, instance labels."""

from __future__ import annotations

__all__: list[str] = []
