"""Training: configuration, trainer, ensembles, cross-validation, checkpoints."""

from __future__ import annotations

__all__: list[str] = []
