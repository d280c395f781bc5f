"""One-level slides for benchmarks, of any size, written from a few tiles encoded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from features.slides.synthetic import SyntheticSlide, render_slide

__all__ = ["BenchSlide", "write_bench_slide"]

TIFF_TILE_PX = 256
_N_VARIANTS = 48
_ATLAS_PX = 3072


@dataclass(frozen=True, kw_only=True)
class BenchSlide:
    """A slide on disk and what is true of it."""

    path: Path
    """Where it lies."""
    codec: str
    """``lzw`` (with horizontal predictor) or ``jpeg`` (quality 85)."""
    noise_sigma: float
    """Standard deviation of the glass, grey levels."""
    has_tissue: npt.NDArray[np.bool_]
    """Which TIFF tiles hold tissue, shape (rows, columns)."""


def write_bench_slide(
    path: Path,
    *,
    width_px: int,
    height_px: int,
    codec: str,
    noise_sigma: float,
    tissue_share: float,
    seed: int = 0,
) -> BenchSlide:
    """Write a tiled TIFF of one level whose tissue is a few islands of painted clot."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-height_px // TIFF_TILE_PX), -(-width_px // TIFF_TILE_PX)
    shape = (rows, columns)
    clouds = ndimage.gaussian_filter(rng.normal(size=shape), min(shape) / 14)
    has_tissue = clouds > np.quantile(clouds, 1 - tissue_share)
    glass, tissue = _encoded_tiles(rng, codec, noise_sigma)
    choice = rng.integers(0, 1 << 30, shape)

    def tiles() -> Iterator[bytes]:
        for row in range(rows):
            for column in range(columns):
                kind = tissue if has_tissue[row, column] else glass
                yield kind[choice[row, column] % len(kind)]

    options: dict[str, object] = {"photometric": "rgb", "predictor": 2}
    if codec == "jpeg":
        options = {"photometric": "ycbcr", "subsampling": (2, 2)}
    tifffile.imwrite(
        path, tiles(), shape=(height_px, width_px, 3), dtype=np.uint8, bigtiff=True,
        tile=(TIFF_TILE_PX, TIFF_TILE_PX), compression=codec, metadata=None,
        **options,
    )  # fmt: skip
    return BenchSlide(path=path, codec=codec, noise_sigma=noise_sigma, has_tissue=has_tissue)


def _encoded_tiles(
    rng: np.random.Generator, codec: str, noise_sigma: float
) -> tuple[list[bytes], list[bytes]]:
    """Encoded tiles of glass and of tissue."""
    plan = SyntheticSlide(
        patient_id="bench", image_num=0, center_id="1", label="CE", red_share=0.5, white_share=0.2,
        glass_rgb=(236, 238, 234), width_px0=_ATLAS_PX, height_px0=_ATLAS_PX, seed=3,
    )  # fmt: skip
    clot = render_slide(plan).astype(np.float32)
    glass, tissue = [], []
    while len(tissue) < _N_VARIANTS:
        y, x = rng.integers(0, _ATLAS_PX - TIFF_TILE_PX, 2)
        tile = clot[y : y + TIFF_TILE_PX, x : x + TIFF_TILE_PX]
        if tile.mean(axis=2).max() < 225:  # no glass in it
            tissue.append(_encode(tile, codec))
    for _ in range(_N_VARIANTS):
        tile = np.full((TIFF_TILE_PX, TIFF_TILE_PX, 3), plan.glass_rgb, np.float32)
        glass.append(_encode(tile + rng.normal(0, noise_sigma, tile.shape), codec))
    return glass, tissue


def _encode(tile: npt.NDArray[np.float32], codec: str) -> bytes:
    pixels = np.clip(np.rint(tile), 0, 255).astype(np.uint8)
    if codec == "jpeg":
        return bytes(
            imagecodecs.jpeg8_encode(pixels, level=85, colorspace="RGB", subsampling="420")
        )
    return bytes(imagecodecs.lzw_encode(imagecodecs.delta_encode(pixels, axis=-2)))
