"""Transform of a tile into the encoder's inputs."""

from __future__ import annotations

import numpy as np

from features.slides.base import RgbArray
from features.slides.file_info import content_hash
from features.tiling.augmentation import AugmentationConfig, augment_tile
from features.tiling.slide_tiles import SlideTiles
from features.tiling.stain import StainNormalizer

__all__ = ["TileTransform"]


class TileTransform:
    """Transform of a tile into the encoder's inputs: the normalised tile and augmented views of it.

    It maps (side, side, 3) in px, uint8, to shape (n_views, side, side, 3), for any tile of
    the open slide. ``views`` adds augmented views to the plain one; ``stain_normalizer`` is applied
    to every tile, None leaves the colours.
    """

    def __init__(
        self,
        slide_tiles: SlideTiles,
        *,
        views: AugmentationConfig | None = None,
        stain_normalizer: StainNormalizer | None = None,
    ) -> None:
        self._coords_px0 = slide_tiles.grid.coords_px0
        self._config = views or AugmentationConfig()
        self._normalize = stain_normalizer
        self._glass_rgb = slide_tiles.tissue.background_rgb
        if stain_normalizer is not None:
            glass = np.array([[self._glass_rgb]], np.uint8)
            red, green, blue = stain_normalizer(glass)[0, 0].tolist()
            self._glass_rgb = (red, green, blue)
        self._slide_hash = content_hash(slide_tiles.slide.path) if self._config.n_views else ""
        self.n_views = 1 + self._config.n_views

    def __call__(self, tile: RgbArray, index: int) -> RgbArray:
        """Return the views of the tile at ``index`` of the grid, the plain one first."""
        if self._normalize is not None:
            tile = self._normalize(tile)
        x, y = self._coords_px0[index].tolist()
        key = f"{self._slide_hash} {x} {y}"
        views = [
            augment_tile(tile, self._config, view=view, key=key, glass_rgb=self._glass_rgb)
            for view in range(1, self.n_views)
        ]
        return np.stack([tile, *views]) if views else tile[None]
