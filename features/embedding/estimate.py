"""What embedding a set of slides will take: their masks and a short measurement tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.embedding.batching import SlideBuffer
from features.embedding.config import EmbedConfig
from features.encoders.encoder import Encoder
from features.errors import MilError
from features.slides.base import RgbArray
from features.slides.reader import slide_id_of
from features.tiling.slide_tiles import SlideTiles, open_slide_tiles
from features.tiling.stain import build_stain_normalizer
from features.tiling.transforms import TileTransform

__all__ = ["Estimate", "estimate_embedding"]

_BYTES_A_NUMBER = 2  # float16
_BATCHES_MEASURED = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is known beforehand of an embedding."""

    n_slides: int
    """Slides that can be opened."""
    n_tiles: int
    """Tiles with enough tissue, before rules leave some out."""
    bag_gb: float
    """Size of all bags, GB (10^9 bytes)."""
    survey_s: float
    """Seconds that finding the tissue took."""
    decode_tiles_per_s: float
    """Tiles read, scaled and judged and their views drawn a second, all threads together; NaN
    without tiles."""
    backbone_tiles_per_s: float
    """Tiles with their views through the backbone a second; NaN without tiles."""
    hours: float
    """Hours that the embedding will take on this machine."""
    failures: Mapping[str, str]
    """Why slides cannot be opened, by slide id."""


def estimate_embedding(
    paths: Sequence[Path],
    encoder: Encoder,
    *,
    settings: EmbedConfig,
    given_mpp: Mapping[str, float],
    on_slide: Callable[[], None],
) -> Estimate:
    """Survey all slides and time the backbone on tiles of the first that has any.

    Parameters
    ----------
    paths
        The slides.
    encoder
        The backbone.
    settings
        How tiles are found and cut.
    given_mpp
        µm per level-0 px by slide id.
    on_slide
        Called after each slide.
    """
    started = time.monotonic()
    n_tiles, measured_s = 0, 0.0
    rates = (float("nan"), float("nan"))
    failures: dict[str, str] = {}
    for path in paths:
        slide_id = slide_id_of(path)
        try:
            with open_slide_tiles(
                path, tiles=settings.tiles, tissue=settings.tissue,
                given_mpp=given_mpp.get(slide_id),
            ) as survey:  # fmt: skip
                n_tiles += survey.n_tiles
                if np.isnan(rates[0]) and survey.n_tiles:
                    before = time.monotonic()
                    rates = _measure(survey, encoder, settings)
                    measured_s = time.monotonic() - before
        except MilError as error:
            failures[slide_id] = str(error)
        on_slide()
    survey_s = time.monotonic() - started - measured_s
    decode, backbone = rates
    n_looks = 1 + settings.views.n_views
    embed_s = n_tiles * _seconds_a_tile(decode, backbone, encoder) if n_tiles else 0.0
    return Estimate(
        n_slides=len(paths) - len(failures),
        n_tiles=n_tiles,
        bag_gb=n_tiles * n_looks * encoder.dim * _BYTES_A_NUMBER / 1e9,
        survey_s=survey_s,
        decode_tiles_per_s=decode,
        backbone_tiles_per_s=backbone,
        hours=(survey_s + embed_s) / 3600,
        failures=failures,
    )


def _measure(survey: SlideTiles, encoder: Encoder, settings: EmbedConfig) -> tuple[float, float]:
    """Tiles a second of decoding and of the backbone, each on its own."""
    pictures: list[RgbArray] = []
    n_read, n_tiles = 0, survey.n_tiles
    started = time.monotonic()
    recolour = build_stain_normalizer(settings.stain_norm, survey)
    looks = TileTransform(survey, views=settings.views, stain_normalizer=recolour)
    work = SlideBuffer(survey, dim=encoder.dim, looks=looks)
    with ThreadPoolExecutor(settings.n_workers) as pool:
        while n_read < n_tiles and len(pictures) < settings.batch_tiles:
            ahead = range(n_read, min(n_tiles, n_read + 4 * settings.n_workers))
            for found in pool.map(work.read, ahead):
                n_read += 1
                if isinstance(found, np.ndarray):
                    pictures.extend(found)
    decode = n_read / (time.monotonic() - started)
    if not pictures:
        return decode, float("nan")
    side = survey.grid.tile_px
    batch = np.resize(np.stack(pictures), (settings.batch_tiles, side, side, 3))
    encoder.embed(batch)
    started = time.monotonic()
    for _ in range(_BATCHES_MEASURED):
        encoder.embed(batch)
    rate = _BATCHES_MEASURED * len(batch) / (time.monotonic() - started)
    return decode, rate / work.n_looks


def _seconds_a_tile(decode: float, backbone: float, encoder: Encoder) -> float:
    """On a CPU decoding and backbone share the cores; on a device they go on side by side."""
    if np.isnan(backbone):
        return 1 / decode
    if encoder.device.type == "cpu":
        return 1 / decode + 1 / backbone
    return max(1 / decode, 1 / backbone)
