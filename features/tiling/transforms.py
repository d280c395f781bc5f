"""What a backbone is shown of each tile of a slide: the tile, and its further views."""

from __future__ import annotations

import numpy as np

from features.slides.base import RgbArray
from features.slides.file_info import content_hash
from features.tiling.augmentation import AugmentationConfig, augment_tile
from features.tiling.slide_tiles import SlideTiles
from features.tiling.stain import Recolour

__all__ = ["TileTransform"]


class TileTransform:
    """Shows the tiles of a slide as a backbone is to see them.

    A tile is judged as it is, then recoloured, then its views are drawn.

    Parameters
    ----------
    survey
        The open slide and its tiles.
    views
        Views besides the plain one; none by default.
    recolour
        What is done to the colours of every tile of the slide; None for nothing.

    Attributes
    ----------
    n_looks
        Pictures a tile: the plain one and its views.
    """

    def __init__(
        self,
        survey: SlideTiles,
        *,
        views: AugmentationConfig | None = None,
        recolour: Recolour | None = None,
    ) -> None:
        self._survey = survey
        self._views = views or AugmentationConfig()
        self._recolour = recolour
        self._glass_rgb = survey.tissue.background_rgb
        if recolour is not None:
            red, green, blue = recolour(np.array([[self._glass_rgb]], np.uint8))[0, 0].tolist()
            self._glass_rgb = (red, green, blue)
        self._content_id = content_hash(survey.slide.path) if self._views.n_views else ""
        self.n_looks = 1 + self._views.n_views

    def at(self, tile: RgbArray, index: int) -> RgbArray:
        """Pictures of a tile, the plain one first.

        Parameters
        ----------
        tile
            As it was read, shape (tile_px, tile_px, 3), uint8.
        index
            Index into the grid.

        Returns
        -------
        RgbArray
            Shape (n_looks, tile_px, tile_px, 3), uint8.
        """
        survey = self._survey
        if self._recolour is not None:
            tile = self._recolour(tile)
        x, y = survey.grid.coords_px0[index].tolist()
        views = [
            augment_tile(
                tile, self._views, number=number, key=f"{self._content_id} {x} {y}",
                glass_rgb=self._glass_rgb,
            )
            for number in range(1, self.n_looks)
        ]  # fmt: skip
        return np.stack([tile, *views]) if views else tile[None]
