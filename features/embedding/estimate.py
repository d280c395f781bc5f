"""Estimate of tiles, disk space and time of an embedding run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.embedding.config import EmbedConfig
from features.embedding.sources import SlideSource, buffer_tiles
from features.encoders.encoder import Encoder
from features.errors import MilError
from features.slides.base import RgbArray
from features.slides.reader import slide_id_of
from features.tiling.slide_tiles import SlideTiles

__all__ = ["Estimate", "estimate_embedding"]

_BYTES_PER_VALUE = 2  # float16
_BATCHES_MEASURED = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Expected size and duration of an embedding run on this machine.

    Attributes
    ----------
    n_slides
        Slides that can be opened; ``failures`` are the errors of the others by slide id.
    n_tiles
        Tiles with enough tissue, before the artefact rules reject some.
    bag_gb
        Size of all bags, GB (10^9 bytes).
    segmentation_s
        Duration of the tissue segmentation, seconds.
    decode_tiles_per_s
        Tiles read, resampled, checked and augmented per second by all threads; NaN without tiles.
    backbone_tiles_per_s
        Tiles with their views encoded per second; NaN without tiles.
    """

    n_slides: int
    n_tiles: int
    bag_gb: float
    segmentation_s: float
    decode_tiles_per_s: float
    backbone_tiles_per_s: float
    hours: float
    failures: Mapping[str, str]


def estimate_embedding(
    paths: Sequence[Path],
    encoder: Encoder,
    *,
    config: EmbedConfig,
    given_mpp: Mapping[str, float],
    scene: int | None = None,
    on_slide: Callable[[], None],
) -> Estimate:
    """Segment the tissue of all slides, and time the encoder on tiles of the first that has any.

    ``given_mpp`` is in µm per level-0 px, by slide id, ``scene`` which of each file's
    scenes is the slide, None for the largest; ``on_slide`` is called after each slide.
    """
    started = time.monotonic()
    n_tiles, measured_s = 0, 0.0
    rates = (float("nan"), float("nan"))
    failures: dict[str, str] = {}
    for path in paths:
        slide_id = slide_id_of(path)
        try:
            source = SlideSource(
                path=path, config=config, given_mpp=given_mpp.get(slide_id), scene=scene
            )
            with source.open() as tiles:
                n_tiles += tiles.n_tiles
                if np.isnan(rates[0]) and tiles.n_tiles:
                    before = time.monotonic()
                    rates = _measure(tiles, encoder, config)
                    measured_s = time.monotonic() - before
        except MilError as error:
            failures[slide_id] = str(error)
        on_slide()
    segmentation_s = time.monotonic() - started - measured_s
    decode, encode = rates
    # On a CPU, decoding and encoding share the cores.
    combine = sum if encoder.device.type == "cpu" else max
    rates_known = [rate for rate in (decode, encode) if not np.isnan(rate)]
    embed_s = n_tiles * combine([1 / rate for rate in rates_known]) if n_tiles else 0.0
    n_values = n_tiles * (1 + config.views.n_views) * encoder.dim
    return Estimate(
        n_slides=len(paths) - len(failures),
        n_tiles=n_tiles,
        bag_gb=n_values * _BYTES_PER_VALUE / 1e9,
        segmentation_s=segmentation_s,
        decode_tiles_per_s=decode,
        backbone_tiles_per_s=encode,
        hours=(segmentation_s + embed_s) / 3600,
        failures=failures,
    )


def _measure(tiles: SlideTiles, encoder: Encoder, config: EmbedConfig) -> tuple[float, float]:
    """Measure decoding and encoding, each alone, tiles per second."""
    inputs: list[RgbArray] = []
    n_read, n_threads, batch_tiles = 0, config.n_threads, config.batch_tiles
    started = time.monotonic()
    buffer = buffer_tiles(tiles, config, dim=encoder.dim)
    with ThreadPoolExecutor(n_threads) as pool:
        while n_read < tiles.n_tiles and len(inputs) < batch_tiles:
            ahead = range(n_read, min(tiles.n_tiles, n_read + 4 * n_threads))
            for pixels in pool.map(buffer.read, ahead):
                n_read += 1
                if isinstance(pixels, np.ndarray):
                    inputs.extend(pixels)
    decode = n_read / (time.monotonic() - started)
    if not inputs:
        return decode, float("nan")
    batch = np.resize(np.stack(inputs), (batch_tiles, *inputs[0].shape))
    encoder.embed(batch)
    started = time.monotonic()
    for _ in range(_BATCHES_MEASURED):
        encoder.embed(batch)
    rate = _BATCHES_MEASURED * len(batch) / (time.monotonic() - started)
    return decode, rate / buffer.n_views
