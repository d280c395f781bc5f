"""``mil backbones``: what there is to embed tiles with."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.console import print_json, progress_bar, spinner, stderr, stdout
from cli.options import BACKBONE, Batch, Device, JsonOutput, flag
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.encoders.registry import EncoderInfo

__all__ = ["backbones"]


def backbones(
    *,
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN",
            show_default=False,
            help="Name with wildcards, e.g. `'*vit*'`; with a dot, tags are searched as well. "
            "Default: well-tried ones, and those whose weights are here.",
        ),
    ] = None,
    measure: Annotated[
        bool,
        flag("--measure", "Time each on this machine, with random weights; takes seconds each."),
    ] = False,
    as_json: JsonOutput = False,
    execution: Annotated[
        str,
        typer.Option(
            metavar="WAY",
            rich_help_panel=BACKBONE,
            help="How to run what is measured: `eager`, `onnx`, `compile`, or `auto`.",
        ),
    ] = "eager",
    batch: Batch = 16,
    device: Device = "auto",
) -> None:
    """List backbones: input size, embedding, parameters, licence, whether the weights are here.

    Nothing is downloaded. Any model that timm knows can be named with `mil embed --backbone`; its
    weights then come from the model hub, or from `--weights FILE`. The licence is that of the
    weights, as timm states it; read it before you use them.

    Example: `mil backbones 'resnet*' --measure`

    Exit codes: 0 done, 1 no such name, 2 usage.
    """
    with spinner("loading timm"):
        from features.encoders.registry import encoder_info, list_encoders

        names = list_encoders(pattern)
    with progress_bar("backbones") as bars:
        found = [encoder_info(name) for name in bars.track(names, description="looking")]
    speeds = _measure(found, device, batch, execution) if measure else {}
    if as_json:
        print_json({"backbones": [asdict(one) | speeds.get(one.name, {}) for one in found]})
    else:
        _print(found, speeds)


def _measure(
    found: list[EncoderInfo], device: str, batch: int, execution: str
) -> dict[str, dict[str, object]]:
    """Speed of each backbone that can serve, or why it has none, by name."""
    from features.encoders.registry import measure_encoder
    from features.errors import EncoderError
    from features.parallel.devices import choose_device

    chosen, speeds = choose_device(device), {}
    usable = [one.name for one in found if not one.unusable]
    with progress_bar("backbones") as bars:
        for name in bars.track(usable, description="measuring"):
            try:
                rate, ran = measure_encoder(
                    name, device=chosen, batch_tiles=batch, execution=execution
                )
            except EncoderError as error:
                stderr.print(f"not measured: {name}: {error}", style="yellow")
            else:
                speeds[name] = {"tiles_per_s": rate, "execution": ran}
    return speeds


def _print(found: list[EncoderInfo], speeds: dict[str, dict[str, object]]) -> None:
    table = Table(title=pluralize(len(found), "backbones"), title_justify="left")
    table.add_column("name", overflow="fold")
    for name in ("input px", "dim", "parameters"):
        table.add_column(name, justify="right")
    table.add_column("licence")
    table.add_column("weights here")
    if speeds:
        table.add_column("tiles/s", justify="right")
    for one in found:
        numbers = (f"{one.input_px}", f"{one.dim:,}", f"{one.n_parameters / 1e6:.1f} M")
        cells = [one.name, *(("", "", "") if one.unusable else numbers)]
        cells += [one.licence or "not stated", one.weights_here or "no"]
        if speeds:
            cells.append(f"{speeds.get(one.name, {}).get('tiles_per_s', float('nan')):.3g}")
        table.add_row(*cells)
    stdout.print(table)
    for one in found:
        if one.unusable:
            stderr.print(f"cannot serve: {one.name}: {one.unusable}", style="yellow")
    if speeds:
        ways = sorted({str(speed["execution"]) for speed in speeds.values()})
        stdout.print(
            f"tiles/s: measured here with random weights, {', '.join(ways)}; reading not included."
        )
