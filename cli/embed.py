"""``mil embed``: slides into bags."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.progress import Progress
from rich.table import Table

from cli.console import (
    EXIT_INTERRUPTED,
    EXIT_KNOWN_ERROR,
    EXIT_PARTLY_FAILED,
    finish_on_interrupt,
    notes,
    print_json,
    progress_bar,
    results,
    step,
)
from cli.dry_run import print_estimate
from cli.loading import load_encoder_for
from cli.options import (
    BagsDir,
    Batch,
    Device,
    Execution,
    JsonOutput,
    MaxTiles,
    MinTissue,
    MppTable,
    Overlap,
    Rules,
    SlideMpp,
    SlidePaths,
    TargetMpp,
    TilePx,
    Weights,
    Workers,
    given_mpp_of,
    part_of,
    require_one_resolution,
    slides_of,
    tile_settings,
)
from features.cores import N_CORES

if TYPE_CHECKING:
    from features.outcomes import SlideOutcome

__all__ = ["Ended", "SlideBars", "embed", "print_failures"]


def embed(
    *,
    paths: SlidePaths,
    bags: BagsDir = Path("bags"),
    backbone: Annotated[
        str,
        typer.Option(
            help="Any timm model, or several joined by `+`; the default needs no network."
        ),
    ] = "tf_efficientnet_lite0",
    weights: Weights = None,
    mpp: TargetMpp = 0.5,
    tile_px: TilePx = 224,
    overlap: Overlap = 0,
    min_tissue: MinTissue = 0.3,
    max_tiles: MaxTiles = None,
    rules: Rules = "all",
    slide_mpp: SlideMpp = None,
    mpp_table: MppTable = None,
    max_failed: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of a slide's tiles that may fail to decode."),
    ] = 0.05,
    shard: Annotated[
        str | None, typer.Option(help="Part I of N of the slides, e.g. `2/8`, for job arrays.")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(help="Folder for one picture a slide and a page of them all.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count tiles, gigabytes and hours; write nothing.")
    ] = False,
    device: Device = "auto",
    execution: Execution = "auto",
    workers: Workers = N_CORES,
    batch: Batch = 64,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Embed slides again that have a bag.")
    ] = False,
    as_json: JsonOutput = False,
) -> None:
    """Find tissue on slides, cut tiles, run a frozen backbone over them, write one bag a slide.

    Finished slides are skipped, so the same command goes on where it was stopped. A slide that
    fails does not stop the others; `embed.csv` in the folder of bags says what became of each.
    Ctrl-C finishes the slides in work, a second one stops at once. Several processes, also on
    several machines, may run the same command on one folder and share the work.

    A slide's own resolution is used where it is plausible (0.05 to 20 µm/px), else `--slide-mpp`
    or `--mpp-table`, else 0.25 µm/px is assumed, and the summary says so.

    Tiles of pen ink, black fill, coverslip edges, folds and blur are left out and counted;
    `--rules none` keeps them.

    Example: `mil embed slides/ --bags bags --mpp 0.5`

    Example: `mil embed slides/ --dry-run`

    Exit codes: 0 all done, 1 nothing could be done, 2 usage, 3 some slides failed.
    """
    tiles = tile_settings(
        mpp=mpp, tile_px=tile_px, overlap=overlap, min_tissue=min_tissue, max_tiles=max_tiles,
        rules=rules,
    )  # fmt: skip
    require_one_resolution(slide_mpp=slide_mpp, mpp_table=mpp_table)
    slides = part_of(slides_of(paths), shard)
    given = given_mpp_of(slides, slide_mpp=slide_mpp, mpp_table=mpp_table)
    with step("loading the backbone"):
        from features.pipeline import embed_slides
        from features.preview import PreviewFolder
        from features.recipe import EmbedSettings
        from features.tissue import TissueSettings

        settings = EmbedSettings(
            tiles=tiles, tissue=TissueSettings(), batch_tiles=batch, n_workers=workers,
            max_failed=max_failed,
        )  # fmt: skip
        encoder = load_encoder_for(
            None if dry_run else bags, backbone, weights=weights, device=device, batch=batch,
            execution=execution, n_slides=len(slides),
        )  # fmt: skip
    if dry_run:
        print_estimate(slides, encoder, settings=settings, given_mpp=given, as_json=as_json)
        return
    with progress_bar("tiles") as bars, finish_on_interrupt() as stop:
        outcomes = embed_slides(
            slides,
            bags,
            encoder,
            settings=settings,
            given_mpp=given,
            overwrite=overwrite,
            progress=SlideBars(bars, n_slides=len(slides)),
            preview=None if preview is None else PreviewFolder(preview),
            stop=stop,
        )
    if as_json:
        print_json(_summary(outcomes, bags))
    else:
        _print_summary(outcomes, bags)
    print_failures(outcomes, bags)
    n_failed = sum(outcome.status == "failed" for outcome in outcomes)
    if stop.is_set():
        notes.print(
            f"stopped after {len(outcomes)} of {len(slides)} slides; the same command goes on"
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    if n_failed:
        raise typer.Exit(EXIT_KNOWN_ERROR if n_failed == len(outcomes) else EXIT_PARTLY_FAILED)


class Ended(Protocol):
    """What became of a slide, as far as the bars care."""

    @property
    def status(self) -> str:
        """``failed``, or anything else."""
        ...

    @property
    def message(self) -> str:
        """Why it failed."""
        ...


class SlideBars:
    """Two bars: slides done, and tiles done of all tiles found so far."""

    def __init__(self, bars: Progress, *, n_slides: int) -> None:
        self._bars = bars
        self._slides = bars.add_task("slides", total=n_slides)
        self._tiles = bars.add_task("tiles", total=0, visible=False)
        self._n_found = 0

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Make the bar of tiles longer."""
        self._n_found += n_tiles
        self._bars.update(self._tiles, total=self._n_found, visible=True, description=slide_id)

    def tiles_done(self, n_tiles: int) -> None:
        """Move it."""
        self._bars.advance(self._tiles, n_tiles)

    def slide_ended(self, outcome: Ended) -> None:
        """Move the bar of slides, and say at once when one failed."""
        self._bars.advance(self._slides)
        if outcome.status == "failed":
            self._bars.console.print(f"failed: {outcome.message}", style="yellow", markup=False)


