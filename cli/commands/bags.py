"""``mil bags``: verify bags, pack them into one store, import and export them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import (
    EXIT_PARTLY_FAILED,
    PlainCommand,
    PlainGroup,
    exit_if_failed,
    print_json,
    print_next,
    print_numbers,
    progress_bar,
    spinner,
    stdout,
    warn,
)
from cli.options import BagsDir, JsonOutput, MppTable, SlideMpp, flag
from cli.shared.arguments import folder_for_bags
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.bags.convert import ConversionResult
    from features.bags.verify import FolderReport

__all__ = ["ExportLayout", "ImportLayout", "bags"]

bags = typer.Typer(
    cls=PlainGroup, no_args_is_help=True,
    help="Check bags, pack them, and exchange them with other programs.",
)  # fmt: skip


_MAX_NAMED = 5
"""Slides and files that a summary names; --json names all."""

BagsArgument = Annotated[
    Path,
    typer.Argument(metavar="BAGS", help="Folder of bags, or a packed store (also its URL)."),
]


ExportLayout = StrEnum("ExportLayout", ["clam", "trident", "stamp", "slideflow", "torch"])
"""Formats that can be written."""

ImportLayout = StrEnum(
    "ImportLayout", ["clam", "trident", "stamp", "atlaspatch", "slideflow", "torch"]
)
"""Formats that can be read."""


@bags.command(cls=PlainCommand)
def verify(
    *,
    bags_dir: BagsArgument,
    as_json: JsonOutput = False,
) -> None:
    """Check every bag: complete, finite, no tile twice or outside the slide, one fingerprint.

    Files are not trusted: links out of them are not followed, and sizes that they cannot hold are
    refused before they are read.

    Example: `mil bags verify bags`

    Exit codes: 0 all good, 1 none is good, 2 usage, 3 some are bad.
    """
    with spinner("loading"):
        from features.bags.isolated_reader import IsolatedReader
        from features.bags.verify import verify_bags
    with _count_progress("bags") as on_bag, IsolatedReader() as reader:
        report = verify_bags(bags_dir, on_bag=on_bag, read=reader.read)
    if as_json:
        print_json(_summarize(report, bags_dir))
    else:
        _print_report(report, bags_dir)
        if report.n_bad < len(report.bags):
            print_next("mil train --cohort train.csv --bags {bags}", bags=bags_dir)
    exit_if_failed(report.n_bad, len(report.bags))


@bags.command("import", cls=PlainCommand)
def import_(
    *,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder that the other program wrote.")
    ],
    layout: Annotated[
        ImportLayout | None,
        typer.Option(
            "--from",
            metavar="|".join(ImportLayout),
            show_default=False,
            help="Program that wrote bags of tiles.",
        ),
    ] = None,
    slide_vectors: Annotated[
        bool,
        flag(
            "--slide-vectors",
            "Import one vector per slide (TITAN, PRISM, MADELEINE ...), from `.h5`, `.pt` or "
            "`.npy` files, as bags of one.",
        ),
    ] = False,
    bags_dir: BagsDir = Path("bags"),
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="The backbone, where the files do not state it; chooses one where a file has "
            "those of several.",
        ),
    ] = "",
    mpp: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=50,
            metavar="µm/px",
            help="Resolution of a tile, µm per px, where the files do not state it.",
        ),
    ] = None,
    tile_px: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65536,
            metavar="px",
            help="Side of a tile, px, where the files do not state it.",
        ),
    ] = None,
    slide_mpp: SlideMpp = None,
    mpp_table: MppTable = None,
    as_json: JsonOutput = False,
) -> None:
    """Make bags of another program's embeddings; `mil train` reads them like its own.

    What a file does not state (mostly weights and preprocessing) is recorded as unknown, and the
    summary lists it. Bags of unknown provenance cannot be compared: you then have to make sure that
    they belong together. Layouts of one file per slide are read from subfolders, too. Files of
    embeddings that are not of the layout are left out, and named. The folder of bags must be new or
    empty.

    Example: `mil bags import trident_out/20x_224px_0px_overlap --from trident --bags bags`

    Example: `mil bags import slide_features_titan --slide-vectors --backbone titan`

    Exit codes: 0 all done, 1 nothing could be done, 2 usage, 3 some slides failed or were left
    out.
    """
    if (layout is None) == (not slide_vectors):
        raise typer.BadParameter("give either --from or --slide-vectors", param_hint="--from")
    name = "slide-vectors" if layout is None else layout.value
    folder_for_bags(bags_dir)
    with spinner("loading"):
        from features.bags.convert import import_bags
        from features.bags.formats.base import ImportDefaults
        from features.slides.manifest import read_mpp_table

        defaults = ImportDefaults(
            encoder=backbone,
            tile_px=tile_px or 0,
            target_mpp=mpp or 0.0,
            slide_mpp=slide_mpp,
            mpp_by_slide=read_mpp_table(mpp_table) if mpp_table is not None else {},
        )
    with _count_progress("slides") as on_slide:
        results = import_bags(source, bags_dir, layout=name, defaults=defaults, on_slide=on_slide)
    _print_conversion(
        results,
        source=source,
        out=bags_dir,
        layout=name,
        as_json=as_json,
        next_command="mil train --cohort train.csv --bags {bags}",
    )


@bags.command(cls=PlainCommand)
def export(
    *,
    bags_dir: BagsArgument,
    layout: Annotated[ExportLayout, typer.Option("--to", help="Program that is to read them.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New or empty folder to write to.")],
    as_json: JsonOutput = False,
) -> None:
    """Write bags in the format of another program.

    Example: `mil bags export bags --to stamp --out stamp_features`

    Exit codes: 0 all done, 1 nothing could be done, 2 usage, 3 some slides failed.
    """
    with spinner("loading"):
        from features.bags.convert import export_bags
    with _count_progress("slides") as on_slide:
        results = export_bags(bags_dir, out, layout=layout.value, on_slide=on_slide)
    _print_conversion(results, source=bags_dir, out=out, layout=layout.value, as_json=as_json)


@bags.command(cls=PlainCommand)
def pack(
    *,
    bags_dir: BagsArgument,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the store, or its URL.")
    ] = Path("bags.zarr"),
    overwrite: Annotated[bool, flag("--overwrite", "Replace an existing packed store.")] = False,
    as_json: JsonOutput = False,
) -> None:
    """Copy all bags into one sharded zarr store, for object storage and busy file systems.

    Every command that reads bags accepts the store as `--bags`, also by its URL (`s3://…`, with the
    package that fsspec needs for it), and reads the same numbers from it. All bags must have the
    same fingerprint. Nothing can be added to a store: pack the folder again.

    Example: `mil bags pack bags --out bags.zarr`

    Exit codes: 0 done, 1 bags cannot be used or the store not be written, 2 usage.
    """
    with spinner("loading"):
        from features.bags.store_writer import write_store
        from features.filters.classifier import copy_filter
    with _count_progress("bags") as on_bag:
        summary = write_store(
            bags_dir, out, overwrite=overwrite, on_bag=on_bag, copy_filter=copy_filter
        )
    if as_json:
        print_json({"source": str(bags_dir), "out": str(out), **asdict(summary)})
    else:
        stdout.print(
            f"{pluralize(summary.n_bags, 'bags')}, {pluralize(summary.n_tiles, 'tiles')}, "
            f"{summary.n_bytes / 1e9:.3g} GB: {bags_dir} -> {out}",
        )
        print_next("mil train --cohort train.csv --bags {bags}", bags=out)


@contextmanager
def _count_progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that sets a progress bar, from the number of finished items and of all."""
    with progress_bar(unit) as bars:
        task = bars.add_task(unit, total=None)
        yield lambda n_done, n_all: bars.update(task, completed=n_done, total=n_all)


