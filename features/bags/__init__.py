"""Bags of embeddings: HDF5 files, zarr stores, import and export."""

from __future__ import annotations

__all__: list[str] = []
