"""``mil backbones``: list the encoders of tiles."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import print_json, print_next, print_table, progress_bar, spinner, stdout, warn
from cli.options import BACKBONE, Batch, Device, JsonOutput, flag
from features.utils.text import pluralize, rounded

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
            "Default: established ones, and those with installed weights.",
        ),
    ] = None,
    pathology: Annotated[
        bool,
        flag(
            "--pathology",
            "List published pathology encoders, with the resolution they were trained at.",
        ),
    ] = False,
    measure: Annotated[
        bool,
        flag(
            "--measure",
            "Measure the speed of each on this machine, with random weights; takes seconds each.",
        ),
    ] = False,
    as_json: JsonOutput = False,
    execution: Annotated[
        str,
        typer.Option(
            metavar="WAY",
            rich_help_panel=BACKBONE,
            help="Runtime for --measure: `eager`, `onnx`, `compile`, or `auto`.",
        ),
    ] = "eager",
    batch: Batch = 16,
    device: Device = "auto",
) -> None:
    """List backbones with input size in px, dimension, parameters, licence and installed weights.

    Nothing is downloaded. Any timm model and any of the pathology encoders can be used with
    `mil embed --backbone`; the weights then come from the model hub, or from `--weights FILE`. The
    licence is that of the weights, as stated by timm or the model card; read it before you use
    them.

    Example: `mil backbones 'resnet*' --measure`

    Example: `mil backbones --pathology`

    Exit codes: 0 done, 1 no such name, 2 usage.
    """
    with spinner("loading timm"):
        from features.encoders.pathology import PATHOLOGY_ENCODERS
        from features.encoders.registry import encoder_info, list_encoders

        if pathology and pattern is not None:
            raise typer.BadParameter("goes without PATTERN", param_hint="--pathology")
        names = list(PATHOLOGY_ENCODERS) if pathology else list_encoders(pattern)
    with progress_bar("backbones") as bars:
        infos = [encoder_info(name) for name in bars.track(names, description="reading")]
    speeds = _measure(infos, device, batch, execution) if measure else {}
    if as_json:
        print_json({"backbones": [asdict(one) | speeds.get(one.name, {}) for one in infos]})
    else:
        _print(infos, speeds)


def _measure(
    infos: list[EncoderInfo], device: str, batch: int, execution: str
) -> dict[str, dict[str, Any]]:
    """Return the speed and runtime of each usable backbone, by name."""
    from features.encoders.registry import measure_encoder
    from features.errors import EncoderError
    from features.parallel.devices import choose_device

    chosen, speeds = choose_device(device), {}
    usable = [one.name for one in infos if not one.unusable]
    with progress_bar("backbones") as bars:
        for name in bars.track(usable, description="measuring"):
            try:
                rate, runtime = measure_encoder(
                    name, device=chosen, batch_tiles=batch, execution=execution
                )
            except EncoderError as error:
                warn(f"not measured: {name}: {error}")
            else:
                speeds[name] = {"tiles_per_s": rate, "execution": runtime}
    return speeds


def _print(infos: list[EncoderInfo], speeds: dict[str, dict[str, Any]]) -> None:
    numeric = ["input px", "dim", "parameters", "tiles/s"]
    columns: dict[str, list[str]] = {
        "name": [one.name for one in infos],
        "input px": ["" if one.unusable else f"{one.input_px}" for one in infos],
        "dim": ["" if one.unusable else f"{one.dim:,}" for one in infos],
        "parameters": [
            "" if one.unusable else f"{one.n_parameters / 1e6:,.1f} M" for one in infos
        ],
        "licence": [
            f"{one.licence or 'not stated'}{', gated' if one.gated else ''}" for one in infos
        ],
        "weights here": [one.weights_here or "no" for one in infos],
    }  # fmt: skip
    if speeds:
        rates = [speeds.get(one.name, {}).get("tiles_per_s", math.nan) for one in infos]
        columns["tiles/s"] = [rounded(rate) for rate in rates]
    if any(one.mpp for one in infos):
        columns["µm/px"] = [", ".join(f"{mpp:g}" for mpp in one.mpp) for one in infos]
    same = {name: columns.pop(name) for name in ("input px", "weights here")
            if len(infos) > 1 and len(set(columns[name])) == 1 and columns[name][0]}  # fmt: skip
    print_table(
        list(columns), list(zip(*columns.values(), strict=True)),
        title=pluralize(len(infos), "backbones"), numeric=numeric,
        whole=["name"] if any(one.mpp for one in infos) else [],
    )  # fmt: skip
    if same:  # a line instead of a column leaves a narrow terminal room for names
        stdout.print(
            f"The same for all: {', '.join(f'{name} {some[0]}' for name, some in same.items())}."
        )
    for one in infos:
        if one.unusable:
            warn(f"cannot be used: {one.name}: {one.unusable}")
    if speeds:
        runtimes = ", ".join(sorted({str(speed["execution"]) for speed in speeds.values()}))
        stdout.print(f"tiles/s: measured here with random weights, {runtimes}, without reading.")
    usable = [one for one in infos if not one.unusable]
    if usable:
        _print_next(min(usable, key=lambda one: (not one.weights_here, one.gated)))


def _print_next(chosen: EncoderInfo) -> None:
    """Suggest a backbone, and say what it takes where its weights are not on this machine."""
    if chosen.weights_here:
        print_next("mil embed SLIDES --bags bags-new --backbone {name}", name=chosen.name)
        return
    stdout.print(
        f"The weights of {chosen.name} are not here: they come from the model hub"
        f"{', after its licence was accepted there' * chosen.gated}, or from a file with "
        "'mil embed --weights'."
    )
    print_next(
        "mil embed SLIDES --bags bags-new --backbone {name}",
        "mil embed SLIDES --bags bags-new --backbone {name} --weights FILE",
        name=chosen.name,
    )
