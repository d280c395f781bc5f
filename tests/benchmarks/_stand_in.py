"""A device that answers at a given rate without using the cores, as an accelerator would."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from features.embedding.config import EmbedConfig
from features.embedding.distributed import open_executor
from features.embedding.pipeline import embed_slides
from features.encoders.preprocessing import Preprocessing
from features.tiling.slide_tiles import open_slide_tiles
from tests.benchmarks._slides import write_bench_slide

__all__ = ["StandInEncoder", "measure_stand_in", "unequal_slides"]

_SIDES_PX = (2_048, 12_288, 4_096, 6_144, 3_072, 9_216, 2_048, 7_168, 5_120, 10_240)
_DIM = 512
_LOADED = "vit_base_patch16_224"
"""Network that is built, and left unused, where the encoder would be loaded."""


@dataclass(frozen=True)
class _LateResult:
    """Embeddings that are ready at a moment of ``time.perf_counter``."""

    values: np.ndarray
    ready_at: float

    @property
    def is_ready(self) -> bool:
        return time.perf_counter() >= self.ready_at

    def wait(self) -> np.ndarray:
        time.sleep(max(0.0, self.ready_at - time.perf_counter()))
        return self.values


class StandInEncoder:
    """Encoder that takes its time for each batch, one after the other, and computes nothing."""

    name, weights_sha256, preprocessing_source, execution = "stand-in", "0" * 64, "none", "stand-in"
    dim = _DIM
    device = torch.device("meta")  # as a GPU: it leaves the cores to the decoders

    def __init__(self, tiles_per_s: float) -> None:
        self.preprocessing = Preprocessing(
            input_px=224, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
        )
        self._tiles_per_s = tiles_per_s
        self._free_at = self.busy_s = 0.0
        self._values = np.random.default_rng(0).normal(size=(1024, _DIM)).astype(np.float32)

    def embed_async(self, tiles: np.ndarray) -> Any:
        now = time.perf_counter()
        seconds = len(tiles) / self._tiles_per_s
        self._free_at = max(now, self._free_at) + seconds
        self.busy_s += seconds
        return _LateResult(self._values[: len(tiles)], self._free_at)

    def stored_choice(self, batch_tiles: int) -> None: ...

    def has_export(self, batch_tiles: int) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class _StandInConfig(EmbedConfig):
    """Settings with a stand-in that is loaded as an encoder is, while processes start.

    These get ``plain`` settings, as unpickling the others would load torch.
    """

    stand_in: Any
    plain: EmbedConfig

    @classmethod
    def of(cls, settings: EmbedConfig, stand_in: StandInEncoder) -> _StandInConfig:
        plain = replace(settings, encoder=stand_in.name, device=str(stand_in.device))
        values = {field.name: getattr(plain, field.name) for field in fields(plain)}
        return cls(**values, stand_in=stand_in, plain=plain)

    def load_encoder(self, *_: object, **__: object) -> Any:
        _build_network()
        return self.stand_in

    def without_encoder(self) -> Any:
        return self.plain


def _build_network() -> float:
    """Build a network by one thread, as an encoder for a GPU is loaded; return the seconds."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.perf_counter()
    timm.create_model(_LOADED, pretrained=False)
    seconds = time.perf_counter() - started
    torch.set_num_threads(n_threads)
    return seconds


def unequal_slides(folder: Path, n_slides: int, *, side_scale: int = 1) -> list[Path]:
    """Write slides of 2,048 to 12,288 px square, times a scale, a fifth tissue, of mixed sizes."""
    return [
        write_bench_slide(
            folder / f"u{number}.tif", width_px=side_scale * side, height_px=side_scale * side,
            codec="jpeg", noise_sigma=1.0, tissue_share=0.2, seed=number,
        ).path
        for number, side in zip(range(n_slides), _SIDES_PX * n_slides, strict=False)
    ]  # fmt: skip


def _read(path: Path, settings: EmbedConfig) -> int:
    """Mask and tiles of one slide."""
    with open_slide_tiles(
        path, tiles=settings.tiles, tissue=settings.tissue, given_mpp=None
    ) as tiles:
        return sum(1 for index in range(tiles.n_tiles) if tiles.read(index) is not None)


def _read_all(slides: Sequence[Path], settings: EmbedConfig, pool: Executor) -> tuple[int, float]:
    """Mask and tiles of slides, largest first, by as many processes as cores; tiles and seconds."""
    started = time.perf_counter()
    largest_first = sorted(slides, key=lambda path: -path.stat().st_size)
    n_read = sum(pool.map(_read, largest_first, [settings] * len(slides)))
    return n_read, time.perf_counter() - started


def measure_stand_in(
    slides: list[Path], bags: Path, settings: EmbedConfig, tiles_per_s: float
) -> dict[str, float]:
    """The whole command, and mask and decoding alone, half of it before and half after.

    The command's processes start while a network is built; ``start_s`` is what they add to the
    time that building it takes alone.
    """
    encoder = StandInEncoder(tiles_per_s)
    config = _StandInConfig.of(settings, encoder)
    load_s = _build_network()
    with ProcessPoolExecutor(settings.n_threads, mp_context=get_context("spawn")) as pool:
        _read_all([min(slides, key=lambda path: path.stat().st_size)] * 8, settings, pool)
        n_before, before_s = _read_all(slides[::2], settings, pool)
        started = time.perf_counter()
        with open_executor(config, bags) as executor:
            opened = time.perf_counter()
            results = embed_slides(slides, bags, config, executor=executor)
            whole_s = time.perf_counter() - opened
        n_after, after_s = _read_all(slides[1::2], settings, pool)
    if failed := [result.message for result in results if result.status == "failed"]:
        raise SystemExit(failed[0])
    n_tiles = sum(result.n_tiles for result in results)
    read_s, start_s = before_s + after_s, opened - started - load_s
    limit_s = max(n_tiles / tiles_per_s, read_s * n_tiles / (n_before + n_after))
    return {
        "n_tiles": n_tiles, "load_s": load_s, "start_s": start_s, "whole_s": whole_s,
        "mask_and_decode_s": read_s, "device_s": encoder.busy_s, "efficiency": limit_s / whole_s,
        "efficiency_with_start": limit_s / (whole_s + start_s),
        "idle_share": 1 - encoder.busy_s / whole_s,
    }  # fmt: skip
