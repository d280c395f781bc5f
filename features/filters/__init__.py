"""Tile classifiers that leave tiles out: examples, training, application."""

from __future__ import annotations
