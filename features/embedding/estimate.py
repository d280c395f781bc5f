"""Estimate of tiles, disk space and time of an embedding run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from features.embedding.config import EmbedConfig
from features.embedding.shared_encoder import reading_processes
from features.embedding.slide_sample import SlideSample, sample_slides
from features.embedding.sources import SlideSource, tile_transform
from features.encoders.execution import parse_execution
from features.encoders.exported import KnownExport
from features.slides.base import RgbArray
from features.tiling.slide_tiles import SlideTiles
from features.utils.hardware import CPU_COUNT

if TYPE_CHECKING:
    from features.encoders.base import Encoder
    from features.encoders.stored_choice import RuntimeForecast

__all__ = ["Estimate", "estimate_embedding"]

_BYTES_PER_VALUE = 2  # float16
_CPU_BATCH_TILES = 16
"""Tiles that are timed on a CPU, which takes so many at a time: a whole batch would take as long as
a small slide."""
_DECODED_TILES = 32
_RUN_PER_STARTUP = 1.5
"""Start and end of a run by a cached export, in units of the start of the estimate, which loads
less: 1.2 to 1.5 times as long in four pairs."""

_BAG_S = 0.03
"""Time to hash a slide and to write its bag, seconds."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Expected size and duration of an embedding run on this machine.

    Attributes
    ----------
    n_slides, n_sampled
        Slides to embed, and those that were opened for the estimate; ``failures`` are the errors
        of those that cannot be opened, by slide id.
    n_tiles
        Tiles with enough tissue, before the artefact rules reject some.
    bag_gb
        Size of all bags, GB (10^9 bytes).
    startup_s
        Time from the command to the loaded encoder, seconds.
    selection_s
        Expected time to choose and to start the ``runtime`` of the encoder, seconds.
    segmentation_s
        Expected time to open all slides and segment their tissue, several at a time, seconds.
    decode_tiles_per_s
        Tiles read, resampled, checked and augmented per second by all threads; NaN without tiles.
    backbone_tiles_per_s
        Tiles with their views encoded per second; NaN without tiles.
    hours
        Duration of the whole command.
    """

    n_slides: int
    n_sampled: int
    n_tiles: int
    bag_gb: float
    startup_s: float
    selection_s: float
    segmentation_s: float
    decode_tiles_per_s: float
    backbone_tiles_per_s: float
    runtime: str
    hours: float
    failures: Mapping[str, str]


def estimate_embedding(
    sources: Sequence[SlideSource],
    config: EmbedConfig,
    *,
    started_s: float,
    recorded: str | None = None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """Sample a few slides, and time decoding and encoding on a few tiles of one of them.

    It takes less time than embedding a small slide: a runtime that takes long to start is not
    started, its throughput is assumed; and where the run will begin with an export in the cache,
    torch is not loaded either. On several devices the estimate is for the first.

    Parameters
    ----------
    sources
        Slides to embed, at least one.
    config
        All settings.
    started_s
        Start of the command on the monotonic clock, seconds.
    recorded
        Runtime recorded for the folder of bags, see
        :func:`features.encoders.config.recorded_runtime`.
    on_warning
        Receives the name of a slide at which reading stands still, from another thread.
    """
    loaded_s = time.monotonic() - started_s
    decoding = _Decoding(config)
    sample = sample_slides(sources, on_tiles=decoding.measure, on_warning=on_warning)
    n_inputs = sample.n_tiles * (1 + config.views.n_views)
    encoding = _encode_by_export(config, recorded, n_inputs, loaded_s) or _encode_by_torch(
        config, recorded, sample, decoding.inputs, loaded_s
    )
    n_at_once = max(encoding.n_processes, min(CPU_COUNT, config.n_opened_ahead), 1)
    segmentation_s = sample.open_s * len(sources) / n_at_once
    decode_tiles_per_s = decoding.tiles_per_s
    if encoding.n_processes > 1:
        decode_tiles_per_s = encoding.n_processes / decoding.thread_s_per_tile
    embed_s = segmentation_s
    if sample.n_tiles:
        # On a CPU, the encoder shares the cores with all that comes before.
        n_units = math.ceil(n_inputs / encoding.unit_tiles)
        encode_s = n_units * encoding.unit_tiles / encoding.inputs_per_s
        seconds = [
            segmentation_s + sample.n_tiles / decode_tiles_per_s,
            0.0 if math.isnan(encode_s) else encode_s,
        ]
        embed_s = sum(seconds) if encoding.on_cpu else max(seconds)
    total_s = (
        encoding.startup_s + sample.open_s * sample.n_sampled + encoding.selection_s + embed_s
        + _BAG_S * len(sources)
    )  # fmt: skip
    return Estimate(
        n_slides=len(sources) - len(sample.failures),
        n_sampled=sample.n_sampled,
        n_tiles=sample.n_tiles,
        bag_gb=n_inputs * encoding.dim * _BYTES_PER_VALUE / 1e9,
        startup_s=encoding.startup_s,
        selection_s=encoding.selection_s,
        segmentation_s=segmentation_s,
        decode_tiles_per_s=decode_tiles_per_s,
        backbone_tiles_per_s=encoding.inputs_per_s / (1 + config.views.n_views),
        runtime=encoding.runtime,
        hours=total_s / 3600,
        failures=sample.failures,
    )


@dataclass(frozen=True, kw_only=True)
class _Encoding:
    """Time to start the encoder, seconds, and its throughput.

    It takes ``unit_tiles`` at a time, fewer take as long; a view counts as a tile. As many as
    ``n_processes`` read tiles for it.
    """

    startup_s: float
    selection_s: float
    inputs_per_s: float
    unit_tiles: int
    dim: int
    on_cpu: bool
    runtime: str
    n_processes: int = 1


def _encode_by_export(
    config: EmbedConfig, recorded: str | None, n_inputs: int, loaded_s: float
) -> _Encoding | None:
    """Time the export that the run will begin with; None if it begins otherwise."""
    if not isinstance(config.encoder, str):
        return None
    export = KnownExport.find(
        config.encoder, config.weights, device=config.device, batch_tiles=config.batch_tiles,
        execution=recorded or config.runtime, n_tiles=n_inputs,
    )  # fmt: skip
    if export is None or (times := export.measure(n_inputs)) is None:
        return None
    start_s, inputs_per_s = times
    return _Encoding(
        startup_s=loaded_s * _RUN_PER_STARTUP, selection_s=start_s, inputs_per_s=inputs_per_s,
        unit_tiles=export.part_shape[0], dim=export.encoder.dim, on_cpu=True,
        runtime="onnx float32",
    )  # fmt: skip


def _encode_by_torch(
    config: EmbedConfig,
    recorded: str | None,
    sample: SlideSample,
    inputs: Sequence[RgbArray],
    loaded_s: float,
) -> _Encoding:
    """Load the encoder in a runtime that starts at once, and foretell the one of the run."""
    began = time.monotonic()
    encoder = _load_plain(config, recorded)
    startup_s = loaded_s + time.monotonic() - began
    n_views = 1 + config.views.n_views
    forecast = _forecast(
        config, recorded, sample, encoder, _measure(inputs, encoder, config) / n_views,
        startup_s=startup_s,
    )  # fmt: skip
    return _Encoding(
        startup_s=startup_s, selection_s=forecast.start_s, unit_tiles=config.batch_tiles,
        inputs_per_s=forecast.tiles_per_s * n_views, dim=encoder.dim,
        on_cpu=encoder.device.type == "cpu", runtime=str(forecast.runtime),
        n_processes=reading_processes(
            encoder.device.type, config, n_tiles_expected=sample.n_tiles, n_sources=sample.n_slides
        ),
    )  # fmt: skip


def _load_plain(config: EmbedConfig, recorded: str | None) -> Encoder:
    """Load the encoder in a runtime that starts at once."""
    if not isinstance(config.encoder, str):
        return config.encoder
    from features.parallel.devices import choose_device  # noqa: PLC0415 - torch is heavy

    if choose_device(config.device).type == "cpu":
        batch_tiles = min(config.batch_tiles, _CPU_BATCH_TILES)
        return replace(config, runtime="eager", batch_tiles=batch_tiles).load_encoder()
    execution = recorded or config.runtime
    is_slow = execution != "auto" and not execution.startswith("eager")
    # With so few tiles expected, only precisions are tried, which takes seconds.
    return replace(config, runtime="eager" if is_slow else execution).load_encoder(
        n_tiles_expected=5 * config.batch_tiles
    )


def _forecast(
    config: EmbedConfig,
    recorded: str | None,
    sample: SlideSample,
    encoder: Encoder,
    tiles_per_s: float,
    *,
    startup_s: float,
) -> RuntimeForecast:
    """Return the runtime that the run will use, from the throughput in a plain one."""
    from features.encoders.runtime_selection import (  # noqa: PLC0415 - torch is heavy
        forecast_selection,
    )

    execution = recorded or config.runtime
    runtime = None if execution == "auto" else parse_execution(execution.split("+")[0])[0]
    if not isinstance(config.encoder, str):
        runtime = parse_execution(encoder.execution.split("+")[0])[0]
    if runtime is None and (stored := encoder.stored_choice(config.batch_tiles)):
        return stored.forecast(tiles_per_s, sample.n_tiles)
    return forecast_selection(
        runtime, tiles_per_s=tiles_per_s, batch_tiles=config.batch_tiles,
        n_tiles_expected=sample.n_tiles, device=encoder.device, startup_s=startup_s,
        is_cached=encoder.has_export(config.batch_tiles),
    )  # fmt: skip


@dataclass
class _Decoding:
    """Throughput of decoding, tiles per second, measured on the first tiles of a slide.

    ``thread_s_per_tile`` is a thread's own time per tile, seconds; ``inputs`` are the encoder's
    inputs that came out, uint8 of shape (side_px, side_px, 3).
    """

    config: EmbedConfig
    tiles_per_s: float = math.nan
    thread_s_per_tile: float = math.nan
    inputs: list[RgbArray] = field(default_factory=list)

    def measure(self, tiles: SlideTiles) -> None:
        """Read, check and augment tiles with all threads."""
        transform = tile_transform(tiles, self.config)
        n_threads, n_read = self.config.n_threads, 0

        def read(index: int) -> tuple[RgbArray | None, float]:
            began_s = time.thread_time()
            pixels = tiles.read(index)
            inputs = transform(pixels, index) if isinstance(pixels, np.ndarray) else None
            return inputs, time.thread_time() - began_s

        thread_s = 0.0
        started = time.monotonic()
        with ThreadPoolExecutor(n_threads) as pool:
            while n_read < tiles.n_tiles and (n_read < _DECODED_TILES or not self.inputs):
                n_ahead = max(_DECODED_TILES, 2 * n_threads)
                ahead = range(n_read, min(tiles.n_tiles, n_read + n_ahead))
                for pixels, seconds in pool.map(read, ahead):
                    n_read += 1
                    thread_s += seconds
                    self.inputs.extend([] if pixels is None else pixels)
        self.thread_s_per_tile = thread_s / n_read if n_read else math.nan
        self.tiles_per_s = n_read / (time.monotonic() - started)


def _measure(inputs: Sequence[RgbArray], encoder: Encoder, config: EmbedConfig) -> float:
    """Measure encoding alone, inputs per second; NaN without inputs."""
    if not inputs:
        return math.nan
    on_cpu = encoder.device.type == "cpu"
    batch_tiles = min(config.batch_tiles, _CPU_BATCH_TILES) if on_cpu else config.batch_tiles
    batch = np.resize(np.stack(inputs), (batch_tiles, *inputs[0].shape))
    if not on_cpu:
        encoder.embed(batch)  # warms up
    started = time.monotonic()
    encoder.embed(batch)
    return len(batch) / (time.monotonic() - started)
