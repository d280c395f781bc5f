"""Slides that OpenSlide reads and that lack blocks of pixels, read block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from features.slides.backends.base import BlockReader, StoredGrid
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.openslide_properties import PHILIPS
from features.slides.base import RgbArray

__all__ = ["IncompleteSlide"]


class IncompleteSlide(BlockReader):
    """A slide of which some blocks are not stored, shape (height, width, 3), uint8.

    OpenSlide shows them as background, or does not read what is beside them. A block that a level
    lacks is computed from the finer one; on the finest, it is an error unless it is glass.
    ``grids`` are the blocks of each of its levels, sizes in px, ``block_noun`` their name. Missing
    ones are warned of, unless the scanner leaves out glass.
    """

    reader = "openslide"
    _grids: Sequence[StoredGrid]

    def __init__(
        self, slide: OpenSlideSlide, grids: Sequence[StoredGrid], *, block_noun: str
    ) -> None:
        super().__init__(slide.path)
        self._slide = slide
        self._grids, self._block_noun = grids, block_noun
        self._numbers = {grid: number for number, grid in enumerate(grids)}
        self.stated_mpp = slide.stated_mpp
        self.background_rgb = slide.background_rgb
        self.associated_images = slide.associated_images
        gaps = () if slide.vendor == PHILIPS else self._describe_gaps()
        self.warnings = (*slide.warnings, *gaps)
        self.levels = self._make_levels()

    def close(self) -> None:
        """Close the file and release cached blocks."""
        super().close()
        self._slide.close()

    def _describe_gaps(self) -> Iterator[str]:
        """Sentences on missing blocks, by level."""
        for level, grid in enumerate(self._grids):
            if grid.stored is not None:
                n_blocks = grid.rows * grid.columns
                yield (
                    f"{n_blocks - len(grid.stored):,} of {n_blocks:,} {self._block_noun}s of level "
                    f"{level} are not stored"
                )

    def _is_stored(self, level: int, row: int, column: int) -> bool:
        stored = self._grids[level].stored
        return stored is None or (row, column) in stored

    def _decode(self, level: int, row: int, column: int) -> RgbArray | None:
        if not self._is_stored(level, row, column):
            return None
        grid = self._grids[level]
        x_px, y_px = column * grid.block_width_px, row * grid.block_height_px
        return self._slide.read(
            level=self._numbers[grid], x_px=x_px, y_px=y_px,
            width_px=min(grid.block_width_px, grid.width_px - x_px),
            height_px=min(grid.block_height_px, grid.height_px - y_px),
        )  # fmt: skip
