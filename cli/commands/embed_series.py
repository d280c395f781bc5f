"""``mil embed --series``: image series into bags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.console import spinner
from cli.shared.arguments import select_shard
from cli.shared.embed_progress import report_results
from cli.shared.executors import embed_with_progress

__all__ = ["embed_series_command"]


def embed_series_command(
    table: Path, bags_dir: Path, *, windows: str, shard: str | None, as_json: bool, **options: Any
) -> None:
    """Embed the series of a table or folder; ``options`` are fields of ``SeriesConfig``."""
    from features.series.config import SeriesConfig
    from features.series.pipeline import embed_series, expected_images

    with spinner("reading the table"):
        from features.series.manifest import read_series
        from features.series.series import files_passed_over
        from features.series.windowing import parse_windows

        specs = select_shard(list(read_series(table)), shard)
        channels = parse_windows(windows)
        passed_over = files_passed_over(table, specs)
    units = ("series", "images")
    results, stopped = embed_with_progress(
        embed_series, specs, bags_dir, SeriesConfig(windows=channels, **options),
        bag_ids=[spec.bag_id for spec in specs], n_tiles_expected=expected_images(specs),
        units=units,
    )  # fmt: skip
    report_results(
        results, bags_dir, n_requested=len(specs), stopped=stopped, as_json=as_json, units=units,
        passed_over=passed_over, n_unread=sum(why.is_slide for why in passed_over.values()),
    )  # fmt: skip
