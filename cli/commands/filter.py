"""``mil filter``: fit a tile classifier on examples, and print what it was fitted on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import (
    PlainCommand,
    PlainGroup,
    print_json,
    print_next,
    print_numbers,
    progress_bar,
    spinner,
    stdout,
)
from cli.options import (
    Backbone,
    Batch,
    Device,
    Execution,
    JsonOutput,
    ModelArgs,
    MppTable,
    SlideMpp,
    TargetMpp,
    TilePx,
    Weights,
)
from cli.shared.arguments import (
    check_output,
    given_options,
    require_one_resolution,
    resolve_mpp_table,
)
from cli.shared.executors import checkpoint_paths, print_warning
from features.utils.text import lookalikes_note, percent, pluralize

if TYPE_CHECKING:
    from features.filters.classifier import TileFilter

__all__ = ["filter_"]

filter_ = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="Fit a filter that drops tiles.")


@filter_.command(cls=PlainCommand)
def fit(
    context: typer.Context,
    *,
    table: Annotated[
        Path,
        typer.Argument(
            metavar="EXAMPLES",
            help="CSV with `label` (`keep` or `drop`); `path` of an image and `slide_id`, or "
            "`slide_path`, `x` and `y`; optionally `patient_id`.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the filter goes.")] = Path(
        "filter.safetensors"
    ),
    threshold: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.99,
            metavar="SHARE",
            help="Probability from which on a tile is dropped.",
        ),
    ] = 0.5,
    slide_mpp: SlideMpp = None,
    mpp_table: MppTable = None,
    as_json: JsonOutput = False,
    mpp: TargetMpp = 0.5,
    tile_px: TilePx = 224,
    backbone: Backbone = "tf_efficientnet_lite0",
    weights: Weights = None,
    model_args: ModelArgs = None,
    execution: Execution = "auto",
    batch: Batch = 64,
    device: Device = "auto",
) -> None:
    """Fit a filter on example tiles, and report its performance on held-out slides.

    Examples are embedded with the backbone; a logistic regression on the embeddings predicts which
    to drop. Its regularisation is chosen by a cross-validation split by patient (by slide, where no
    patient is named), and precision and recall come from an outer one. Tiles to drop must come from
    three patients or slides at least, and so must tiles to keep.

    Images must have the resolution of a tile; larger ones are cut into tiles. Of slides, `x` and
    `y` are a tile's upper left corner in level-0 px. Give `mil embed` and `mil train` the same
    backbone, `--mpp` and `--tile-px`.

    Example: `mil filter fit examples.csv --out filter.safetensors`

    Exit codes: 0 done, 1 examples cannot be used or are too few, 2 usage.
    """
    require_one_resolution(slide_mpp=slide_mpp, mpp_table=mpp_table)
    check_output(out, [table, mpp_table, *(weights or ())], suffix=".safetensors")
    with spinner("loading the backbone"):
        from features.encoders.config import EncoderConfig
        from features.encoders.names import parse_backbone
        from features.filters.classifier import EmbeddingSpec, write_filter
        from features.filters.examples import embed_examples, read_example_table
        from features.filters.training import fit_filter

        rows = read_example_table(table)
        slides = [row.slide_path for row in rows if row.slide_path is not None]
        given_mpp = resolve_mpp_table(slides, slide_mpp=slide_mpp, mpp_table=mpp_table)
        config = EncoderConfig(
            encoder=parse_backbone(backbone, model_args or ()), weights=checkpoint_paths(weights),
            device=device, batch_tiles=batch, runtime=execution,
        )  # fmt: skip
        encoder = config.load_encoder(n_tiles_expected=len(rows))
    for what in ("slide_id", "patient_id"):
        ids = filter(None, (getattr(row, what) for row in rows))
        if note := lookalikes_note(what.replace("_id", "s"), ids):
            print_warning(note)
    with progress_bar("rows") as bars:
        task = bars.add_task("embedding", total=len(rows))
        examples = embed_examples(
            rows, encoder, tile_px=tile_px, target_mpp=mpp, given_mpp=given_mpp,
            on_row=lambda: bars.advance(task),
        )  # fmt: skip
    with spinner("fitting"):
        spec = EmbeddingSpec(
            encoder=encoder.name, weights_sha256=encoder.weights_sha256,
            transform=encoder.preprocessing.as_json(), dim=encoder.dim, tile_px=tile_px,
            target_mpp=mpp,
        )  # fmt: skip
        tile_filter = fit_filter(
            examples, spec=spec, threshold=threshold, versions={"execution": encoder.execution}
        )
        write_filter(out, tile_filter)
    _print(tile_filter, out, as_json=as_json, weights=given_options(context, "weights"))


@filter_.command(cls=PlainCommand)
def show(
    *,
    file: Annotated[
        Path, typer.Argument(metavar="FILTER", help="File that `mil filter fit` wrote.")
    ],
    as_json: JsonOutput = False,
) -> None:
    """Print what a filter was fitted on, and its performance.

    Example: `mil filter show filter.safetensors`

    Exit codes: 0 done, 1 the file cannot be used, 2 usage.
    """
    with spinner("reading"):
        from features.filters.classifier import read_filter

        tile_filter = read_filter(file)
    _print(tile_filter, file, as_json=as_json)


def _summary(tile_filter: TileFilter, path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    examples, held_out = tile_filter.examples, tile_filter.held_out
    return {
        "filter": str(path),
        "sha256": tile_filter.sha256,
        **asdict(tile_filter.spec),
        "threshold": tile_filter.threshold,
        "strength": tile_filter.strength,
        "n_tiles_drop": int(examples.drop.sum()),
        "n_tiles_keep": int((~examples.drop).sum()),
        "n_groups": len({slide.group for slide in examples.slides}),
        "held_out": None
        if held_out is None
        else asdict(held_out) | {"precision": held_out.precision, "recall": held_out.recall},
        "slides": [asdict(slide) for slide in examples.slides],
        "software": json.loads(tile_filter.software),
    }


def _print(
    tile_filter: TileFilter, path: Path, *, as_json: bool, weights: Sequence[str] = ()
) -> None:
    """Print what a filter was fitted on; ``weights`` are the options that name its encoder's."""
    summary = _summary(tile_filter, path)
    if as_json:
        print_json(summary)
        return
    stdout.print(
        f"Filter {summary['sha256'][:12]} in {path}: drops tiles of {summary['tile_px']} px at "
        f"{summary['target_mpp']:g} µm/px, embedded by {summary['encoder']}, from a probability of "
        f"{summary['threshold']:g} on.",
    )
    if (counts := tile_filter.held_out) is not None:
        rows = {
            "to drop": (counts.n_dropped_rightly, counts.n_kept_wrongly, summary["n_tiles_drop"]),
            "to keep": (counts.n_dropped_wrongly, counts.n_kept_rightly, summary["n_tiles_keep"]),
        }
        print_numbers(
            "Examples of slides that were held out", ["", "dropped", "kept", "in all"],
            ([name, *(f"{n:,}" for n in row)] for name, row in rows.items()),
        )  # fmt: skip
        stdout.print(
            f"Of the tiles dropped, {percent(counts.precision, digits=1)} were to be dropped "
            f"(precision); of those to drop, {percent(counts.recall, digits=1)} were dropped "
            "(recall)."
        )
    n_known = sum(bool(slide["content_id"]) for slide in summary["slides"])
    stdout.print(
        f"Fitted on {summary['n_tiles_drop']:,} tiles to drop and {summary['n_tiles_keep']:,} to "
        f"keep of {len(summary['slides'])} slides ({summary['n_groups']} patients or slides, never "
        f"split between folds; the content of {pluralize(n_known, 'slide files')} "
        f"is known); regularisation C {summary['strength']:g}."
    )
    spec = tile_filter.spec
    print_next(
        "mil embed SLIDES --bags bags-filtered --filter {file} {options}",
        "mil train --cohort train.csv --bags bags --filter {file}",
        file=path,
        options=["--backbone", spec.encoder, "--mpp", f"{spec.target_mpp:g}", "--tile-px",
                 str(spec.tile_px), *weights],
    )  # fmt: skip
