"""Options that several commands share, said once; in panels, as ``--help`` shows them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "BACKBONE",
    "FOLDS",
    "MACHINE",
    "TILES",
    "Address",
    "Backbone",
    "BagsDir",
    "BagsPlace",
    "Batch",
    "Calibrator",
    "CohortTable",
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
    "PatientTable",
    "PictureSlides",
    "Prior",
    "Rules",
    "RunDir",
    "SlideMpp",
    "SlidePaths",
    "TargetMpp",
    "TilePx",
    "Weights",
    "Workers",
    "WorkersEach",
    "flag",
]

TILES = "Tiles"
BACKBONE = "Backbone"
MACHINE = "Machine"
FOLDS = "Folds and calibration"


def flag(name: str, meaning: str, *, panel: str | None = None) -> Any:
    """An option that takes no value, and of which the help shows none."""
    return typer.Option(name, metavar="", help=meaning, rich_help_panel=panel)


class EngineName(StrEnum):
    """Where work is done."""

    local = "local"
    ray = "ray"


CohortTable = Annotated[
    Path,
    typer.Option(metavar="CSV", help="Table with `image_id` (or `slide_id`), `patient_id`, "
                 "`label`."),
]  # fmt: skip
PatientTable = Annotated[
    Path,
    typer.Option(metavar="CSV", help="Table with `patient_id` and `image_id` (or `slide_id`)."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Columns of 0 and 1 in place of `label`, where a patient may have several, e.g. "
        "`any,epidural,subdural`.",
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="The run; default: the newest in `runs/`.", show_default=False
    ),
]
BagsDir = Annotated[
    Path,
    typer.Option("--bags", metavar="FOLDER", help="Folder of bags, one HDF5 file a slide."),
]
BagsPlace = Annotated[
    Path,
    typer.Option(
        "--bags", metavar="FOLDER", help="Folder of bags, or a packed store (also its URL)."
    ),
]
PictureSlides = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Slides that the bags were made from, for pictures."),
]
Prior = Annotated[
    str,
    typer.Option(
        metavar="SHARES",
        help="Class shares that the probabilities are for: `balanced`, `cohort` (as in training) "
        "or shares such as `CE=0.7,LAA=0.3`.",
    ),
]
JsonOutput = Annotated[bool, flag("--json", "Print the summary as JSON on standard output.")]

SlidePaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="SLIDES",
        help="Slides, folders of slides, URLs of OME-Zarr, or a CSV with `path`.",
    ),
]
SlideMpp = Annotated[
    float | None,
    typer.Option(
        metavar="µm/px", help="µm per level-0 px of all these slides, where the files are wrong."
    ),
]
MppTable = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="Table with `slide_id` and `mpp`, for single slides."),
]

TargetMpp = Annotated[
    float,
    typer.Option(
        "--mpp", min=0.05, max=50, metavar="µm/px", rich_help_panel=TILES,
        help="Resolution of a tile, µm per px.",
    ),
]  # fmt: skip
TilePx = Annotated[
    int,
    typer.Option(min=16, max=4096, metavar="px", rich_help_panel=TILES, help="Side of a tile, px."),
]
Overlap = Annotated[
    int,
    typer.Option(
        min=0, metavar="px", rich_help_panel=TILES, help="Overlap of neighbouring tiles, px."
    ),
]
MinTissue = Annotated[
    float,
    typer.Option(
        min=0, max=1, metavar="SHARE", rich_help_panel=TILES,
        help="Least share of a tile that is tissue.",
    ),
]  # fmt: skip
MaxTiles = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", rich_help_panel=TILES,
        help="Tiles of a slide at most, drawn spread over its tissue; same each time.",
    ),
]  # fmt: skip
Rules = Annotated[
    str,
    typer.Option(
        metavar="NAMES", rich_help_panel=TILES,
        help="Rules that leave tiles out: `all`, `none`, or some of `dark,ink,grey,fold,blur`.",
    ),
]  # fmt: skip
FilterFile = Annotated[
    Path | None,
    typer.Option(
        "--filter", metavar="FILE", rich_help_panel=TILES,
        help="Tile filter that `mil filter fit` wrote; what it drops is counted.",
    ),
]  # fmt: skip

Backbone = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=BACKBONE,
        help="Any timm model, or several joined by `+`; the default needs no network.",
    ),
]  # fmt: skip
Weights = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", rich_help_panel=BACKBONE,
        help="Local checkpoint of the backbone (safetensors or torch); of joined backbones one "
        "each, `-` for installed weights.",
    ),
]  # fmt: skip
Execution = Annotated[
    str,
    typer.Option(
        metavar="WAY", rich_help_panel=BACKBONE,
        help="How the backbone runs: `auto` takes the fastest way that gives the same embeddings; "
        "`eager`, `compile`, `onnx`. A folder of bags keeps its first choice.",
    ),
]  # fmt: skip
Batch = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", rich_help_panel=BACKBONE, help="Tiles through the backbone at once."
    ),
]

Calibrator = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=FOLDS,
        help="How logits become probabilities: `platt` (Platt scaling, regularised), `temperature` "
        "or `none`.",
    ),
]  # fmt: skip

Device = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=MACHINE,
        help="`auto` (CUDA where there is a GPU for it, else the CPU), `cpu`, `cuda` or `cuda:N`.",
    ),
]  # fmt: skip
Devices = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAMES", rich_help_panel=MACHINE,
        help="`auto` (every CUDA GPU, else the CPU), `cpu`, `cuda`, `cuda:N`, or several such as "
        "`cuda:0,1`, each with a process of its own.",
    ),
]  # fmt: skip
EngineChoice = Annotated[
    EngineName,
    typer.Option(
        "--engine", rich_help_panel=MACHINE,
        help="Where the work is done: on the devices of this machine (`local`), or on a Ray "
        "cluster (`ray`).",
    ),
]  # fmt: skip
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", rich_help_panel=MACHINE, show_default=False,
        help="The Ray cluster; default: the one this machine is part of, else a new one on this "
        "machine.",
    ),
]  # fmt: skip
Workers = Annotated[
    int,
    typer.Option(
        min=1, max=256, metavar="N", rich_help_panel=MACHINE, show_default="all cores",
        help="Threads that decode tiles.",
    ),
]  # fmt: skip
WorkersEach = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=256, metavar="N", rich_help_panel=MACHINE, show_default=False,
        help="Threads that decode tiles, of each device; default: all cores, shared out. On Ray "
        "also the cores that an actor takes.",
    ),
]  # fmt: skip
