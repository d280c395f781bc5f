"""Estimate of tiles, disk space and time of an embedding run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from features.embedding.config import EmbedConfig
from features.embedding.slide_sample import SlideSample, sample_slides
from features.embedding.sources import SlideSource, buffer_tiles
from features.embedding.worker import n_opened_ahead
from features.encoders.encoder import Encoder
from features.encoders.runtime import parse_execution
from features.encoders.runtime_selection import RuntimeForecast, forecast_selection
from features.parallel.devices import choose_device
from features.slides.base import RgbArray
from features.tiling.slide_tiles import SlideTiles
from features.utils.hardware import CPU_COUNT

__all__ = ["Estimate", "estimate_embedding"]

_BYTES_PER_VALUE = 2  # float16
_CPU_BATCH_TILES = 32
"""Tiles that are timed on a CPU: a whole batch would take as long as a small slide, and of smaller
ones each tile takes longer, the more so where other programs use the cores."""
_DECODED_TILES = 32
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
) -> Estimate:
    """Sample a few slides, and time decoding and encoding on a few tiles of one of them.

    It takes less time than embedding a small slide: a runtime that takes long to start is not
    started, its throughput is assumed. On several devices the estimate is for the first.

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
    """
    encoder = _load_plain(config, recorded)
    startup_s = time.monotonic() - started_s
    rates = (math.nan, math.nan)

    def measure(tiles: SlideTiles) -> None:
        nonlocal rates
        rates = _measure(tiles, encoder, config)

    sample = sample_slides(sources, on_tiles=measure)
    decode, plain = rates
    forecast = _forecast(config, recorded, sample, encoder, plain, startup_s=startup_s)
    segmentation_s = sample.open_s * len(sources) / min(CPU_COUNT, n_opened_ahead(config.n_threads))
    on_cpu = encoder.device.type == "cpu"
    embed_s = segmentation_s
    if sample.n_tiles:
        # The encoder gets whole batches; on a CPU, it shares the cores with all that comes before.
        n_views = 1 + config.views.n_views
        n_batches = math.ceil(sample.n_tiles * n_views / config.batch_tiles)
        encode_s = n_batches * config.batch_tiles / n_views / forecast.tiles_per_s
        seconds = [
            segmentation_s + sample.n_tiles / decode, 0.0 if math.isnan(encode_s) else encode_s
        ]  # fmt: skip
        embed_s = sum(seconds) if on_cpu else max(seconds)
    total_s = (
        startup_s + sample.open_s * sample.n_sampled + forecast.start_s + embed_s
        + _BAG_S * len(sources)
    )  # fmt: skip
    n_values = sample.n_tiles * (1 + config.views.n_views) * encoder.dim
    return Estimate(
        n_slides=len(sources) - len(sample.failures),
        n_sampled=sample.n_sampled,
        n_tiles=sample.n_tiles,
        bag_gb=n_values * _BYTES_PER_VALUE / 1e9,
        startup_s=startup_s,
        selection_s=forecast.start_s,
        segmentation_s=segmentation_s,
        decode_tiles_per_s=decode,
        backbone_tiles_per_s=forecast.tiles_per_s,
        runtime=str(forecast.runtime),
        hours=total_s / 3600,
        failures=sample.failures,
    )


def _load_plain(config: EmbedConfig, recorded: str | None) -> Encoder:
    """Load the encoder in a runtime that starts at once."""
    if not isinstance(config.encoder, str):
        return config.encoder
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


def _measure(tiles: SlideTiles, encoder: Encoder, config: EmbedConfig) -> tuple[float, float]:
    """Measure decoding and encoding, each alone, tiles per second."""
    n_threads = config.n_threads
    on_cpu = encoder.device.type == "cpu"
    batch_tiles = min(config.batch_tiles, _CPU_BATCH_TILES) if on_cpu else config.batch_tiles
    buffer = buffer_tiles(tiles, config, dim=encoder.dim)
    inputs: list[RgbArray] = []
    n_read = 0
    started = time.monotonic()
    with ThreadPoolExecutor(n_threads) as pool:
        while n_read < tiles.n_tiles and (n_read < _DECODED_TILES or not inputs):
            ahead = range(n_read, min(tiles.n_tiles, n_read + max(_DECODED_TILES, 2 * n_threads)))
            for pixels in pool.map(buffer.read, ahead):
                n_read += 1
                if isinstance(pixels, np.ndarray):
                    inputs.extend(pixels)
    decode = n_read / (time.monotonic() - started)
    if not inputs:
        return decode, math.nan
    batch = np.resize(np.stack(inputs), (batch_tiles, *inputs[0].shape))
    if not on_cpu:
        encoder.embed(batch)  # warms up
    started = time.monotonic()
    encoder.embed(batch)
    rate = len(batch) / (time.monotonic() - started)
    return decode, rate / buffer.n_views