def _summarize(report: FolderReport, bags_dir: Path) -> dict[str, object]:
    return {
        "bags": str(bags_dir),
        "n_bags": len(report.bags),
        "n_bad": report.n_bad,
        "n_tiles": sum(bag.n_tiles for bag in report.bags),
        "n_empty": sum(not bag.n_tiles and not bag.problems for bag in report.bags),
        "n_fingerprints": report.n_fingerprints,
        "n_imported": sum(bool(bag.unknown) for bag in report.bags),
        "constant_features": list(report.constant_features),
        "problems": {bag.slide_id: list(bag.problems) for bag in report.bags if bag.problems},
    }


def _print_report(report: FolderReport, bags_dir: Path) -> None:
    summary = _summarize(report, bags_dir)
    columns = ("bags", "bad", "empty", "imported", "tiles", "fingerprints")
    counts = [f"{summary[f'n_{name}']:,}" for name in columns]
    print_numbers(f"Bags in {bags_dir}", columns, [counts], n_names=0)
    _print_first(
        "bad", (f"{bag.slide_id}: {problem}" for bag in report.bags for problem in bag.problems)
    )
    if report.constant_features:
        stdout.print(
            f"{pluralize(len(report.constant_features), 'features')} with the same number on all "
            "tiles, which is uninformative but harmless."
        )


def _print_conversion(
    results: list[ConversionResult],
    *,
    source: Path,
    out: Path,
    layout: str,
    as_json: bool,
    next_command: str = "",
) -> None:
    left_out = {result.slide_id: result.left_out for result in results if result.left_out}
    results = [result for result in results if not result.left_out]
    failed = {result.slide_id: result.problem for result in results if result.problem}
    n_tiles = sum(result.n_tiles for result in results)
    named = {result.slide_id: result.named for result in results if result.named}
    unknown = Counter(name for result in results for name in result.unknown)
    n_done = len(results) - len(failed)
    if as_json:
        print_json({
            "source": str(source),
            "out": str(out),
            "layout": layout,
            "n_slides": len(results),
            "n_done": n_done,
            "n_tiles": n_tiles,
            "unknown": dict(sorted(unknown.items())),
            "named": named,
            "failed": failed,
            "left_out": left_out,
        })  # fmt: skip
    else:
        stdout.print(
            f"{n_done:,} of {pluralize(len(results), 'slides')}, {pluralize(n_tiles, 'tiles')}: "
            f"{source} -> {out}",
        )
        if unknown:
            fields = ", ".join(
                name if n_slides == n_done else f"{name} (of {n_slides})"
                for name, n_slides in sorted(unknown.items())
            )
            stdout.print(f"Unknown about their provenance: {fields}.")
    _print_first("note", (f"{slide_id}: its file says that it is of slide {name!r}, "
                          "which has none" for slide_id, name in named.items()))  # fmt: skip
    _print_first("failed", failed.values())
    _print_first("left out", (f"{name}: {reason}" for name, reason in left_out.items()))
    if n_done and next_command and not as_json:
        print_next(next_command, bags=out)
    exit_if_failed(len(failed), len(results))
    if left_out:
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _print_first(what: str, lines: Iterable[str]) -> None:
    """Print the first lines on standard error, and the number of the others."""
    every = list(lines)
    for line in every[:_MAX_NAMED]:
        warn(f"{what}: {line}")
    if len(every) > _MAX_NAMED:
        more = len(every) - _MAX_NAMED
        warn(f"{what}: {more:,} more; --json lists all")
