"""``mil embed --series``: images that a table or a folder lists into bags."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cli.console import finish_on_interrupt, progress_bar, spinner
from cli.shared.arguments import select_shard
from cli.shared.embed_progress import EmbedProgressBars, report_outcomes
from cli.shared.executors import EmbedOptions, images_expected, open_executor
from features.utils.hardware import CPU_COUNT

__all__ = ["embed_series_command"]


def embed_series_command(
    table: Path,
    bags_dir: Path,
    *,
    work: EmbedOptions,
    windows: str,
    tile_px: int,
    max_failed: float | None,
    shard: str | None,
) -> None:
    """Embed what a table or folder lists, as the options of ``mil embed`` say."""
    with spinner("reading the table"):
        from features.series.manifest import read_series
        from features.series.windowing import parse_windows

        specs = select_shard(list(read_series(table)), shard)
        channels = parse_windows(windows)
    with spinner("loading torch"):
        from features.series.config import SeriesConfig, fingerprint_of_series
        from features.series.pipeline import embed_series_by

    settings = SeriesConfig(
        side_px=tile_px, windows=channels, batch_images=work.batch,
        n_workers=work.workers or CPU_COUNT,
        max_failed=SeriesConfig.max_failed if max_failed is None else max_failed,
    )  # fmt: skip
    plan = work.plan(
        bags_dir,
        n_tiles_expected=images_expected(specs),
        fingerprint=partial(fingerprint_of_series, settings=settings),
    )
    with (
        open_executor(plan, engine=work.engine, address=work.address) as embedders,
        progress_bar("images") as bars,
        finish_on_interrupt() as stop,
    ):
        outcomes = embed_series_by(
            embedders, specs, bags_dir, settings=settings, overwrite=work.overwrite,
            progress=EmbedProgressBars(bars, n_slides=len(specs), what="series"), stop=stop,
        )  # fmt: skip
    report_outcomes(
        outcomes, bags_dir, n_asked_for=len(specs), stopped=stop.is_set(), as_json=work.as_json,
        words=("series", "images"),
    )  # fmt: skip
