"""Training: configuration, trainer, ensembles, cross-validation, checkpoints."""

from __future__ import annotations
