"""ONNX exports of encoders in the cache: their names, and their start without torch or timm."""

from __future__ import annotations

import importlib.util
import platform
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from features.encoders import runtime_cache
from features.slides.base import RgbArray
from features.utils.hardware import CPU_COUNT

__all__ = [
    "EXPECTED_KEY",
    "ONNX_PACKAGES",
    "TILES_COMPARED",
    "are_few",
    "are_too_few_to_time",
    "choice_name",
    "export_name",
    "export_part_tiles",
    "export_versions",
    "random_tiles",
    "start_session",
]

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

TILES_COMPARED = 4
"""Tiles whose embeddings by a runtime are compared with the eager ones."""

_MOST_PART_TILES = 4
"""Tiles that go through an export together. 16 take 7 to 20 % more processor time per tile, since
their activations leave a core's cache, and more of it is lost where the last part is filled up."""

_FEW_BATCHES = 4
"""Number of batches that take about as long as measuring runtimes."""

_EXPORT_BATCHES = 16
"""Number of batches of which it takes more than 5 % to load a network and to time it."""

EXPECTED_KEY = "mil_expected"
"""Key under which an export holds eager embeddings of the first tiles it was made with."""


def are_few(n_tiles: float, batch_tiles: int) -> bool:
    """Return whether a selection would take about as long as the tiles themselves."""
    return n_tiles <= _FEW_BATCHES * batch_tiles


def are_too_few_to_time(n_tiles: float, batch_tiles: int) -> bool:
    """Return whether an export in the cache is run where no runtime was ever timed."""
    return n_tiles <= _EXPORT_BATCHES * batch_tiles


def export_part_tiles(batch_tiles: int, n_threads: int) -> int:
    """Return the number of tiles that one thread takes at a time through an export."""
    return min(_MOST_PART_TILES, -(-batch_tiles // n_threads))


@cache
def export_versions() -> tuple[str, ...]:
    """Return the versions of the installed packages that an export depends on."""
    names = ("torch", "timm", *ONNX_PACKAGES)
    found = [name for name in names if importlib.util.find_spec(name) is not None]
    return tuple(map(metadata.version, found))


def export_name(key: str, shape: tuple[int, ...]) -> str:
    """Return the name of an export for parts of a shape, (tiles, 3, side, side) in px."""
    return f"{runtime_cache.cache_key('onnx', key, shape, *export_versions())}.onnx"


def choice_name(key: str, shape: tuple[int, ...], device_type: str, n_threads: int) -> str:
    """Return the name of a choice of runtime for batches of a shape, (batch, 3, side, side)."""
    where = (device_type, platform.machine(), platform.node(), CPU_COUNT, n_threads)
    return f"{runtime_cache.cache_key('choice', key, shape, *where, *export_versions())}.json"


def random_tiles(n_tiles: int, side_px: int) -> RgbArray:
    """Return tiles of noise, shape (n_tiles, side_px, side_px, 3), uint8; the first are the same.

    Exports hold the eager embeddings of the first of them.
    """
    shape = (n_tiles, side_px, side_px, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def start_session(exported: bytes, *, n_threads: int) -> Any:
    """Start an export in ONNX Runtime on so many threads."""
    import onnxruntime  # noqa: PLC0415 - an extra, and heavy

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the threads that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
