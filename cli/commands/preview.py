"""``mil preview``: images of slides with their tiles."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import (
    EXIT_KNOWN_ERROR,
    EXIT_PARTLY_FAILED,
    in_thread,
    print_json,
    print_next,
    print_table,
    progress_bar,
    stderr,
    stdout,
    warn,
)
from cli.options import (
    JsonOutput,
    MaxTiles,
    MinTissue,
    MppTable,
    Overlap,
    Rules,
    SceneNumber,
    SlideMpp,
    SlidePaths,
    TargetMpp,
    TilePx,
    Tissue,
    TissueMethod,
    Workers,
)
from cli.shared.arguments import (
    given_options,
    require_one_resolution,
    resolve_mpp_table,
    resolve_slides,
    tile_settings,
)
from cli.shared.embed_progress import (
    EmbedProgressBars,
    assumed_mpp_text,
    tissue_warnings,
    unusual_tissue,
)
from cli.shared.next_slides import repeat_paths
from cli.shared.passed_over import passed_over_as_dict, print_passed_over
from features.utils.hardware import CPU_COUNT
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.visualization.preview_page import PreviewRow

__all__ = ["preview"]

_OPTIONS_OF_EMBED = (
    "scene", "slide_mpp", "mpp_table", "mpp", "tile_px", "overlap", "min_tissue", "tissue",
    "max_tiles", "rules",
)  # fmt: skip
"""Options that choose the tiles, which the next command repeats."""


def preview(
    context: typer.Context,
    *,
    paths: SlidePaths,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the images and their page.")
    ] = Path("previews"),
    scene: SceneNumber = None,
    slide_mpp: SlideMpp = None,
    mpp_table: MppTable = None,
    as_json: JsonOutput = False,
    mpp: TargetMpp = 0.5,
    tile_px: TilePx = 224,
    overlap: Overlap = 0,
    min_tissue: MinTissue = 0.3,
    tissue: Tissue = TissueMethod.contrast,
    max_tiles: MaxTiles = None,
    rules: Rules = "all",
    workers: Workers = CPU_COUNT,
) -> None:
    """Draw slides with their tissue, tiles and rejected tiles, without embedding.

    Each slide gets an image and a file of its numbers; `index.html` lists all slides ever previewed
    in the folder, sortable by any number. The rules read every tile; `--rules none` only places the
    tiles, which is fast.

    Example: `mil preview slides/ --out previews`

    Example: `mil preview slides/ --rules none --mpp 1.0 --tile-px 256`

    Exit codes: 0 all done, 1 nothing could be done, 2 usage, 3 some slides failed.
    """
    require_one_resolution(slide_mpp=slide_mpp, mpp_table=mpp_table)
    tiles = tile_settings(
        mpp=mpp, tile_px=tile_px, overlap=overlap, min_tissue=min_tissue, max_tiles=max_tiles,
        rules=rules,
    )  # fmt: skip
    from features.embedding.sources import warn_of_silence
    from features.slides.manifest import check_unique_ids
    from features.slides.reader import slide_id_of
    from features.tiling.tissue import TissueSettings
    from features.visualization.preview import PreviewWriter, preview_slide

    search = resolve_slides(paths, has_mpp=slide_mpp is not None or mpp_table is not None)
    slides = search.slides
    if os.path.realpath(out) in {os.path.realpath(path.parent) for path in slides}:
        # The picture of a slide that is a JPEG file would replace it.
        raise typer.BadParameter(f"slides are read from {out}; name another", param_hint="--out")
    mpp_of = resolve_mpp_table(slides, slide_mpp=slide_mpp, mpp_table=mpp_table)
    check_unique_ids(slides, option="--out", results_dir=out)
    writer = PreviewWriter(out)
    rows: list[PreviewRow] = []
    with progress_bar("tiles") as progress:
        bars = EmbedProgressBars(progress, n_slides=len(slides))

        def draw() -> None:
            for path in slides:
                with warn_of_silence(path, bars.warn):
                    row = preview_slide(
                        path, writer, tiles=tiles, tissue=TissueSettings(method=tissue.value),
                        given_mpp=mpp_of.get(slide_id_of(path)), scene=scene, n_workers=workers,
                        progress=bars,
                    )  # fmt: skip
                rows.append(row)
                bars.slide_ended(row)

        try:
            in_thread(draw)
        finally:
            writer.write_index()
    n_failed = sum(row.status == "failed" for row in rows)
    if as_json:
        passed_over = passed_over_as_dict(search.passed_over)
        print_json(_summary(rows, writer.index_path) | {"passed_over": passed_over})
    else:
        _print_summary(rows, writer.index_path)
        print_next(
            "open {page}",
            *(["mil embed {paths} --bags bags {options}"] if n_failed < len(rows) else []),
            page=writer.index_path, paths=repeat_paths(paths),
            options=given_options(context, *_OPTIONS_OF_EMBED),
        )  # fmt: skip
    print_passed_over(search.passed_over)
    if n_failed:
        stderr.print(
            f"{n_failed:,} of {pluralize(len(rows), 'slides')} failed; see the page",
            style="bold yellow",
        )
    if n_failed or search.unread:
        is_all = n_failed == len(rows)
        raise typer.Exit(EXIT_KNOWN_ERROR if is_all else EXIT_PARTLY_FAILED)


def _summary(rows: list[PreviewRow], page: Path) -> dict[str, object]:
    from features.slides.resolution import mpp_outliers
    from features.visualization.preview_page import known_mpp

    statuses = Counter(row.status for row in rows)
    left_out: Counter[str] = Counter()
    known = known_mpp(rows)
    for row in rows:
        left_out.update(row.left_out)
    return {
        "page": str(page),
        "n_slides": len(rows),
        **{f"n_{status}": statuses[status] for status in ("done", "empty", "failed")},
        **{
            f"n_tiles_{name}": sum(getattr(row, f"n_{name}") or 0 for row in rows)
            for name in ("found", "read", "kept", "failed")
        },
        "n_tiles_left_out": dict(left_out),
        **unusual_tissue(_tissue_shares(rows)),
        "mpp_sources": dict(Counter(row.mpp_source for row in rows if row.mpp_source)),
        "mpp_outliers": {name: known[name] for name in mpp_outliers(known)},
        "failed": {row.slide_id: row.message for row in rows if row.status == "failed"},
    }


def _tissue_shares(rows: list[PreviewRow]) -> dict[str, float]:
    """Return the share of tissue, where it was looked for, by slide id."""
    return {row.slide_id: row.tissue_share for row in rows if row.tissue_share is not None}


def _print_summary(rows: list[PreviewRow], page: Path) -> None:
    summary = _summary(rows, page)
    columns = {
        "with tiles": "n_done", "without": "n_empty", "failed": "n_failed",
        "tiles found": "n_tiles_found", "read": "n_tiles_read", "kept": "n_tiles_kept",
        "not decoded": "n_tiles_failed",
    }  # fmt: skip
    print_table(
        list(columns), [[f"{summary[key]:,}" for key in columns.values()]],
        title=f"{pluralize(len(rows), 'slides')} into {page.parent}", numeric=columns,
    )  # fmt: skip
    left_out = summary["n_tiles_left_out"]
    if isinstance(left_out, dict) and left_out:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(left_out.items()))
        stdout.print(f"Tiles rejected: {counts}.")
    stdout.print(f"Page: {page}")
    for text in tissue_warnings(_tissue_shares(rows), advice="Look at them on the page"):
        warn(text)
    if assumed := [row.slide_id for row in rows if row.mpp_source == "assumed"]:
        warn(assumed_mpp_text(assumed))
