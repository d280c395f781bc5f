"""``mil embed``: slides into bags."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from cli.console import (
    EXIT_KNOWN_ERROR,
    EXIT_PARTLY_FAILED,
    notes,
    print_json,
    progress_bar,
    results,
    step,
)
from cli.options import BagsDir, Batch, Device, JsonOutput, Workers
from features.cores import N_CORES

if TYPE_CHECKING:
    from features.pipeline import SlideOutcome

__all__ = ["SlideBars", "embed", "print_failures"]


def embed(
    *,
    paths: Annotated[
        list[Path],
        typer.Argument(help="Slides, folders of slides, or a CSV with a column `path`."),
    ],
    bags: BagsDir = Path("bags"),
    backbone: Annotated[
        str, typer.Option(help="Any timm model; the default needs no network.")
    ] = "tf_efficientnet_lite0",
    weights: Annotated[
        Path | None,
        typer.Option(help="Local checkpoint of the backbone (safetensors or torch)."),
    ] = None,
    mpp: Annotated[
        float, typer.Option(min=0.05, max=50, help="Resolution of a tile, µm per px.")
    ] = 0.5,
    tile_px: Annotated[int, typer.Option(min=16, max=4096, help="Side of a tile, px.")] = 224,
    overlap: Annotated[int, typer.Option(min=0, help="Overlap of neighbouring tiles, px.")] = 0,
    min_tissue: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of a tile that is tissue.")
    ] = 0.3,
    slide_mpp: Annotated[
        float | None,
        typer.Option(help="µm per level-0 px of all these slides, where the files are wrong."),
    ] = None,
    mpp_table: Annotated[
        Path | None, typer.Option(help="CSV with `slide_id` and `mpp`, for single slides.")
    ] = None,
    device: Device = "auto",
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

    A slide's own resolution is used where it is plausible (0.05 to 20 µm/px), else `--slide-mpp`
    or `--mpp-table`, else 0.25 µm/px is assumed, and the summary says so.

    Example: `mil embed slides/ --bags bags --mpp 0.5`

    Exit codes: 0 all done, 1 nothing could be done, 2 usage, 3 some slides failed.
    """
    if slide_mpp is not None and mpp_table is not None:
        raise typer.BadParameter("give either --slide-mpp or --mpp-table", param_hint="--mpp-table")
    if overlap >= tile_px:
        raise typer.BadParameter(
            f"{overlap} px is not less than the tile's {tile_px} px", param_hint="--overlap"
        )
    with step("loading the backbone"):
        from features.encoders import load_encoder
        from features.engines import choose_device
        from features.pipeline import EmbedSettings, embed_slides, read_mpp_table
        from features.slides.opening import slide_id_of
        from features.tiles import TileSettings
        from features.tissue import TissueSettings

        settings = EmbedSettings(
            tiles=TileSettings(
                tile_px=tile_px, target_mpp=mpp, overlap_px=overlap, min_tissue=min_tissue
            ),
            tissue=TissueSettings(),
            batch_tiles=batch,
            n_workers=workers,
        )
        slides = _gather(paths)
        given = {slide_id_of(p): slide_mpp for p in slides} if slide_mpp is not None else {}
        if mpp_table is not None:
            given = read_mpp_table(mpp_table)
        encoder = load_encoder(backbone, weights_path=weights, device=choose_device(device))
    with progress_bar("tiles") as bars:
        outcomes = embed_slides(
            slides,
            bags,
            encoder,
            settings=settings,
            given_mpp=given,
            overwrite=overwrite,
            progress=SlideBars(bars, n_slides=len(slides)),
        )
    if as_json:
        print_json(_summary(outcomes, bags))
    else:
        _print_summary(outcomes, bags)
    print_failures(outcomes, bags)
    n_failed = sum(outcome.status == "failed" for outcome in outcomes)
    if n_failed:
        raise typer.Exit(EXIT_KNOWN_ERROR if n_failed == len(outcomes) else EXIT_PARTLY_FAILED)


class SlideBars:
    """Two bars: slides done, and tiles done of the slide in work."""

    def __init__(self, bars: Progress, *, n_slides: int) -> None:
        self._bars = bars
        self._slides = bars.add_task("slides", total=n_slides)
        self._tiles = bars.add_task("", total=None, visible=False)

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Show the bar of one slide's tiles."""
        self._bars.reset(self._tiles, description=slide_id, total=n_tiles, visible=True)

    def tiles_done(self, n_tiles: int) -> None:
        """Move it."""
        self._bars.advance(self._tiles, n_tiles)

    def slide_ended(self, outcome: SlideOutcome) -> None:
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


def _gather(paths: list[Path]) -> list[Path]:
    """Slides named by files, folders and CSV tables."""
    from features.pipeline import read_slide_table
    from features.slides.opening import find_slides

    listed = [slide for p in paths if p.suffix == ".csv" for slide in read_slide_table(p)]
    found = find_slides([p for p in paths if p.suffix != ".csv"])
    return sorted(dict.fromkeys([*listed, *found]))


def _summary(outcomes: list[SlideOutcome], bags_dir: Path) -> dict[str, object]:
    counts = Counter(outcome.status for outcome in outcomes)
    return {
        "bags": str(bags_dir),
        "n_slides": len(outcomes),
        **{f"n_{status}": counts[status] for status in ("done", "empty", "skipped", "failed")},
        "n_tiles": sum(outcome.n_tiles for outcome in outcomes),
        "n_tiles_failed": sum(outcome.n_failed for outcome in outcomes),
        "mpp_sources": dict(Counter(o.mpp_source for o in outcomes if o.mpp_source)),
        "failed": {o.slide_id: o.message for o in outcomes if o.status == "failed"},
    }


def _print_summary(outcomes: list[SlideOutcome], bags_dir: Path) -> None:
    summary = _summary(outcomes, bags_dir)
    table = Table(title=f"{summary['n_slides']} slides into {bags_dir}", title_justify="left")
    for name in ("embedded", "empty", "skipped", "failed", "tiles", "tiles failed"):
        table.add_column(name, justify="right")
    keys = ("n_done", "n_empty", "n_skipped", "n_failed", "n_tiles", "n_tiles_failed")
    table.add_row(*(f"{summary[key]:,}" for key in keys))
    results.print(table)
    n_assumed = sum(outcome.mpp_source == "assumed" for outcome in outcomes)
    if n_assumed:
        results.print(
            f"{n_assumed} slides say nothing plausible about their resolution: 0.25 µm/px was "
            "assumed. If you know it, give --slide-mpp or --mpp-table."
        )
