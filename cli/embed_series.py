"""``mil embed --series``: images that a table or a folder lists into bags."""

from __future__ import annotations

from pathlib import Path

from cli.console import finish_on_interrupt, progress_bar, step
from cli.embedded import SlideBars, report_outcomes
from cli.loading import load_encoder_for
from cli.options import part_of

__all__ = ["embed_table"]

_MAX_FAILED = 0.2
_IMAGES_A_SERIES = 40


def embed_table(
    table: Path,
    bags_dir: Path,
    *,
    backbone: str,
    weights: list[Path] | None,
    windows: str,
    tile_px: int,
    max_failed: float | None,
    shard: str | None,
    device: str,
    execution: str,
    workers: int,
    batch: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Embed what a table or folder lists, as the options of ``mil embed`` say."""
    with step("reading the table"):
        from features.series.table import read_series
        from features.series.windows import parse_windows

        specs = part_of(list(read_series(table)), shard)
        channels = parse_windows(windows)
    with step("loading the backbone"):
        from features.series.embedding import embed_series
        from features.series.recipe import SeriesSettings

        settings = SeriesSettings(
            side_px=tile_px, windows=channels, batch_images=batch, n_workers=workers,
            max_failed=_MAX_FAILED if max_failed is None else max_failed,
        )  # fmt: skip
        n_images = sum(max(_IMAGES_A_SERIES, len(spec.listed)) for spec in specs)
        encoder = load_encoder_for(
            bags_dir, backbone, weights=weights, device=device, batch=batch,
            execution=execution, n_tiles_expected=n_images,
        )  # fmt: skip
    with progress_bar("images") as bars, finish_on_interrupt() as stop:
        outcomes = embed_series(
            specs, bags_dir, encoder, settings=settings, overwrite=overwrite,
            progress=SlideBars(bars, n_slides=len(specs), what="series"), stop=stop,
        )  # fmt: skip
    report_outcomes(
        outcomes, bags_dir, n_asked_for=len(specs), stopped=stop.is_set(), as_json=as_json,
        words=("series", "images"),
    )  # fmt: skip
