"""How slides become bags: all that is chosen beforehand, and the fingerprint that tells it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from features.bags.bag import UNKNOWN, Fingerprint, as_json
from features.encoders.encoder import Encoder
from features.errors import BagError
from features.filters.classifier import TileFilter, check_compatible
from features.tiling.augmentation import AugmentationConfig
from features.tiling.grid import TileSettings
from features.tiling.stain import STAIN_NORMS, require_stain_norm
from features.tiling.tissue import TissueSettings

__all__ = ["EmbedConfig", "config_from_fingerprint", "make_fingerprint"]


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How slides become bags."""

    tiles: TileSettings
    """Size, resolution and choice of tiles."""
    tissue: TissueSettings
    """How tissue is told from glass."""
    views: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Views of each tile besides the plain one."""
    stain_norm: str = "none"
    """How stains are made alike: a name of :data:`features.tiling.stain.STAIN_NORMS`."""
    batch_tiles: int = 64
    """Tiles through the backbone at once."""
    n_workers: int = 4
    """Threads that decode."""
    max_failed: float = 0.05
    """Share of a slide's tiles that may fail to decode before the slide fails, 0 to 1."""
    tile_filter: TileFilter | None = None
    """Drops tiles by their embeddings; None drops none."""

    def __post_init__(self) -> None:
        require_stain_norm(self.stain_norm)


def make_fingerprint(encoder: Encoder, settings: EmbedConfig) -> Fingerprint:
    """How bags of this encoder and these settings are told from others.

    Raises
    ------
    FilterError
        If the tile filter was fitted on other embeddings than these.
    """
    tile_filter = settings.tile_filter
    fingerprint = Fingerprint(
        encoder=encoder.name,
        weights_sha256=encoder.weights_sha256,
        transform=encoder.preprocessing.as_json(),
        dim=encoder.dim,
        tile_px=settings.tiles.tile_px,
        target_mpp=settings.tiles.target_mpp,
        overlap_px=settings.tiles.overlap_px,
        tissue=as_json(
            min_tissue=settings.tiles.min_tissue,
            rules=list(settings.tiles.rules),
            max_tiles=settings.tiles.max_tiles,
            **asdict(settings.tissue),
        ),
        filter_sha256="" if tile_filter is None else tile_filter.sha256,
        stain_norm=STAIN_NORMS[settings.stain_norm],
        views=as_json(**asdict(settings.views)) if settings.views.n_views else "",
    )
    if tile_filter is not None:
        check_compatible(tile_filter, fingerprint, source="the bags to be made")
    return fingerprint


def config_from_fingerprint(
    fingerprint: Fingerprint,
    *,
    batch_tiles: int,
    n_workers: int,
    tile_filter: TileFilter | None = None,
) -> EmbedConfig:
    """Settings that make bags of this fingerprint, given the same encoder and tile filter.

    Raises
    ------
    BagError
        If its bags were imported from another program, which does not tell how it found tissue, or
        are of series of images.
    """
    if fingerprint.weights_sha256 == UNKNOWN:
        raise BagError(
            "the run's bags",
            actual="imported from another program: how their tiles were made is unknown",
            expected="bags made by 'mil embed'",
            hint="Import the bags of these slides as well, and leave --slides out.",
        )
    tissue: dict[str, Any] = json.loads(fingerprint.tissue)
    if "images" in tissue:
        raise BagError(
            "the run's bags",
            actual="series of images, which are not found on slides",
            expected="bags of slides",
            hint="Embed these series with 'mil embed --series', and leave --slides out.",
        )
    return EmbedConfig(
        tiles=TileSettings(
            tile_px=fingerprint.tile_px,
            target_mpp=fingerprint.target_mpp,
            overlap_px=fingerprint.overlap_px,
            min_tissue=tissue.pop("min_tissue"),
            rules=tuple(tissue.pop("rules")),
            max_tiles=tissue.pop("max_tiles"),
        ),
        tissue=TissueSettings(**tissue),
        views=AugmentationConfig(**json.loads(fingerprint.views or "{}")),
        stain_norm=_stain_norm_of(fingerprint),
        batch_tiles=batch_tiles,
        n_workers=n_workers,
        tile_filter=tile_filter if fingerprint.filter_sha256 else None,
    )


def _stain_norm_of(fingerprint: Fingerprint) -> str:
    """Name of the way in which stains were made alike."""
    for name, told in STAIN_NORMS.items():
        if told == fingerprint.stain_norm:
            return name
    raise BagError(
        "the run's bags",
        actual=f"stains made alike by {fingerprint.stain_norm}",
        expected=f"{' or '.join(filter(None, STAIN_NORMS.values()))}, or nothing",
        hint="Install the version of this program that made them.",
    )
