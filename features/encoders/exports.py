"""ONNX exports of encoders in the cache: found, started and timed without torch or timm."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from features.encoders import runtime_cache
from features.encoders.runtime_cache import EncoderRecord, read_encoder_record
from features.errors import CONTENT_ERRORS
from features.utils.hardware import CPU_COUNT, may_have_gpu

__all__ = [
    "ONNX_PACKAGES",
    "KnownExport",
    "are_few",
    "are_too_few_to_time",
    "choice_name",
    "export_name",
    "export_part_tiles",
    "export_versions",
    "start_session",
]

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

MOST_PART_TILES = 16
"""Tiles that go through the network together on a CPU: more are slower and take more memory."""

_FEW_BATCHES = 4
"""Number of batches that take about as long as measuring runtimes."""

_EXPORT_BATCHES = 16
"""Number of batches of which it takes more than 5 % to load a network and to time it."""

_ONNX = "onnx float32"


def are_few(n_tiles: float, batch_tiles: int) -> bool:
    """Return whether a selection would take about as long as the tiles themselves."""
    return n_tiles <= _FEW_BATCHES * batch_tiles


def are_too_few_to_time(n_tiles: float, batch_tiles: int) -> bool:
    """Return whether an export in the cache is run where no runtime was ever timed."""
    return n_tiles <= _EXPORT_BATCHES * batch_tiles


def export_part_tiles(batch_tiles: int, n_threads: int) -> int:
    """Return the number of tiles that one thread takes at a time through an export."""
    return min(MOST_PART_TILES, -(-batch_tiles // n_threads))


def export_versions() -> list[str]:
    """Return the versions of the installed packages that an export depends on."""
    names = ("torch", "timm", *ONNX_PACKAGES)
    return [metadata.version(name) for name in names if importlib.util.find_spec(name) is not None]


def export_name(key: str, shape: tuple[int, ...]) -> str:
    """Return the name of an export for parts of a shape, (tiles, 3, side, side) in px."""
    return f"{runtime_cache.cache_key('onnx', key, shape, *export_versions())}.onnx"


def choice_name(key: str, shape: tuple[int, ...], device_type: str, n_threads: int) -> str:
    """Return the name of a choice of runtime for batches of a shape, (batch, 3, side, side)."""
    where = (device_type, platform.machine(), platform.node(), CPU_COUNT, n_threads)
    return f"{runtime_cache.cache_key('choice', key, shape, *where, *export_versions())}.json"


def start_session(exported: bytes, *, n_threads: int) -> Any:
    """Start an export in ONNX Runtime on so many threads."""
    import onnxruntime  # noqa: PLC0415 - an extra, and heavy

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the threads that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, kw_only=True)
class KnownExport:
    """Encoder that a run would start from its export in the cache.

    Each of ``n_at_once`` threads takes parts of shape (part_tiles, 3, side, side), side in px.
    """

    encoder: EncoderRecord
    file_name: str
    part_shape: tuple[int, ...]
    n_at_once: int
    n_threads: int

    @classmethod
    def find(
        cls,
        name: str,
        weights: Sequence[Path | None],
        *,
        device: str,
        execution: str,
        batch_tiles: int,
        n_tiles: int,
    ) -> KnownExport | None:
        """Return the export that a run on ``n_tiles`` tiles begins with; None if it has none.

        The rules are those of :func:`features.encoders.encoder.load_encoder`: an export runs on
        the CPU, and is taken where ONNX Runtime is asked for or was the fastest here, or where the
        tiles are few. ``execution`` is as for that function.
        """
        encoder = read_encoder_record(name, weights)
        on_cpu = device == "cpu" or (device == "auto" and not may_have_gpu())
        if encoder is None or not on_cpu or "+" in name or importlib.util.find_spec(
            "onnxruntime"
        ) is None:  # fmt: skip
            return None
        engine, _, rest = execution.partition(" ")
        recorded_tiles = rest.partition("batch ")[2]
        if recorded_tiles.isdecimal():
            batch_tiles = int(recorded_tiles)
        side = int(json.loads(encoder.transform)["input_px"])
        key = f"{encoder.name} {encoder.weights_sha256}"
        for n_threads in _possible_threads():
            part = (export_part_tiles(batch_tiles, n_threads), 3, side, side)
            file_name = export_name(key, part)
            if not runtime_cache.exists(file_name):
                continue
            choice = runtime_cache.load(
                choice_name(key, (batch_tiles, 3, side, side), "cpu", n_threads)
            )
            few = are_too_few_to_time(n_tiles, batch_tiles)
            if engine == "onnx" or (engine == "auto" and _takes_export(choice, few=few)):
                return cls(
                    encoder=encoder, file_name=file_name, part_shape=part, n_threads=n_threads,
                    n_at_once=min(n_threads, -(-batch_tiles // part[0])),
                )  # fmt: skip
        return None

    def measure(self, n_inputs: int) -> tuple[float, float] | None:
        """Start the export and time one part per thread that ``n_inputs`` tiles keep busy.

        Returns the seconds to start, with a first part, and tiles per second; None if it does not
        start.
        """
        part = np.random.default_rng(0).standard_normal(self.part_shape, np.float32)
        n_parts = max(1, min(self.n_at_once, -(-n_inputs // self.part_shape[0])))
        started = time.monotonic()
        try:
            session = start_session(
                runtime_cache.load(self.file_name) or b"",
                n_threads=max(1, self.n_threads // self.n_at_once),
            )
            session.run(None, {"pixels": part})
        except Exception:  # noqa: BLE001 - ONNX Runtime raises errors of many types
            return None
        start_s = time.monotonic() - started
        started = time.monotonic()
        with ThreadPoolExecutor(n_parts) as pool:
            list(pool.map(lambda _: session.run(None, {"pixels": part}), range(n_parts)))
        seconds = time.monotonic() - started
        return start_s, n_parts * self.part_shape[0] / seconds


def _possible_threads() -> list[int]:
    """Return the numbers of threads that torch may use here, the likeliest first."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return [int(asked)] if asked.isdecimal() and int(asked) else [*range(CPU_COUNT, 0, -1)]


def _takes_export(choice: bytes | None, *, few: bool) -> bool:
    """Return whether a run whose runtime is to be chosen begins with the export."""
    try:
        stored: str | None = json.loads(choice or b"")["runtime"]
    except CONTENT_ERRORS:
        stored = None
    return stored == _ONNX or (stored is None and few)
