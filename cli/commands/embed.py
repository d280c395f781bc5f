"""``mil embed``: slides into bags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.commands.embed_series import embed_series_command
from cli.console import finish_on_interrupt, print_json, progress_bar, spinner, stderr, stdout
from cli.options import (
    TILES,
    Address,
    Backbone,
    BagsDir,
    Batch,
    Devices,
    EngineChoice,
    EngineName,
    Execution,
    FilterFile,
    JsonOutput,
    MaxTiles,
    MinTissue,
    MppTable,
    Overlap,
    Rules,
    SlideMpp,
    TargetMpp,
    TilePx,
    Weights,
    WorkersPerDevice,
    flag,
)
from cli.shared.arguments import (
    folder_for_bags,
    reject_options,
    require_one_resolution,
    require_ray_for_address,
    resolve_mpp_table,
    resolve_slides,
    select_shard,
    tile_settings,
)
from cli.shared.embed_progress import EmbedProgressBars, report_outcomes
from cli.shared.executors import (
    EXPECTED_TILES_PER_SLIDE,
    EmbedOptions,
    absolute_path,
    open_executor,
)
from features.utils.hardware import CPU_COUNT
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.embedding.config import EmbedConfig
    from features.encoders.encoder import Encoder
    from features.filters.classifier import TileFilter

__all__ = []


class StainNorm(StrEnum):
    """How stains are made alike."""

    none = "none"
    macenko = "macenko"


def embed(
    *,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SLIDES",
            help="Slides, folders of slides, URLs of OME-Zarr, or a CSV with `path`.",
        ),
    ] = None,
    series: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|FOLDER",
            help="Instead of slides: table with `bag_id`, `path` and perhaps `order`, one row an "
            "image; or a folder with one folder of DICOM or other images a bag.",
        ),
    ] = None,
    windows: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="With --series: what CT slices are looked at through, three of `brain`, "
            "`subdural`, `bone`, `soft` or `centre/width` in HU.",
        ),
    ] = "brain,subdural,soft",
    bags: BagsDir = Path("bags"),
    slide_mpp: SlideMpp = None,
    mpp_table: MppTable = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Part I of N of the slides, e.g. `2/8`, for job arrays."),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Draw one picture a slide and a page of them all."),
    ] = None,
    dry_run: Annotated[
        bool, flag("--dry-run", "Count tiles, gigabytes and hours; write nothing.")
    ] = False,
    overwrite: Annotated[bool, flag("--overwrite", "Embed slides again that have a bag.")] = False,
    as_json: JsonOutput = False,
    mpp: TargetMpp = 0.5,
    tile_px: TilePx = 224,
    overlap: Overlap = 0,
    min_tissue: MinTissue = 0.3,
    max_tiles: MaxTiles = None,
    rules: Rules = "all",
    tile_filter: FilterFile = None,
    stain_norm: Annotated[
        StainNorm,
        typer.Option(
            rich_help_panel=TILES,
            help="Bring two stains to one colour and strength on every slide: `macenko` (needs "
            "`mil-slides[stain]`); not for slides with three stains.",
        ),
    ] = StainNorm.none,
    views: Annotated[
        int,
        typer.Option(
            min=0,
            max=16,
            metavar="N",
            rich_help_panel=TILES,
            help="Augmented views of each tile besides the plain one; as many times the work more.",
        ),
    ] = 0,
    views_seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", rich_help_panel=TILES, help="Another seed draws other views."
        ),
    ] = 0,
    max_failed: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            rich_help_panel=TILES,
            show_default=False,
            help="Share of a slide's tiles, or a series' images, that may fail to decode; default: "
            "0.05 of tiles, 0.2 of images.",
        ),
    ] = None,
    backbone: Backbone = "tf_efficientnet_lite0",
    weights: Weights = None,
    execution: Execution = "auto",
    batch: Batch = 64,
    device: Devices = "auto",
    engine: EngineChoice = EngineName.local,
    address: Address = None,
    workers: WorkersPerDevice = None,
) -> None:
    """Find tissue on slides, cut tiles, run a frozen backbone over them, write one bag a slide.

    Finished slides are skipped, so the same command goes on where it was stopped. A slide that
    fails does not stop the others; `embed.csv` in the folder of bags says what became of each.
    Ctrl-C finishes the slides in work, a second one stops at once. Several processes, also on
    several machines, may run the same command on one folder and share the work.

    A slide's own resolution is used where it is plausible (0.05 to 20 µm/px), else `--slide-mpp`
    or `--mpp-table`, else 0.25 µm/px is assumed, and the summary says so.

    Tiles of pen ink, black fill, coverslip edges, folds and blur are left out and counted;
    `--rules none` keeps them. With `--filter`, so are tiles that a trained filter drops.

    With `--series`, images become bags instead: slices of a scan, pictures of a lesion, whatever
    carries one label together. DICOM slices are put in order and looked at through three windows;
    each image is scaled whole to `--tile-px`.

    Example: `mil embed slides/ --bags bags --mpp 0.5`

    Example: `mil embed slides/ --bags bags-views --views 4`

    Example: `mil embed slides/ --dry-run`

    Example: `mil embed --series scans.csv --bags bags`

    Exit codes: 0 all done, 1 nothing could be done, 2 usage, 3 some slides failed.
    """
    require_ray_for_address(engine, address)
    if (series is None) == (not paths):
        raise typer.BadParameter("give either slides or --series", param_hint="--series")
    if engine is EngineName.ray:  # whose machines have other working folders
        paths, bags = [absolute_path(path) for path in paths or []], absolute_path(bags)
        series = series and absolute_path(series)
    work = EmbedOptions(
        backbone=backbone, weights=weights, execution=execution, batch=batch, device=device,
        engine=engine, address=address, workers=workers, overwrite=overwrite, as_json=as_json,
    )  # fmt: skip
    if series is not None:
        reject_options(
            {"--preview": preview, "--dry-run": dry_run, "--slide-mpp": slide_mpp,
             "--mpp-table": mpp_table, "--max-tiles": max_tiles, "--overlap": overlap,
             "--filter": tile_filter, "--views": views,
             "--stain-norm": stain_norm is not StainNorm.none},
            "goes with slides, not with --series",
        )  # fmt: skip
        embed_series_command(
            series, bags, work=work, windows=windows, tile_px=tile_px, max_failed=max_failed,
            shard=shard,
        )  # fmt: skip
        return
    tiles = tile_settings(
        mpp=mpp, tile_px=tile_px, overlap=overlap, min_tissue=min_tissue, max_tiles=max_tiles,
        rules=rules,
    )  # fmt: skip
    require_one_resolution(slide_mpp=slide_mpp, mpp_table=mpp_table)
    folder_for_bags(bags)
    slides = select_shard(resolve_slides(paths or []), shard)
    given = resolve_mpp_table(slides, slide_mpp=slide_mpp, mpp_table=mpp_table)
    sieve = None if tile_filter is None else _read_filter(tile_filter, slides)
    with spinner("loading torch"):
        from features.embedding.config import EmbedConfig
        from features.tiling.augmentation import AugmentationConfig
        from features.tiling.tissue import TissueSettings

    settings = EmbedConfig(
        tiles=tiles, tissue=TissueSettings(), batch_tiles=batch, n_workers=workers or CPU_COUNT,
        max_failed=EmbedConfig.max_failed if max_failed is None else max_failed,
        tile_filter=sieve, stain_norm=stain_norm.value,
        views=AugmentationConfig(n_views=views, seed=views_seed),
    )  # fmt: skip
    if dry_run:
        _estimate(slides, work=work, settings=settings, given_mpp=given)
    else:
        _embed(slides, bags, work=work, settings=settings, given_mpp=given, preview=preview)


def _estimate(
    slides: list[Path], *, work: EmbedOptions, settings: EmbedConfig, given_mpp: Mapping[str, float]
) -> None:
    """Print what embedding would take, on the first of the devices."""
    from features.parallel.devices import parse_devices

    request = work.request(n_tiles_expected=len(slides) * EXPECTED_TILES_PER_SLIDE)
    with spinner("loading the backbone"):
        encoder = replace(request, device=parse_devices(work.device)[0]).load(None)
    print_estimate(slides, encoder, settings=settings, given_mpp=given_mpp, as_json=work.as_json)


def _embed(
    slides: list[Path],
    bags_dir: Path,
    *,
    work: EmbedOptions,
    settings: EmbedConfig,
    given_mpp: Mapping[str, float],
    preview: Path | None,
) -> None:
    """Embed under progress bars and tell what became of each slide."""
    from features.embedding.config import make_fingerprint
    from features.embedding.pipeline import embed_slides_by
    from features.visualization.preview import PreviewWriter

    plan = work.plan(
        bags_dir,
        n_tiles_expected=len(slides) * EXPECTED_TILES_PER_SLIDE,
        fingerprint=partial(make_fingerprint, settings=settings),
    )
    with (
        open_executor(plan, engine=work.engine, address=work.address) as embedders,
        progress_bar("tiles") as bars,
        finish_on_interrupt() as stop,
    ):
        outcomes = embed_slides_by(
            embedders,
            slides,
            bags_dir,
            settings=settings,
            given_mpp=given_mpp,
            overwrite=work.overwrite,
            progress=EmbedProgressBars(bars, n_slides=len(slides)),
            preview=None if preview is None else PreviewWriter(absolute_path(preview)),
            stop=stop,
        )
    report_outcomes(
        outcomes, bags_dir, n_asked_for=len(slides), stopped=stop.is_set(), as_json=work.as_json
    )


def _read_filter(path: Path, slides: list[Path]) -> TileFilter:
    """The filter of a file, with a word of warning where it learned from these very slides."""
    from features.filters.classifier import read_filter
    from features.slides.reader import slide_id_of

    tile_filter = read_filter(path)
    seen = {slide.slide_id for slide in tile_filter.examples.slides}
    if n_seen := len(seen.intersection(map(slide_id_of, slides))):
        stderr.print(
            f"warning: the filter learned from {n_seen} of these slides: 'mil train' will refuse "
            "bags made with it. Embed without --filter and give it to 'mil train --filter', which "
            "fits it again in each fold.",
            style="yellow",
        )
    return tile_filter


def print_estimate(
    slides: list[Path],
    encoder: Encoder,
    *,
    settings: EmbedConfig,
    given_mpp: Mapping[str, float],
    as_json: bool,
) -> None:
    """Survey the slides and print tiles, gigabytes and hours; writes nothing."""
    from features.embedding.estimate import estimate_embedding

    with progress_bar("slides") as bars:
        task = bars.add_task("finding tissue", total=len(slides))
        found = estimate_embedding(
            slides, encoder, settings=settings, given_mpp=given_mpp,
            on_slide=lambda: bars.advance(task),
        )  # fmt: skip
    if as_json:
        print_json(asdict(found))
        return
    title = f"{pluralize(found.n_slides, 'slides')}, nothing written"
    table = Table(title=title, title_justify="left")
    for name in ("tiles", "bags", "decoding", "backbone", "finding tissue", "in all"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{found.n_tiles:,}", f"{found.bag_gb:,.3g} GB", f"{found.decode_tiles_per_s:,.0f} tiles/s",
        f"{found.backbone_tiles_per_s:,.0f} tiles/s", f"{found.survey_s:,.0f} s",
        _duration(found.hours),
    )  # fmt: skip
    stdout.print(table)
    stdout.print("Hours are for this machine and these options; rules may leave tiles out.")
    for message in found.failures.values():
        stderr.print(f"failed: {message}", style="yellow")


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
