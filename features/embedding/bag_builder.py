"""Bag of a slide whose tiles are embedded, with its metadata."""

from __future__ import annotations

import json
import platform
from collections import Counter
from functools import cache
from importlib import metadata

from features.bags.bag import UNKNOWN_RGB, UNKNOWN_SHARE, Bag, BagMeta, as_json
from features.embedding.batching import SlideBuffer
from features.embedding.config import EmbedConfig
from features.embedding.results import counts_text
from features.encoders.base import Encoder
from features.errors import one_line
from features.slides.file_info import content_hash
from features.tiling.slide_tiles import SlideTiles

__all__ = ["build_bag", "software_versions"]


def build_bag(buffer: SlideBuffer[SlideTiles], encoder: Encoder, config: EmbedConfig) -> Bag:
    """Build the bag of a slide, features of shape (n_embedded, dim), from a finished buffer.

    Coordinates of the tiles are in px of the base level.

    Raises
    ------
    SlideError
        If a larger share of tiles than ``config.max_failed`` could not be decoded.
    """
    buffer.check_failures(
        buffer.instances.slide.path, buffer.instances.n_tiles, unit="tiles",
        max_failed=config.max_failed, verb="decoded", again="Copy or export the slide",
    )  # fmt: skip
    grid = buffer.instances.grid
    return Bag(
        features=buffer.features,
        coords_px0=grid.coords_px0[buffer.kept],
        tissue_fraction=grid.tissue_fraction[buffer.kept],
        meta=_metadata(buffer, encoder, config),
        views=buffer.views,
    )


def _metadata(buffer: SlideBuffer[SlideTiles], encoder: Encoder, config: EmbedConfig) -> BagMeta:
    tiles = buffer.instances
    slide, resolution, grid = tiles.slide, tiles.resolution, tiles.grid
    share = tiles.tissue.share
    packages = ["torchvision"] if config.views.n_views else []
    if config.stain_norm != "none":
        packages.append("macenko-pca")
    return BagMeta(
        slide_id=tiles.slide_id,
        fingerprint=config.make_fingerprint(encoder),
        width_px0=slide.levels[0].width_px,
        height_px0=slide.levels[0].height_px,
        mpp_x=resolution.mpp_x,
        mpp_y=resolution.mpp_y,
        mpp_source=resolution.source,
        span_x_px0=grid.tile_width_px0,
        span_y_px0=grid.tile_height_px0,
        slide_content_id=content_hash(slide.path),
        background_rgb=tiles.tissue.background_rgb,
        min_tissue_used=grid.min_tissue_used,
        n_tried=tiles.n_tiles,
        n_failed=len(buffer.failures),
        left_out=as_json(**Counter(buffer.rejected.values())),
        empty_reason=_empty_reason(buffer),
        software=software_versions(encoder, *packages),
        tissue_share=UNKNOWN_SHARE if share is None else share,
        scene=0 if tiles.chosen_scene is None and not slide.other_scenes else slide.scene,
        other_scenes="; ".join(map(str, slide.other_scenes)),
        settings=config.settings,
        reader=slide.reader,
        tissue_rgb=tiles.tissue.tissue_rgb or UNKNOWN_RGB,
        warnings=" | ".join(map(one_line, tiles.warnings)),
    )


def _empty_reason(buffer: SlideBuffer[SlideTiles]) -> str:
    if len(buffer.kept):
        return ""
    if not buffer.instances.n_tissue_tiles:
        return "no tissue found"
    counts = counts_text(Counter(buffer.rejected.values()))
    return f"all {buffer.instances.n_tiles} tiles left out: {counts}"


def software_versions(encoder: Encoder, *packages: str) -> str:
    """Return the runtime and the versions of all software that affects embeddings, as JSON."""
    names = (
        "mil-slides", "torch", "timm", "tifffile", "imagecodecs", "openslide-python", "pillow",
        "zarr", *packages,
    )  # fmt: skip
    versions = {"python": platform.python_version(), "execution": encoder.execution}
    for name in names:
        versions[name] = _version_of(name)
    return json.dumps(versions, sort_keys=True)


@cache
def _version_of(package: str) -> str:
    """Version of an installed package, which is searched for on the whole path."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
