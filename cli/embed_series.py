"""``mil embed --series``: images that a table or a folder lists into bags."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cli.console import finish_on_interrupt, progress_bar, step
from cli.embedded import SlideBars, report_outcomes
from cli.engines import running
from cli.loading import request_encoder
from cli.options import EngineName, part_of
from features.cores import N_CORES

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
    engine: EngineName,
    address: str | None,
    execution: str,
    workers: int | None,
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
    with step("loading torch"):
        from features.plan import EmbedderPlan
        from features.series.embedding import embed_series_by
        from features.series.recipe import SeriesSettings, fingerprint_of_series

    settings = SeriesSettings(
        side_px=tile_px, windows=channels, batch_images=batch, n_workers=workers or N_CORES,
        max_failed=_MAX_FAILED if max_failed is None else max_failed,
    )  # fmt: skip
    request = request_encoder(
        backbone, weights=weights, device=device, batch=batch, execution=execution,
        n_tiles_expected=sum(max(_IMAGES_A_SERIES, len(spec.listed)) for spec in specs),
    )  # fmt: skip
    plan = EmbedderPlan(
        bags_dir=bags_dir, encoder=request, batch_tiles=batch, n_workers=workers,
        fingerprint=partial(fingerprint_of_series, settings=settings), overwrite=overwrite,
    )  # fmt: skip
    with (
        running(plan, engine=engine, address=address) as embedders,
        progress_bar("images") as bars,
        finish_on_interrupt() as stop,
    ):
        outcomes = embed_series_by(
            embedders, specs, bags_dir, settings=settings, overwrite=overwrite,
            progress=SlideBars(bars, n_slides=len(specs), what="series"), stop=stop,
        )  # fmt: skip
    report_outcomes(
        outcomes, bags_dir, n_asked_for=len(specs), stopped=stop.is_set(), as_json=as_json,
        words=("series", "images"),
    )  # fmt: skip
