"""``mil describe``: a cohort on one page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import EXIT_PARTLY_FAILED, print_json, progress_bar, spinner, stderr, stdout
from cli.options import JsonOutput
from cli.shared.output import print_findings
from features.utils.text import pluralize

if TYPE_CHECKING:
    from PIL import Image

    from mil.reporting.cohort_report import CohortSummary, SlideFiles, SlideHeader, SlideTable

__all__ = ["describe"]

OnStep = Callable[[str, int, int], None]


def describe(
    *,
    train: Annotated[
        Path,
        typer.Argument(
            metavar="TRAIN",
            help="CSV with `image_id`, `slide_id` or `bag_id`, and `patient_id`; `label`, "
            "`center_id` and `image_num` where there are any.",
        ),
    ],
    label: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column of the labels, where a table has several; else `label`."
        ),
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Slides, of which the headers are read."),
    ] = None,
    bags: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of bags, or a packed store, for tiles and tissue."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="HTML", help="Where the page goes.")] = Path(
        "describe.html"
    ),
    gallery: Annotated[
        int,
        typer.Option(
            min=0, max=100, metavar="N", help="With --slides: slides of each label to show."
        ),
    ] = 6,
    as_json: JsonOutput = False,
) -> None:
    """Describe a cohort on one page: counts, shares, sizes, tissue, and what is odd.

    All is counted by slide and by patient. The page is one file that needs no network. With
    `--slides`, sizes, resolutions, copies of files and a small gallery; with `--bags`, tiles,
    tissue and the colour of the glass.

    Example: `mil describe train.csv`

    Example: `mil describe train.csv --slides slides --bags bags --out describe.html`

    Example: `mil describe scans.csv --label subdural --bags bags`

    Exit codes: 0 done, 1 table or bags cannot be used, 2 usage, 3 some slides cannot be opened.
    """
    with spinner("loading"):
        from features.utils.files import atomic_write, make_folder
        from mil.reporting.cohort_report import render_description, summarize_cohort

    with progress_bar("") as bars:
        task = bars.add_task("reading the table", total=None)

        def on_step(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        def read_slides(table: SlideTable) -> SlideFiles | None:
            if slides is None:
                return None
            return _read_slides(slides, table, n_a_label=gallery, on_step=on_step)

        found = summarize_cohort(
            train, files_of=read_slides, bags_dir=bags, on_step=on_step, label=label
        )
        on_step("drawing", 0, 1)
        html = render_description(found)
    make_folder(out.parent)
    with atomic_write(out) as beside:
        beside.write_text(html, encoding="utf-8", errors="replace")
    if as_json:
        print_json({"page": str(out), **found.as_dict()})
    else:
        _print_summary(found, out)
    if found.files and found.files.failures:
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _read_slides(folder: Path, table: SlideTable, *, n_a_label: int, on_step: OnStep) -> SlideFiles:
    """Headers of all slides of a folder, and overviews of a few."""
    from features.errors import MilError
    from features.slides.reader import find_slides
    from mil.reporting.cohort_report import SlideFiles, choose_for_gallery

    paths = _by_id(find_slides([folder]))
    content_ids = _ids_of_equal_sizes(paths, on_step=on_step)
    headers: dict[str, SlideHeader] = {}
    failures: dict[str, str] = {}
    for done, (slide_id, path) in enumerate(paths.items(), start=1):
        try:
            headers[slide_id] = _read_header(slide_id, path, content_ids.get(slide_id, ""))
        except MilError as error:
            failures[slide_id] = str(error)
        on_step("reading headers", done, len(paths))
    thumbnails: dict[str, Image.Image] = {}
    chosen = choose_for_gallery(table, headers, n_a_label=n_a_label)
    for done, slide_id in enumerate(chosen, start=1):
        try:
            thumbnails[slide_id] = _read_thumbnail(paths[slide_id])
        except MilError as error:
            failures[slide_id] = str(error)
        on_step("reading overviews", done, len(chosen))
    return SlideFiles(headers=headers, failures=failures, thumbnails=thumbnails)


def _by_id(paths: list[Path]) -> dict[str, Path]:
    """Slides by id; of several files of one id the first is taken, and that is said."""
    from features.slides.reader import slide_id_of

    found: dict[str, Path] = {}
    for path in paths:
        if found.setdefault(slide_id_of(path), path) != path:
            stderr.print(f"not looked at: {path}, whose name {found[slide_id_of(path)]} "
            "has already",
                        style="yellow")  # fmt: skip
    return found


def _ids_of_equal_sizes(paths: Mapping[str, Path], *, on_step: OnStep) -> dict[str, str]:
    """Content of those files that have the size of another: only they can be copies."""
    from features.errors import SlideError
    from features.slides.file_info import content_hash, file_size

    sizes = {slide_id: file_size(path) for slide_id, path in paths.items()}
    counts = Counter(sizes.values())
    alike = [s for s, size in sizes.items() if size is not None and counts[size] > 1]
    found = {}
    for done, slide_id in enumerate(alike, start=1):
        with suppress(SlideError):  # said when its header is read
            found[slide_id] = content_hash(paths[slide_id])
        on_step("comparing files of equal size", done, len(alike))
    return found


def _read_header(slide_id: str, path: Path, content_id: str) -> SlideHeader:
    from features.slides.file_info import compression_of, file_size
    from features.slides.reader import open_slide
    from features.slides.resolution import resolve_mpp
    from mil.reporting.cohort_report import SlideHeader

    slide = open_slide(path)
    try:
        resolution = resolve_mpp(slide.mpp_xy, given_mpp=None, where=path)
        return SlideHeader(
            slide_id=slide_id,
            width_px0=slide.levels[0].width_px,
            height_px0=slide.levels[0].height_px,
            n_levels=len(slide.levels),
            file_bytes=file_size(path),
            mpp=resolution.mpp if resolution.source == "file" else math.nan,
            reader=slide.reader,
            compression=compression_of(path),
            content_id=content_id,
        )
    finally:
        slide.close()


def _read_thumbnail(path: Path) -> Image.Image:
    """The whole slide, small; no level is ever held whole."""
    from PIL import Image

    from features.slides.reader import open_slide
    from mil.reporting.cohort_report import THUMBNAIL_PX

    slide = open_slide(path)
    try:
        long_side_px = max(slide.levels[0].width_px, slide.levels[0].height_px)
        return Image.fromarray(slide.overview(downsample=max(1, long_side_px // THUMBNAIL_PX)))
    finally:
        slide.close()


def _print_summary(found: CohortSummary, page: Path) -> None:
    print_findings(found.findings)
    table = found.table
    told = (
        f"{pluralize(len(table.slides), 'slides')} of {pluralize(len(table.patients), 'patients')}"
    )
    if table.labelled:
        counts = ", ".join(f"{n} {name}" for name, n in found.labels["patients"].items())
        told += f" ({counts})"
    stdout.print(f"{told}.")
    stdout.print(f"Look at {page}")
