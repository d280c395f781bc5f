"""``mil embed``: slides into bags."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands.embed_series import embed_series_command
from cli.console import (
    EXIT_KNOWN_ERROR,
    EXIT_PARTLY_FAILED,
    in_thread,
    print_json,
    print_next,
    print_numbers,
    spinner,
    stdout,
    warn,
)
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
    ModelArgs,
    MppTable,
    Overlap,
    Rules,
    SceneNumber,
    SlideMpp,
    TargetMpp,
    TilePx,
    Tissue,
    TissueMethod,
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
from cli.shared.embed_profile import profile_seconds
from cli.shared.embed_progress import report_results
from cli.shared.executors import (
    absolute_path,
    checkpoint_paths,
    embed_with_progress,
    print_warning,
)
from cli.shared.output import print_failures
from cli.shared.passed_over import print_passed_over
from cli.shared.settings import (
    Assignments,
    ConfigFile,
    check_settings,
    config_fields,
    settings_text,
)
from features.utils.stage_times import StageTimes
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.embedding.config import EmbedConfig
    from features.embedding.estimate import Estimate
    from features.filters.classifier import TileFilter

__all__ = []

_STARTED_S = time.monotonic() - time.process_time()
"""Start of the program, nearly: until commands are imported, it does not wait."""


class StainNorm(StrEnum):
    """Stain normalisation of the slides."""

    none = "none"
    macenko = "macenko"


def embed(
    context: typer.Context,
    *,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATHS",
            help="Slides, folders of slides, URLs of OME-Zarr, or a CSV with `path`.",
        ),
    ] = None,
    series: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|FOLDER",
            help="Instead of slides: table with `bag_id`, `path` and optionally `order`, one row "
            "per image; or a folder with one folder of DICOM or other images per bag.",
        ),
    ] = None,
    windows: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="With --series: windows of CT slices, three of `brain`, `subdural`, `bone`, "
            "`soft` or `centre/width` in HU.",
        ),
    ] = "brain,subdural,soft",
    config_file: ConfigFile = None,
    assigned: Assignments = None,
    bags: BagsDir = Path("bags"),
    scene: SceneNumber = None,
    slide_mpp: SlideMpp = None,
    mpp_table: MppTable = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Part I of N of the slides, e.g. `2/8`, for job arrays."),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Draw an image of each slide and a page of them all."),
    ] = None,
    dry_run: Annotated[
        bool, flag("--dry-run", "Count tiles, gigabytes and hours; write nothing.")
    ] = False,
    overwrite: Annotated[bool, flag("--overwrite", "Embed slides again that have a bag.")] = False,
    profile: Annotated[
        bool, flag("--profile", "Print at the end where the time went, stage by stage.")
    ] = False,
    as_json: JsonOutput = False,
    mpp: TargetMpp = 0.5,
    tile_px: TilePx = 224,
    overlap: Overlap = 0,
    min_tissue: MinTissue = 0.3,
    tissue: Tissue = TissueMethod.contrast,
    max_tiles: MaxTiles = None,
    rules: Rules = "all",
    tile_filter: FilterFile = None,
    stain_norm: Annotated[
        StainNorm,
        typer.Option(
            rich_help_panel=TILES,
            help="Normalise colour and strength of two stains on every slide: `macenko` (needs "
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
            help="Augmented views of each tile, in addition to the plain one; each costs as much.",
        ),
    ] = 0,
    views_seed: Annotated[
        int,
        typer.Option(min=0, metavar="N", rich_help_panel=TILES, help="Seed of the views."),
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
    model_args: ModelArgs = None,
    execution: Execution = "auto",
    batch: Batch = 64,
    device: Devices = "auto",
    engine: EngineChoice = EngineName.local,
    address: Address = None,
    workers: WorkersPerDevice = None,
) -> None:
    """Find tissue on slides, cut tiles, embed them with a frozen backbone, write one bag per slide.

    Finished slides are skipped, so the same command continues where it was stopped. A slide that
    fails does not stop the others; `embed.csv` in the folder of bags has the result of each. Ctrl-C
    or SIGTERM finishes the slides in progress, a second one stops at once. Several processes, also
    on several machines, may run the same command on one folder and share the work.

    A slide's own resolution is used where it is plausible (0.05 to 20 µm/px), else `--slide-mpp`
    or `--mpp-table`, else 0.25 µm/px is assumed, with a note in the summary.

    Of a file with several scenes, such as two sections scanned on their own, the largest is
    embedded and the others are named in the summary; `--scene 2` embeds another, as a slide of its
    own whose id ends in `_scene2`.

    Tiles of pen ink, black fill, coverslip edges, folds and blur are left out and counted;
    `--rules none` keeps them. With `--filter`, so are tiles that a trained filter drops.

    With `--series`, images become bags instead: slices of a scan, photographs of a lesion, or any
    images that share a label. DICOM slices are sorted, and three windows make their colour
    channels; each image is scaled as a whole to `--tile-px`.

    Example: `mil embed slides/ --bags bags --mpp 0.5`

    Example: `mil embed slides/ --bags bags-uni --backbone uni`

    Example: `mil embed slides/ --bags bags-views --views 4`

    Example: `mil embed slides/ --dry-run`

    Example: `mil embed slides/ --config study.toml --set max_tiles=500`

    Example: `mil embed slides/ --bags bags --profile`

    Example: `mil embed --series scans.csv --bags bags`

    Exit codes: 0 all done, 1 nothing could be done, 2 usage, 3 some slides failed.
    """
    from features.encoders.names import parse_backbone
    from features.tiling.tissue import TissueSettings

    check_settings(context, config_file, assigned)
    mask = TissueSettings(method=tissue.value, **config_fields(context))
    require_ray_for_address(engine, address)
    if series is None and not paths:
        raise typer.BadParameter(
            "name slides or folders of slides, such as 'mil embed slides/'; or give --series",
            param_hint="PATHS",
        )
    if series is not None and paths:
        raise typer.BadParameter("give either PATHS or --series, not both", param_hint="--series")
    if engine is EngineName.ray:  # Machines of the cluster have other working directories.
        bags = absolute_path(bags)
    options: dict[str, Any] = {
        "encoder": parse_backbone(backbone, model_args or ()),
        "weights": checkpoint_paths(weights), "runtime": execution,
        "batch_tiles": batch, "device": device, "engine": engine.value, "address": address,
        "n_workers": workers, "overwrite": overwrite, "settings": settings_text(context, mask),
    } | ({} if max_failed is None else {"max_failed": max_failed})  # fmt: skip
    if series is not None:
        reject_options(
            {"--preview": preview, "--dry-run": dry_run, "--profile": profile, "--scene": scene,
             "--slide-mpp": slide_mpp,
             "--mpp-table": mpp_table, "--tissue": tissue is not TissueMethod.contrast,
             "--max-tiles": max_tiles, "--overlap": overlap,
             "--filter": tile_filter, "--views": views,
             "--stain-norm": stain_norm is not StainNorm.none},
            "goes with slides, not with --series",
        )  # fmt: skip
        embed_series_command(
            series, bags, windows=windows, shard=shard, as_json=as_json, side_px=tile_px, **options
        )
        return
    tiles = tile_settings(
        mpp=mpp, tile_px=tile_px, overlap=overlap, min_tissue=min_tissue, max_tiles=max_tiles,
        rules=rules,
    )  # fmt: skip
    require_one_resolution(slide_mpp=slide_mpp, mpp_table=mpp_table)
    folder_for_bags(bags)
    has_mpp = slide_mpp is not None or mpp_table is not None
    search = resolve_slides(paths or [], has_mpp=has_mpp)
    slides = select_shard(search.slides, shard)
    given_mpp = resolve_mpp_table(search.slides, slide_mpp=slide_mpp, mpp_table=mpp_table)
    read_filter = None if tile_filter is None else _read_filter(tile_filter, slides)
    from features.embedding.config import EmbedConfig
    from features.embedding.finished import skip_if_all_finished
    from features.slides.manifest import check_unique_ids
    from features.slides.reader import slide_id_of
    from features.tiling.augmentation import AugmentationConfig

    config = EmbedConfig(
        tiles=tiles, tissue=mask, tile_filter=read_filter,
        stain_norm=stain_norm.value,
        views=AugmentationConfig(n_views=views, seed=views_seed), **options,
    )  # fmt: skip
    by_id = {slide_id_of(path, scene): path for path in slides}
    if not dry_run and preview is None and not profile:
        finished = skip_if_all_finished(by_id, bags, config) if len(by_id) == len(slides) else None
        if finished is not None:
            report_results(
                finished, bags, n_requested=len(slides), stopped=False, as_json=as_json,
                passed_over=search.passed_over, n_unread=len(search.unread),
            )  # fmt: skip
            return
    if dry_run:
        check_unique_ids(slides, option="--bags", results_dir=bags)
        print_passed_over(search.passed_over)
        print_estimate(slides, config, bags, given_mpp=given_mpp, scene=scene, as_json=as_json)
        if search.unread:
            raise typer.Exit(EXIT_PARTLY_FAILED)
        return
    from features.embedding.pipeline import embed_slides
    from features.visualization.preview import PreviewWriter

    n_tiles_expected = expected_tiles(slides, config, bags, given_mpp=given_mpp, scene=scene)
    times = StageTimes() if profile else None
    results, stopped = embed_with_progress(
        embed_slides, slides, bags, config, bag_ids=list(by_id),
        n_tiles_expected=n_tiles_expected, units=("slides", "tiles"), given_mpp=given_mpp,
        scene=scene,
        preview=None if preview is None else PreviewWriter(preview.absolute()), times=times,
    )  # fmt: skip
    report_results(results, bags, n_requested=len(slides), stopped=stopped, as_json=as_json,
        passed_over=search.passed_over, n_unread=len(search.unread),
        profile=None if times is None else profile_seconds(times, command_s=_STARTED_S),
    )  # fmt: skip


def _read_filter(path: Path, slides: list[Path]) -> TileFilter:
    """Read a tile filter, with a warning if it was trained on these slides."""
    from features.filters.classifier import read_filter
    from features.slides.reader import slide_id_of

    tile_filter = read_filter(path)
    trained_on = {slide.slide_id for slide in tile_filter.examples.slides}
    if n_trained_on := len(trained_on.intersection(map(slide_id_of, slides))):
        warn(
            f"warning: the filter was trained on {n_trained_on} of these slides: 'mil train' will "
            "refuse bags made with it. Embed without --filter and give it to 'mil train --filter', "
            "which fits it again in each fold."
        )
    return tile_filter


def expected_tiles(
    slides: list[Path],
    config: EmbedConfig,
    bags: Path,
    *,
    given_mpp: Mapping[str, float],
    scene: int | None,
) -> int:
    """Return the number of tiles on which the choice of a runtime depends, from a few slides.

    They are not looked at where the choice is known, or follows from ``max_tiles``.
    """
    from features.embedding.pipeline import TILES_PER_SLIDE
    from features.embedding.slide_sample import sample_slides
    from features.embedding.sources import slide_sources
    from features.encoders.config import recorded_runtime
    from features.encoders.exported import KnownExport

    if config.runtime != "auto" or recorded_runtime(bags) is not None:  # nothing is chosen
        return len(slides) * TILES_PER_SLIDE
    most = config.tiles.max_tiles and config.tiles.max_tiles * len(slides)
    if isinstance(config.encoder, str) and KnownExport.find(
        config.encoder, config.weights, device=config.device, execution="auto",
        batch_tiles=config.batch_tiles, n_tiles=most,
    ):  # fmt: skip
        return most or len(slides) * TILES_PER_SLIDE
    with spinner("looking at a few slides"):
        sources = slide_sources(slides, config, given_mpp=given_mpp, scene=scene)
        sample = in_thread(lambda: sample_slides(sources, on_warning=print_warning))
    return sample.n_tiles


def print_estimate(
    slides: list[Path],
    config: EmbedConfig,
    bags: Path,
    *,
    given_mpp: Mapping[str, float],
    scene: int | None,
    as_json: bool,
) -> None:
    """Print tiles, gigabytes and hours of a run on the first of its devices; writes nothing."""
    from features.bags.h5 import find_bags
    from features.embedding.estimate import estimate_embedding
    from features.embedding.finished import check_finished_bag
    from features.embedding.sources import slide_sources
    from features.encoders.config import recorded_runtime

    if config.device not in ("auto", "cpu"):
        from features.parallel.devices import parse_devices

        config = replace(config, device=parse_devices(config.device)[0])
    finished = (
        set() if config.overwrite or not bags.is_dir() else set(find_bags(bags, may_be_empty=True))
    )
    sources = slide_sources(slides, config, given_mpp=given_mpp, scene=scene)
    left = [source for source in sources if source.bag_id not in finished]
    n_finished = len(slides) - len(left)
    check_finished_bag(finished.intersection(s.bag_id for s in sources), bags, config)
    if not left:
        if as_json:
            print_json({"n_slides": 0, "n_tiles": 0, "hours": 0.0, "n_finished": n_finished})
        else:
            stdout.print(f"All {pluralize(n_finished, 'slides')} have a bag in {bags}.")
        return
    with spinner("timing a few tiles"):
        estimate = in_thread(
            lambda: estimate_embedding(
                left, config, started_s=_STARTED_S, recorded=recorded_runtime(bags),
                on_warning=print_warning,
            )
        )  # fmt: skip
    if as_json:
        summary = asdict(estimate)
        summary["survey_s"] = summary.pop("segmentation_s")  # The key of earlier versions.
        print_json({**summary, "n_finished": n_finished})
    else:
        print_failures(estimate.failures.values(), estimate.n_sampled)
    if len(estimate.failures) == estimate.n_sampled:
        raise typer.Exit(EXIT_KNOWN_ERROR)
    if not as_json:
        _print_estimate(estimate, bags, n_finished=n_finished, n_left=len(left))
    if estimate.failures:
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _print_estimate(estimate: Estimate, bags: Path, *, n_finished: int, n_left: int) -> None:
    title = f"{pluralize(estimate.n_slides, 'slides')}, nothing written"
    cells = {
        "tiles": f"{estimate.n_tiles:,}",
        "bags": f"{estimate.bag_gb:,.3g} GB",
        "decoding": f"{estimate.decode_tiles_per_s:,.0f} tiles/s",
        "backbone": f"{estimate.backbone_tiles_per_s:,.0f} tiles/s",
        "start": f"{estimate.startup_s + estimate.selection_s:,.0f} s",
        "finding tissue": f"{estimate.segmentation_s:,.0f} s",
        "in all": _duration(estimate.hours),
    }
    print_numbers(title, list(cells), [list(cells.values())], n_names=0)
    if n_finished:
        stdout.print(f"Not counted: {pluralize(n_finished, 'slides')} that have a bag in {bags}.")
    if estimate.n_sampled < n_left:
        stdout.print(f"Estimated from {pluralize(estimate.n_sampled, 'slides')} of all sizes.")
    stdout.print(
        f"Times are for this machine, these options and runtime {estimate.runtime!r}; rules may "
        "leave tiles out."
    )
    print_next("the same command without --dry-run")


def _duration(hours: float) -> str:
    if hours < 2 / 60:
        return f"{hours * 3600:,.0f} seconds"
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
