"""Options that several commands share, said once."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from features.tiles import TileSettings

__all__ = [
    "Address",
    "Backbone",
    "BagsDir",
    "BagsPlace",
    "Batch",
    "Calibrator",
    "Device",
    "Devices",
    "EngineChoice",
    "EngineName",
    "Execution",
    "FilterFile",
    "JsonOutput",
    "Labels",
    "MaxTiles",
    "MinTissue",
    "MppTable",
    "Overlap",
    "Rules",
    "SlideMpp",
    "SlidePaths",
    "TargetMpp",
    "TilePx",
    "Weights",
    "Workers",
    "WorkersEach",
    "folder_for_bags",
    "given_mpp_of",
    "part_of",
    "require_one_resolution",
    "require_ray_for_address",
    "slides_of",
    "tile_settings",
]

T = TypeVar("T")


class EngineName(StrEnum):
    """Where work is done."""

    local = "local"
    ray = "ray"


Backbone = Annotated[
    str,
    typer.Option(help="Any timm model, or several joined by `+`; the default needs no network."),
]
FilterFile = Annotated[
    Path | None,
    typer.Option("--filter", help="Tile filter that `mil filter fit` wrote; what it drops is "
                 "counted."),
]  # fmt: skip
BagsDir = Annotated[Path, typer.Option("--bags", help="Folder of bags, one HDF5 file a slide.")]
BagsPlace = Annotated[
    Path, typer.Option("--bags", help="Folder of bags, or a packed store (also its URL).")
]
Device = Annotated[
    str, typer.Option(help="`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.")
]
Calibrator = Annotated[
    str,
    typer.Option(
        help="How logits become probabilities: `platt` (shrunken), `temperature`, `beta` (two "
        "classes), `dirichlet` (more), `none`, or `auto`, which picks by cross-validation."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Columns of 0 and 1 in place of `label`, where a patient may have several, e.g. "
        "`any,epidural,subdural`."
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        help="`auto` (every GPU, else the CPU), `cpu`, `cuda`, `cuda:N`, or several such as "
        "`cuda:0,1`, each with a process of its own.",
    ),
]
EngineChoice = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        help="Where the work is done: on the devices of this machine (`local`), or on a Ray "
        "cluster (`ray`).",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="The Ray cluster, `host:port`; default: the one this machine is part of, else a new "
        "one on this machine."
    ),
]
JsonOutput = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON on standard output.")
]
Workers = Annotated[
    int, typer.Option(min=1, max=256, help="Threads that decode tiles; default: all cores.")
]
WorkersEach = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=256,
        show_default=False,
        help="Threads that decode tiles, of each device; default: all cores, shared out. On Ray "
        "also the cores that an actor takes.",
    ),
]
Weights = Annotated[
    list[Path] | None,
    typer.Option(
        help="Local checkpoint of the backbone (safetensors or torch); of joined backbones one "
        "each, `-` for installed weights."
    ),
]
Execution = Annotated[
    str,
    typer.Option(
        help="How the backbone runs: `auto` takes the fastest way that gives the same embeddings; "
        "`eager`, `compile`, `onnx`. A folder of bags keeps its first choice."
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Tiles through the backbone at once.")]

SlidePaths = Annotated[
    list[Path],
    typer.Argument(help="Slides, folders of slides, URLs of OME-Zarr, or a CSV with `path`."),
]
TargetMpp = Annotated[
    float, typer.Option("--mpp", min=0.05, max=50, help="Resolution of a tile, µm per px.")
]
TilePx = Annotated[int, typer.Option(min=16, max=4096, help="Side of a tile, px.")]
Overlap = Annotated[int, typer.Option(min=0, help="Overlap of neighbouring tiles, px.")]
MinTissue = Annotated[
    float, typer.Option(min=0, max=1, help="Least share of a tile that is tissue.")
]
MaxTiles = Annotated[
    int | None,
    typer.Option(min=1, help="Tiles of a slide at most, drawn spread over its tissue; same each "
                 "time."),
]  # fmt: skip
Rules = Annotated[
    str,
    typer.Option(help="Rules that leave tiles out: `all`, `none`, or some of "
                 "dark,ink,grey,fold,blur."),
]  # fmt: skip
SlideMpp = Annotated[
    float | None,
    typer.Option(help="µm per level-0 px of all these slides, where the files are wrong."),
]
MppTable = Annotated[
    Path | None, typer.Option(help="CSV with `slide_id` and `mpp`, for single slides.")
]


def folder_for_bags(bags: Path) -> Path:
    """The folder to write bags to; a packed store takes none."""
    from features.packs import is_pack

    if is_pack(bags):
        raise typer.BadParameter(
            f"{str(bags)!r} is a packed store, to which no bag can be added: name a folder",
            param_hint="--bags",
        )
    return bags


def tile_settings(
    *, mpp: float, tile_px: int, overlap: int, min_tissue: float, max_tiles: int | None, rules: str
) -> TileSettings:
    """Settings from the options that name them."""
    from features.rules import parse_rules
    from features.tiles import TileSettings

    if overlap >= tile_px:
        raise typer.BadParameter(
            f"{overlap} px is not less than the tile's {tile_px} px", param_hint="--overlap"
        )
    return TileSettings(
        tile_px=tile_px, target_mpp=mpp, overlap_px=overlap, min_tissue=min_tissue,
        max_tiles=max_tiles, rules=parse_rules(rules),
    )  # fmt: skip


def slides_of(paths: list[Path]) -> list[Path]:
    """Slides named by files, folders, URLs and CSV tables."""
    from features.listing import read_slide_table
    from features.slides.opening import find_slides

    listed = [slide for p in paths if p.suffix == ".csv" for slide in read_slide_table(p)]
    found = find_slides([p for p in paths if p.suffix != ".csv"])
    return sorted(dict.fromkeys([*listed, *found]))


def part_of(slides: list[T], shard: str | None) -> list[T]:
    """Part I of N of the slides or series: every Nth from the Ith on; all where shard is None."""
    if shard is None:
        return slides
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, n_parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= n_parts:
        raise typer.BadParameter(f"{shard!r} is not I/N with I from 1 to N", param_hint="--shard")
    return slides[number - 1 :: n_parts]


def require_one_resolution(*, slide_mpp: float | None, mpp_table: Path | None) -> None:
    """Refuse two sources of the slides' resolution."""
    if slide_mpp is not None and mpp_table is not None:
        raise typer.BadParameter("give either --slide-mpp or --mpp-table", param_hint="--mpp-table")


def require_ray_for_address(engine: EngineName, address: str | None) -> None:
    """Refuse the address of a cluster that would not be used."""
    if address is not None and engine is not EngineName.ray:
        raise typer.BadParameter("goes with --engine ray", param_hint="--address")


def given_mpp_of(
    slides: list[Path], *, slide_mpp: float | None, mpp_table: Path | None
) -> dict[str, float]:
    """µm per level-0 px by slide id, where the user knows better than the files."""
    from features.listing import read_mpp_table
    from features.slides.opening import slide_id_of

    if mpp_table is not None:
        return read_mpp_table(mpp_table)
    return {slide_id_of(path): slide_mpp for path in slides} if slide_mpp is not None else {}
