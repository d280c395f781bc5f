"""Encoders that run by their ONNX export in the cache: found, started and timed without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from features.encoders import runtime_cache
from features.encoders.base import AsyncResult, ConcatResult, Encoder
from features.encoders.execution import LARGEST_ERROR, ONNX, parse_execution
from features.encoders.exports import (
    EXPECTED_KEY,
    are_too_few_to_time,
    export_name,
    export_part_tiles,
    export_versions,
    random_tiles,
    start_session,
)
from features.encoders.preprocessing import Preprocessing
from features.encoders.runtime_cache import EncoderRecord, read_encoder_record
from features.encoders.scaling import scale_antialiased
from features.encoders.stored_choice import StoredChoice
from features.errors import EncoderError
from features.slides.base import RgbArray
from features.utils.hardware import CPU_COUNT, may_have_gpu, physical_core_count

__all__ = ["ExportedEncoder", "KnownExport", "open_export"]

_MEASURED_ROUNDS = 3


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
    batch_tiles: int

    @classmethod
    def find(
        cls,
        name: str,
        weights: Sequence[Path | None],
        *,
        device: str,
        execution: str,
        batch_tiles: int,
        n_tiles: int | None,
        n_threads: int | None = None,
    ) -> KnownExport | None:
        """Return the export that a run on ``n_tiles`` tiles begins with; None if it has none.

        An export runs on the CPU, and is taken where ONNX Runtime is asked for or was the fastest
        here, or where nothing was measured here and the tiles are few; ``n_tiles`` is None if their
        number is not known. ``execution`` is as for
        :func:`features.encoders.encoder.load_encoder`, ``n_threads`` the cores of a worker that
        shares the machine with others.
        """
        encoder = read_encoder_record(name, weights)
        on_cpu = device == "cpu" or (device == "auto" and not may_have_gpu())
        if encoder is None or not on_cpu or "+" in name or importlib.util.find_spec(
            "onnxruntime"
        ) is None:  # fmt: skip
            return None
        try:
            runtime, recorded_tiles = (
                (None, None) if execution == "auto" else parse_execution(execution)
            )
        except EncoderError:  # It is reported when the network is loaded.
            return None
        if runtime not in (None, ONNX):
            return None
        batch_tiles = recorded_tiles or batch_tiles
        side = int(json.loads(encoder.transform)["input_px"])
        key = f"{encoder.name} {encoder.weights_sha256}"
        for threads in [n_threads] if n_threads else _possible_threads():
            part = (export_part_tiles(batch_tiles, threads), 3, side, side)
            file_name = export_name(key, part)
            if not runtime_cache.exists(file_name):
                continue
            if runtime is None:
                stored = StoredChoice.read(
                    key, (batch_tiles, 3, side, side), device_type="cpu", n_threads=threads
                )
                few = n_tiles is not None and are_too_few_to_time(n_tiles, batch_tiles)
                if not (stored.runtime == str(ONNX) if stored else few):
                    continue
            return cls(
                encoder=encoder, file_name=file_name, part_shape=part, n_threads=threads,
                n_at_once=min(threads, -(-batch_tiles // part[0])), batch_tiles=batch_tiles,
            )  # fmt: skip
        return None

    def start(self, exported: bytes) -> Any:
        """Start the export in ONNX Runtime, on the threads that each part at a time has."""
        return start_session(exported, n_threads=max(1, self.n_threads // self.n_at_once))

    def measure(self, n_inputs: int) -> tuple[float, float] | None:
        """Start the export and time one part per thread that ``n_inputs`` tiles keep busy.

        The first round takes twice as long as the others, so that the fastest counts. Returns the
        seconds to start, with a first part, and tiles per second; None if it does not start.
        """
        part = np.random.default_rng(0).standard_normal(self.part_shape, np.float32)
        n_parts = max(1, min(self.n_at_once, -(-n_inputs // self.part_shape[0])))
        started = time.monotonic()
        try:
            session = self.start(runtime_cache.load(self.file_name) or b"")
            session.run(None, {"pixels": part})
        except Exception:  # noqa: BLE001 - ONNX Runtime raises errors of many types
            return None
        start_s = time.monotonic() - started
        rounds_s = []
        with ThreadPoolExecutor(n_parts) as pool:
            for _ in range(_MEASURED_ROUNDS):
                started = time.monotonic()
                list(pool.map(lambda _: session.run(None, {"pixels": part}), range(n_parts)))
                rounds_s.append(time.monotonic() - started)
        return start_s, n_parts * self.part_shape[0] / min(rounds_s)


class ExportedEncoder(Encoder):
    """Encoder that runs on the CPU by its export in the cache; nothing of torch is loaded.

    Each of several threads takes a part of a batch through all layers, from pixels on: threads that
    share a layer would wait for each other after it. A part always has the same shape, the last
    filled up with zeros, so that an embedding does not depend on the other tiles of its batch.
    """

    preprocessing: Preprocessing

    def __init__(self, export: KnownExport, session: Any) -> None:
        record = export.encoder
        self.name, self.weights_sha256, self.dim = record.name, record.weights_sha256, record.dim
        self.preprocessing = Preprocessing.from_json(record.transform)
        self.preprocessing_source = record.preprocessing_source
        self.device = _Cpu()
        self._execution = f"{ONNX} batch {export.batch_tiles}"
        self._session = session
        self._part_tiles = export.part_shape[0]
        self._levels = self.preprocessing.normalised_levels
        self._inputs: SimpleQueue[npt.NDArray[np.float32]] = SimpleQueue()
        for _ in range(export.n_at_once):  # The kernel clears new pages for each new array.
            self._inputs.put(np.zeros(export.part_shape, np.float32))
        self._pool = ThreadPoolExecutor(export.n_at_once, thread_name_prefix="backbone-part")

    @property
    def execution(self) -> str:
        """Runtime and batch size, e.g. ``onnx float32 batch 64``."""
        return self._execution

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        """Embed tiles, shape (n, height, width, 3) in px, uint8; the result is ready."""
        starts = range(0, len(tiles), self._part_tiles)
        parts = [tiles[start : start + self._part_tiles] for start in starts]
        nothing = AsyncResult(np.empty((0, self.dim), np.float32), None)
        done = [AsyncResult(values, None) for values in self._pool.map(self._embed_part, parts)]
        return ConcatResult([nothing, *done], axis=0)

    def _embed_part(self, tiles: RgbArray) -> npt.NDArray[np.float32]:
        """Embed tiles of one part, shape (n, height, width, 3) in px, uint8, as shape (n, dim)."""
        side, n_tiles = self.preprocessing.input_px, len(tiles)
        pixels = self._inputs.get()
        try:
            if tiles.shape[1:3] == (side, side):
                for channel, levels in enumerate(self._levels):
                    np.take(levels, tiles[..., channel], out=pixels[:n_tiles, channel], mode="clip")
            else:
                scale, shift = self.preprocessing.scale_and_shift
                scaled = scale_antialiased(tiles, side, self.preprocessing.interpolation)
                pixels[:n_tiles] = (scaled * scale + shift).transpose(0, 3, 1, 2)
            pixels[n_tiles:] = 0
            embeddings: npt.NDArray[np.float32] = self._session.run(None, {"pixels": pixels})[0]
        finally:
            self._inputs.put(pixels)
        return embeddings[:n_tiles]


class _Cpu:
    """The device on which exports run."""

    type = "cpu"

    def __str__(self) -> str:
        return self.type


def open_export(export: KnownExport) -> ExportedEncoder | None:
    """Start an export in a tenth of the time of loading its network; None if it does not work.

    Its embeddings of the tiles that it was made with are compared with the eager ones, which it
    holds: once on each machine, and again when its file or a package has changed.
    """
    exported = runtime_cache.load(export.file_name)
    if exported is None:
        return None
    where = (platform.machine(), platform.node(), *export_versions())
    checked = runtime_cache.cache_key("checked", hashlib.sha256(exported).hexdigest(), *where)
    with suppress(Exception):  # What is damaged or missing is found when the network is loaded.
        encoder = ExportedEncoder(export, session := export.start(exported))
        if not runtime_cache.exists(f"{checked}.checked"):
            stored = session.get_modelmeta().custom_metadata_map[EXPECTED_KEY]
            expected = np.array(json.loads(stored), np.float32)
            side = encoder.preprocessing.input_px
            actual = encoder.embed(random_tiles(len(expected), side))
            errors = np.linalg.norm(actual - expected, axis=1)
            lengths = np.linalg.norm(expected, axis=1).clip(1e-12)
            if not (errors / lengths).max() <= LARGEST_ERROR["float32"]:  # True for NaN.
                return None
            runtime_cache.store(f"{checked}.checked", b"")
        return encoder
    return None


def _possible_threads() -> list[int]:
    """Return the numbers of threads that torch may use here, the likeliest first."""
    if torch := sys.modules.get("torch"):
        return [torch.get_num_threads()]
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked):
        return [int(asked)]
    return list(dict.fromkeys([physical_core_count(), *range(CPU_COUNT, 0, -1)]))
