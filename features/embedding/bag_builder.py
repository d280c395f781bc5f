"""The bag of a slide whose tiles are all dealt with, and what it says of its making."""

from __future__ import annotations

import json
import platform
from collections import Counter
from importlib import metadata

from features.bags.bag import Bag, BagMeta, as_json
from features.embedding.batching import SlideBuffer
from features.embedding.config import EmbedConfig, make_fingerprint
from features.embedding.results import counts_text
from features.encoders.encoder import Encoder
from features.errors import SlideError
from features.slides.file_info import content_hash
from features.slides.reader import slide_id_of
from features.tiling.slide_tiles import SlideTiles

__all__ = ["build_bag", "software_versions"]


def build_bag(work: SlideBuffer[SlideTiles], encoder: Encoder, settings: EmbedConfig) -> Bag:
    """The bag of a slide whose tiles are all dealt with.

    Raises
    ------
    SlideError
        If more of its tiles could not be decoded than may fail.
    """
    if work.fault is not None:
        raise work.fault
    survey, n_failed = work.survey, len(work.failures)
    n_tried = survey.n_tiles
    if n_failed > settings.max_failed * n_tried:
        raise SlideError(
            survey.slide.path,
            actual=f"{n_failed} of {n_tried} tiles cannot be decoded, "
            f"first: {next(iter(work.failures.values()))}",
            expected=f"at most {settings.max_failed:.0%}",
            hint="Copy or export the slide again, or allow more with --max-failed.",
        )
    return Bag(
        features=work.features,
        coords_px0=survey.grid.coords_px0[work.kept],
        tissue_fraction=survey.grid.tissue_fraction[work.kept],
        meta=_describe(work, encoder, settings),
        views=work.views,
    )


def _describe(work: SlideBuffer[SlideTiles], encoder: Encoder, settings: EmbedConfig) -> BagMeta:
    survey = work.survey
    slide, resolution, grid = survey.slide, survey.resolution, survey.grid
    return BagMeta(
        slide_id=slide_id_of(slide.path),
        fingerprint=make_fingerprint(encoder, settings),
        width_px0=slide.levels[0].width_px,
        height_px0=slide.levels[0].height_px,
        mpp_x=resolution.mpp_x,
        mpp_y=resolution.mpp_y,
        mpp_source=resolution.source,
        span_x_px0=grid.tile_width_px0,
        span_y_px0=grid.tile_height_px0,
        slide_content_id=content_hash(slide.path),
        background_rgb=survey.tissue.background_rgb,
        min_tissue_used=grid.min_tissue_used,
        n_tried=survey.n_tiles,
        n_failed=len(work.failures),
        left_out=as_json(**Counter(work.left_out.values())),
        empty_reason=_empty_reason(work),
        software=software_versions(encoder, *_packages_of(settings)),
    )


def _packages_of(settings: EmbedConfig) -> list[str]:
    """What else decides about pixels with these settings."""
    views = ["torchvision"] if settings.views.n_views else []
    return views if settings.stain_norm == "none" else [*views, "macenko-pca"]


def _empty_reason(work: SlideBuffer[SlideTiles]) -> str:
    if len(work.kept):
        return ""
    if not work.survey.n_tissue_tiles:
        return "no tissue found"
    counts = counts_text(Counter(work.left_out.values()))
    return f"all {work.survey.n_tiles} tiles left out: {counts}"


def software_versions(encoder: Encoder, *also: str) -> str:
    """Versions of what decides about pixels and embeddings, as JSON.

    Parameters
    ----------
    encoder
        The backbone.
    also
        Names of further packages.
    """
    names = (
        "mil-slides", "torch", "timm", "tifffile", "imagecodecs", "openslide-python", "pillow",
        "zarr", *also,
    )  # fmt: skip
    versions = {"python": platform.python_version(), "execution": encoder.execution}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return json.dumps(versions, sort_keys=True)
