"""Settings of an embedding run, and the fingerprint that its bags carry."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from features.bags.bag import UNKNOWN, Fingerprint, as_json
from features.encoders.config import EncoderConfig
from features.errors import BagError
from features.filters.classifier import TileFilter, check_compatible
from features.tiling.augmentation import AugmentationConfig
from features.tiling.grid import TileSettings
from features.tiling.stain import STAIN_NORMS, require_stain_norm
from features.tiling.tissue import MASK_VERSION, TissueSettings
from features.utils.hardware import CPU_COUNT

if TYPE_CHECKING:
    from features.encoders.base import Encoder
    from features.encoders.runtime_cache import EncoderRecord

__all__ = ["BaseEmbedConfig", "EmbedConfig", "config_from_fingerprint"]

_MOST_AHEAD = 4
_CORES_PER_OPENED = 4


@dataclass(frozen=True, kw_only=True)
class BaseEmbedConfig(EncoderConfig, ABC):
    """Settings that slides and image series share, in addition to those of the encoder.

    Attributes
    ----------
    n_workers
        Threads per device that decode, or processes for a GPU; on Ray also the cores of an
        actor; None divides all cores.
    max_failed
        Maximum share of a bag's tiles that may fail to decode, 0 to 1.
    overwrite
        Embed again what has a bag.
    engine
        ``local`` for the devices of this machine, or ``ray`` for a cluster.
    address
        Address of the Ray cluster; see :func:`features.parallel.ray_cluster.ray_connection`.
    settings
        Settings of ``mil embed`` in TOML, which each bag states; empty from Python.
    """

    n_workers: int | None = None
    max_failed: float = 0.05
    overwrite: bool = False
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    settings: str = ""

    @property
    def n_threads(self) -> int:
        """Cores on which a worker decodes that has the machine for itself."""
        return self.n_workers or CPU_COUNT

    @property
    def n_opened_ahead(self) -> int:
        """Slides that are opened while another is read: 2 at least, as one core finds much tissue.

        A single thread opens a slide when it has read the one before.
        """
        if self.n_threads == 1:
            return 0
        return min(_MOST_AHEAD, max(2, self.n_threads // _CORES_PER_OPENED))

    @property
    @abstractmethod
    def side_px(self) -> int:
        """Side of the square images that are read, px."""

    @abstractmethod
    def make_fingerprint(self, encoder: Encoder | EncoderRecord) -> Fingerprint:
        """Return the fingerprint of bags made with these settings."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(BaseEmbedConfig):
    """All settings of an embedding run on slides.

    Attributes
    ----------
    tiles
        Size in px, resolution in µm/px and selection of tiles.
    tissue
        Settings of the tissue segmentation.
    views
        Augmented views of each tile, in addition to the plain one.
    stain_norm
        Stain normalisation, a key of :data:`features.tiling.stain.STAIN_NORMS`.
    tile_filter
        Rejects tiles by their embeddings, shape (dim,); None keeps all.
    """

    tiles: TileSettings = field(default_factory=TileSettings)
    tissue: TissueSettings = field(default_factory=TissueSettings)
    views: AugmentationConfig = field(default_factory=AugmentationConfig)
    stain_norm: str = "none"
    tile_filter: TileFilter | None = None

    def __post_init__(self) -> None:
        require_stain_norm(self.stain_norm)

    @property
    def side_px(self) -> int:
        """Side of a tile, px."""
        return self.tiles.tile_px

    def make_fingerprint(self, encoder: Encoder | EncoderRecord) -> Fingerprint:
        """Return the fingerprint of bags made with this encoder at this tile size in px and mpp.

        Raises
        ------
        FilterError
            If the tile filter was fitted on embeddings made otherwise.
        """
        fingerprint = Fingerprint(
            encoder=encoder.name,
            weights_sha256=encoder.weights_sha256,
            transform=encoder.preprocessing.as_json(),
            dim=encoder.dim,
            tile_px=self.side_px,
            target_mpp=self.tiles.target_mpp,
            overlap_px=self.tiles.overlap_px,
            tissue=as_json(
                min_tissue=self.tiles.min_tissue,
                rules=list(self.tiles.rules),
                max_tiles=self.tiles.max_tiles,
                mask_version=MASK_VERSION,
                **asdict(self.tissue),
            ),
            filter_sha256="" if self.tile_filter is None else self.tile_filter.sha256,
            stain_norm=STAIN_NORMS[self.stain_norm],
            views=as_json(**asdict(self.views)) if self.views.n_views else "",
        )
        if self.tile_filter is not None:
            check_compatible(self.tile_filter, fingerprint, source="the bags to be made")
        return fingerprint


def config_from_fingerprint(
    fingerprint: Fingerprint, *, tile_filter: TileFilter | None = None, **others: Any
) -> EmbedConfig:
    """Return the settings (px, mpp, rules, filter) that make bags of a fingerprint.

    ``others`` are fields that a fingerprint does not hold, e.g. ``device``.

    Raises
    ------
    BagError
        If the bags were imported from another program, whose tissue settings are unknown, or hold
        image series.
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
            actual="series of images, not slides",
            expected="bags of slides",
            hint="Name them with --series instead of --slides.",
        )
    if tissue.pop("mask_version", None) != MASK_VERSION:
        raise BagError(
            "the run's bags",
            actual="made by an earlier version, which found tissue in another way",
            expected="bags whose tissue is found as this version does",
            hint="Embed these slides with the version that made the bags and leave --slides out, "
            "or embed all slides again and train on them.",
        )
    norms = [name for name, norm in STAIN_NORMS.items() if norm == fingerprint.stain_norm]
    if not norms:
        raise BagError(
            "the run's bags",
            actual=f"stains normalised by {fingerprint.stain_norm}",
            expected=f"{' or '.join(filter(None, STAIN_NORMS.values()))}, or nothing",
            hint="Install the version of this program that made them.",
        )
    return EmbedConfig(
        encoder=fingerprint.encoder,
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
        stain_norm=norms[0],
        tile_filter=tile_filter if fingerprint.filter_sha256 else None,
        **others,
    )