def print_failures(outcomes: list[SlideOutcome], bags_dir: Path) -> None:
    """Say on standard error how many slides failed or are empty, and where to read more."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        notes.print(
            f"{len(failed)} of {len(outcomes)} slides failed; see {bags_dir / 'embed.csv'}",
            style="bold yellow",
        )


def _summary(outcomes: list[SlideOutcome], bags_dir: Path) -> dict[str, object]:
    counts = Counter(outcome.status for outcome in outcomes)
    left_out: Counter[str] = Counter()
    for outcome in outcomes:
        left_out.update(outcome.left_out)
    return {
        "bags": str(bags_dir),
        "n_slides": len(outcomes),
        **{f"n_{status}": counts[status] for status in ("done", "empty", "skipped", "failed")},
        "n_tiles": sum(outcome.n_tiles for outcome in outcomes),
        "n_tiles_failed": sum(outcome.n_failed for outcome in outcomes),
        "n_tiles_left_out": dict(left_out),
        "mpp_sources": dict(Counter(o.mpp_source for o in outcomes if o.mpp_source)),
        "mpp": dict(_mpp_counts(outcomes)),
        "mpp_outliers": _mpp_outliers(outcomes),
        "failed": {o.slide_id: o.message for o in outcomes if o.status == "failed"},
    }


def _mpp_counts(outcomes: list[SlideOutcome]) -> list[tuple[str, int]]:
    """How many slides have which resolution, commonest first."""
    return Counter(f"{o.mpp:.3g}" for o in outcomes if o.mpp_source).most_common()


def _mpp_outliers(outcomes: list[SlideOutcome]) -> dict[str, float]:
    """Slides whose resolution is far from the others'."""
    from features.resolution import mpp_outliers

    known = {o.slide_id: o.mpp for o in outcomes if o.mpp_source}
    return {slide_id: known[slide_id] for slide_id in mpp_outliers(known)}


def _print_summary(outcomes: list[SlideOutcome], bags_dir: Path) -> None:
    summary = _summary(outcomes, bags_dir)
    table = Table(title=f"{summary['n_slides']} slides into {bags_dir}", title_justify="left")
    for name in ("embedded", "empty", "skipped", "failed", "tiles", "tiles failed"):
        table.add_column(name, justify="right")
    keys = ("n_done", "n_empty", "n_skipped", "n_failed", "n_tiles", "n_tiles_failed")
    table.add_row(*(f"{summary[key]:,}" for key in keys))
    results.print(table)
    left_out = summary["n_tiles_left_out"]
    if isinstance(left_out, dict) and left_out:
        told = ", ".join(f"{name} {count:,}" for name, count in sorted(left_out.items()))
        results.print(f"Tiles left out: {told} (--rules none keeps them).")
    told = ", ".join(f"{mpp} ({count})" for mpp, count in _mpp_counts(outcomes)[:6])
    if told:
        results.print(f"µm/px of the slides: {told}")
    if outliers := _mpp_outliers(outcomes):
        told = ", ".join(f"{name} {mpp:.3g}" for name, mpp in list(outliers.items())[:5])
        notes.print(
            f"warning: the resolution of {len(outliers)} slides is far from the others': {told}",
            style="yellow",
        )
    n_assumed = sum(outcome.mpp_source == "assumed" for outcome in outcomes)
    if n_assumed:
        results.print(
            f"{n_assumed} slides say nothing plausible about their resolution: 0.25 µm/px was "
            "assumed. If you know it, give --slide-mpp or --mpp-table."
        )
