"""A folder of pictures of slides, the numbers behind each, and one page to look through them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Protocol

from features.errors import MilError, OutputError, TileError
from features.slides.reader import slide_id_of
from features.tiling.grid import TileSettings
from features.tiling.slide_tiles import SlideTiles, iter_tiles, open_slide_tiles
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
    """Whoever wants to know how far one slide is."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Called when the tiles of a slide are known."""
        ...

    def tiles_done(self, n_tiles: int) -> None:
        """Called after some tiles."""
        ...


class PreviewWriter:
    """Pictures ``<slide_id>.jpg``, their numbers ``<slide_id>.json``, and ``index.html``.

    Every file is written whole or not at all, and the page is made of all numbers in the folder,
    so that slides of earlier runs stay on it.

    Parameters
    ----------
    folder
        Where to; made if missing.

    Raises
    ------
    OutputError
        If it cannot be made.
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
        survey: SlideTiles,
        *,
        left_out: Mapping[int, str],
        failed: Collection[int],
        tiles_read: bool = True,
    ) -> PreviewRow:
        """Draw a slide and keep its numbers.

        Parameters
        ----------
        survey
            The slide, open, and its tiles.
        left_out
            Rule that spoke against a tile, by its index into the grid.
        failed
            Indices into the grid of tiles that could not be decoded.
        tiles_read
            False where tiles were laid, but neither read nor judged.

        Raises
        ------
        SlideError
            If the slide can no longer be read.
        OutputError
            If a file cannot be written.
        """
        picture, picture_px = draw_tiling(
            survey, left_out=left_out, failed=failed, tiles_read=tiles_read
        )
        slide_id = slide_id_of(survey.slide.path)
        with atomic_write(self.folder / f"{slide_id}.jpg") as beside:
            # Thin coloured lines do not survive the usual halving of the colours.
            picture.save(beside, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        row = _row_of(survey, left_out, len(failed), picture_px=picture_px, tiles_read=tiles_read)
        self._write(row)
        self._drawn[slide_id] = row
        return row

    def add_failure(self, path: Path, message: str) -> PreviewRow:
        """Keep why a slide failed; its picture stays only if this run has drawn it.

        Raises
        ------
        OutputError
            If a file cannot be written.
        """
        slide_id = slide_id_of(path)
        drawn = self._drawn.get(slide_id)
        if drawn is None:
            picture_path = self.folder / f"{slide_id}.jpg"
            try:
                picture_path.unlink(missing_ok=True)
            except OSError as error:
                raise write_error(picture_path, error) from error
        known = {} if drawn is None else asdict(drawn)
        row = PreviewRow(**{
            **known, "slide_id": slide_id, "status": "failed", "message": " ".join(message.split()),
        })  # fmt: skip
        self._write(row)
        return row

    def rows(self) -> list[PreviewRow]:
        """Numbers of all slides in the folder, by name."""
        paths = sorted(path for path in self.folder.glob("*.json") if path.name[0] != ".")
        return [row for path in paths if (row := _read_row(path)) is not None]

    def write_index(self) -> Path:
        """Write the page over all slides in the folder.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        html = render_page(self.rows(), self.folder)
        with atomic_write(self.index_path) as beside:
            beside.write_text(html, encoding="utf-8", errors="replace")
        return self.index_path

    def _write(self, row: PreviewRow) -> None:
        content = {"kind": _KIND, "version": _VERSION, **asdict(row)}
        with atomic_write(self.folder / f"{row.slide_id}.json") as beside:
            beside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def preview_slide(
    path: Path,
    folder: PreviewWriter,
    *,
    tiles: TileSettings,
    tissue: TissueSettings,
    given_mpp: float | None,
    n_workers: int,
    progress: PreviewProgress,
) -> PreviewRow:
    """Find tissue and tiles of one slide, read and judge the tiles, and draw all of it.

    Whatever is wrong with the slide is kept in its row and raises nothing. Without rules no tile
    is read.

    Parameters
    ----------
    path
        The slide.
    folder
        Where its picture goes.
    tiles
        Size, resolution and choice of tiles.
    tissue
        How tissue is told from glass.
    given_mpp
        µm per level-0 px where the user knows better than the file; else None.
    n_workers
        Threads that decode.
    progress
        Told about tiles as they are done.

    Raises
    ------
    OutputError
        If a file cannot be written; an older picture of the slide then stays.
    """
    try:
        with open_slide_tiles(path, tiles=tiles, tissue=tissue, given_mpp=given_mpp) as survey:
            progress.slide_started(slide_id_of(path), survey.n_tiles)
            left_out: dict[int, str] = {}
            failed: set[int] = set()
            if tiles.rules:
                left_out, failed = _judge(survey, n_workers, progress)
            return folder.add(
                survey, left_out=left_out, failed=failed, tiles_read=bool(tiles.rules)
            )
    except OutputError:  # no fault of the slide
        raise
    except MilError as error:
        return folder.add_failure(path, str(error))
    except Exception as error:  # noqa: BLE001 - the one boundary: no slide may stop the others
        return folder.add_failure(path, f"{path}: unforeseen {type(error).__name__}: {error}")


def _judge(
    survey: SlideTiles, n_workers: int, progress: PreviewProgress
) -> tuple[dict[int, str], set[int]]:
    left_out: dict[int, str] = {}
    failed: set[int] = set()
    with ThreadPoolExecutor(n_workers, thread_name_prefix="decode") as pool:
        for index, tile in iter_tiles(
            pool, survey.slide, survey.grid, survey.judge, n_ahead=_TILES_AHEAD
        ):
            if isinstance(tile, TileError):
                failed.add(index)
            elif isinstance(tile, str):
                left_out[index] = tile
            progress.tiles_done(1)
    return left_out, failed


def _row_of(
    survey: SlideTiles,
    left_out: Mapping[int, str],
    n_failed: int,
    *,
    picture_px: tuple[int, int],
    tiles_read: bool,
) -> PreviewRow:
    slide, resolution = survey.slide, survey.resolution
    n_tiles = survey.n_tiles
    n_kept = n_tiles - len(left_out) - n_failed
    message = "" if n_kept else "all tiles left out" if n_tiles else "no tissue found"
    return PreviewRow(
        slide_id=slide_id_of(slide.path),
        status="done" if n_kept else "empty",
        picture_px=picture_px,
        width_px0=slide.levels[0].width_px,
        height_px0=slide.levels[0].height_px,
        mpp_x=resolution.mpp_x,
        mpp_y=resolution.mpp_y,
        mpp_source=resolution.source,
        reader=slide.reader,
        glass_rgb=survey.tissue.background_rgb,
        tissue_share=float(survey.tissue.mask.mean()),
        min_tissue_used=survey.grid.min_tissue_used,
        n_found=survey.n_found,
        n_read=n_tiles if tiles_read else 0,
        n_kept=n_kept,
        left_out=dict(Counter(left_out.values())),
        n_failed=n_failed,
        message=message,
    )


def _read_row(path: Path) -> PreviewRow | None:
    """Numbers in a file; None if it is none of ours, or of another version."""
    try:
        content = json.loads(path.read_text())
    except (OSError, RecursionError, ValueError):
        return None
    if not isinstance(content, dict) or content.pop("kind", None) != _KIND:
        return None
    names = {part.name for part in fields(PreviewRow)}
    if content.pop("version", None) != _VERSION or set(content) != names:
        return None
    for name in ("picture_px", "glass_rgb"):
        content[name] = content[name] and tuple(content[name])
    return PreviewRow(**content)
