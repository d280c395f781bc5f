"""Folder of slide previews: an image and its numbers per slide, and one page over all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Protocol

from features.errors import CONTENT_ERRORS, MilError, OutputError, TileError, one_line
from features.slides.reader import slide_id_of
from features.tiling.grid import TileSettings
from features.tiling.slide_tiles import SlideTiles, open_slide_tiles
from features.tiling.tissue import TissueSettings
from features.utils.files import atomic_write, make_folder, write_error
from features.visualization.preview_page import PreviewRow, render_page
from features.visualization.thumbnail import draw_tiling

__all__ = ["PreviewProgress", "PreviewWriter", "preview_slide"]

_KIND = "mil preview"
_VERSION = 1
_JPEG_QUALITY = 88
_TILES_AHEAD = 64


class PreviewProgress(Protocol):
    """Receiver of the progress of one slide."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Handle the start of a slide with so many tiles."""

    def tiles_done(self, n_tiles: int) -> None:
        """Handle that ``n_tiles`` more tiles are done."""


class PreviewWriter:
    """Writer of ``<slide_id>.jpg``, ``<slide_id>.json`` and ``index.html`` into a folder.

    Every file is written whole or not at all. The page shows all slides of the folder, also those
    of earlier runs. Raises OutputError if the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder)
        self._drawn: dict[str, PreviewRow] = {}

    @property
    def index_path(self) -> Path:
        """The page."""
        return self.folder / "index.html"

    def add(
        self,
        slide_tiles: SlideTiles,
        *,
        rejected: Mapping[int, str],
        failed: Collection[int],
        tiles_read: bool = True,
    ) -> PreviewRow:
        """Draw a slide, and write its image and numbers.

        ``rejected`` are names of rules by index into the grid, ``failed`` indices of tiles whose
        pixels could not be decoded; ``tiles_read`` is False where none were read. Raises SlideError
        if the slide can no longer be read, OutputError if a file cannot be written.
        """
        picture, picture_px = draw_tiling(
            slide_tiles, rejected=rejected, failed=failed, tiles_read=tiles_read
        )
        slide_id = slide_tiles.slide_id
        with atomic_write(self.folder / f"{slide_id}.jpg") as temporary:
            # Thin coloured lines do not survive chroma subsampling.
            picture.save(temporary, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        row = _row_of(
            slide_tiles, rejected, len(failed), picture_px=picture_px, tiles_read=tiles_read
        )
        self._write(row)
        self._drawn[slide_id] = row
        return row

    def add_failure(self, slide_id: str, message: str) -> PreviewRow:
        """Record the error of a slide; its image stays only if this run has drawn it.

        Raises OutputError if a file cannot be written.
        """
        drawn = self._drawn.get(slide_id)
        if drawn is None:
            picture_path = self.folder / f"{slide_id}.jpg"
            try:
                picture_path.unlink(missing_ok=True)
            except OSError as error:
                raise write_error(picture_path, error) from error
        known = {} if drawn is None else asdict(drawn)
        row = PreviewRow(**{
            **known, "slide_id": slide_id, "status": "failed", "message": one_line(message),
        })  # fmt: skip
        self._write(row)
        return row

    def rows(self) -> list[PreviewRow]:
        """Return sizes in px, mpp and counts of all slides in the folder, by name."""
        paths = sorted(path for path in self.folder.glob("*.json") if path.name[0] != ".")
        return [row for path in paths if (row := _read_row(path)) is not None]

    def write_index(self) -> Path:
        """Write the page over all slides in the folder.

        Raises OutputError if it cannot be written.
        """
        html = render_page(self.rows(), self.folder)
        with atomic_write(self.index_path) as temporary:
            temporary.write_text(html, encoding="utf-8", errors="replace")
        return self.index_path

    def _write(self, row: PreviewRow) -> None:
        content = {"kind": _KIND, "version": _VERSION, **asdict(row)}
        with atomic_write(self.folder / f"{row.slide_id}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def preview_slide(
    path: Path,
    writer: PreviewWriter,
    *,
    tiles: TileSettings,
    tissue: TissueSettings,
    given_mpp: float | None,
    scene: int | None = None,
    n_workers: int,
    progress: PreviewProgress,
) -> PreviewRow:
    """Segment the tissue of one slide, apply the artefact rules to its tiles, and draw both.

    An error of the slide is recorded in its row and not raised. Without rules, no tile is read.
    ``given_mpp`` are µm per level-0 px that replace the file's own, ``scene`` is which of the
    file's scenes is the slide, None for the largest; ``n_workers`` threads decode.
    Raises OutputError if a file cannot be written; an older image of the slide then stays.
    """
    try:
        with open_slide_tiles(
            path, tiles=tiles, tissue=tissue, given_mpp=given_mpp, scene=scene
        ) as slide_tiles:
            progress.slide_started(slide_tiles.slide_id, slide_tiles.n_tiles)
            rejected: dict[int, str] = {}
            failed: set[int] = set()
            if tiles.rules:
                rejected, failed = _read_tiles(slide_tiles, n_workers, progress)
            return writer.add(
                slide_tiles, rejected=rejected, failed=failed, tiles_read=bool(tiles.rules)
            )
    except OutputError:  # the cause is the folder, not the slide
        raise
    except MilError as error:
        return writer.add_failure(slide_id_of(path, scene), str(error))
    except Exception as error:  # noqa: BLE001 - the one boundary: no slide may stop the others
        text = f"{path}: unforeseen {type(error).__name__}: {one_line(str(error))}"
        return writer.add_failure(slide_id_of(path, scene), text)


def _read_tiles(
    slide_tiles: SlideTiles, n_workers: int, progress: PreviewProgress
) -> tuple[dict[int, str], set[int]]:
    rejected: dict[int, str] = {}
    failed: set[int] = set()
    with ThreadPoolExecutor(n_workers, thread_name_prefix="decode") as pool:
        for index, tile in slide_tiles.read_all(pool, n_ahead=_TILES_AHEAD):
            if isinstance(tile, TileError):
                failed.add(index)
            elif isinstance(tile, str):
                rejected[index] = tile
            progress.tiles_done(1)
    return rejected, failed


def _row_of(
    slide_tiles: SlideTiles,
    rejected: Mapping[int, str],
    n_failed: int,
    *,
    picture_px: tuple[int, int],
    tiles_read: bool,
) -> PreviewRow:
    slide, resolution = slide_tiles.slide, slide_tiles.resolution
    n_tiles = slide_tiles.n_tiles
    n_kept = n_tiles - len(rejected) - n_failed
    message = "" if n_kept else "all tiles left out" if n_tiles else "no tissue found"
    return PreviewRow(
        slide_id=slide_tiles.slide_id,
        status="done" if n_kept else "empty",
        picture_px=picture_px,
        width_px0=slide.levels[0].width_px,
        height_px0=slide.levels[0].height_px,
        mpp_x=resolution.mpp_x,
        mpp_y=resolution.mpp_y,
        mpp_source=resolution.source,
        reader=slide.reader,
        glass_rgb=slide_tiles.tissue.background_rgb,
        tissue_share=slide_tiles.tissue.share,
        min_tissue_used=slide_tiles.grid.min_tissue_used,
        n_found=slide_tiles.n_tissue_tiles,
        n_read=n_tiles if tiles_read else 0,
        n_kept=n_kept,
        left_out=dict(Counter(rejected.values())),
        n_failed=n_failed,
        message=message,
    )


def _read_row(path: Path) -> PreviewRow | None:
    """Numbers in a file; None if the file is not a preview of this version."""
    try:
        content = json.loads(path.read_text())
    except CONTENT_ERRORS:
        return None
    if not isinstance(content, dict) or content.pop("kind", None) != _KIND:
        return None
    names = {part.name for part in fields(PreviewRow)}
    if content.pop("version", None) != _VERSION or set(content) != names:
        return None
    for name in ("picture_px", "glass_rgb"):
        content[name] = content[name] and tuple(content[name])
    return PreviewRow(**content)
