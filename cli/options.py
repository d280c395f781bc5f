"""Options that several commands share, in the panels of ``--help``."""

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
    "BagsSource",
    "BagsSources",
    "Batch",
    "Calibrator",
    "ClassName",
    "CohortTable",
    "ColumnNames",
    "Covariates",
    "Device",
    "Devices",
    "EngineChoice",
    "EngineName",
    "Execution",
    "FilterFile",
    "JsonOutput",
    "LabelTable",
    "Labels",
    "MaxTiles",
    "MinTissue",
    "ModelArgs",
    "MppTable",
    "Overlap",
    "PatientTable",
    "Prior",
    "Rules",
    "RunDir",
    "SceneNumber",
    "Seed",
    "SlideMpp",
    "SlidePaths",
    "SlidesDir",
    "TargetMpp",
    "TilePx",
    "Tissue",
    "TissueMethod",
    "Weights",
    "Workers",
    "WorkersPerDevice",
    "flag",
]

TILES = "Tiles"
BACKBONE = "Backbone"
MACHINE = "Machine"
FOLDS = "Folds and calibration"


def flag(name: str, meaning: str, *, panel: str | None = None) -> Any:
    """Return an option that takes no value and shows none in the help."""
    return typer.Option(name, metavar="", help=meaning, rich_help_panel=panel)


class EngineName(StrEnum):
    """Executor of the work."""

    local = "local"
    ray = "ray"


CohortTable = Annotated[
    Path,
    typer.Option(metavar="CSV", help="Table with `image_id` (or `slide_id`), `patient_id`, "
                 "`label`."),
]  # fmt: skip
LabelTable = Annotated[
    Path | None,
    typer.Option(
        "--cohort",
        metavar="CSV",
        help="Table with `image_id` (or `slide_id`), `patient_id`, `label`; needed for files "
        "alone, else patients and labels are those of the runs.",
        show_default=False,
    ),
]
PatientTable = Annotated[
    Path,
    typer.Option(metavar="CSV", help="Table with `patient_id` and `image_id` (or `slide_id`)."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Columns of 0 and 1 used instead of `label`, for patients with several labels, e.g. "
        "`any,epidural,subdural`.",
    ),
]
Covariates = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Clinical columns of the table, e.g. `age,sex,nihss`, for one more learner of the "
        "stack; numbers, or at most 20 categories.",
    ),
]
ColumnNames = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="ROLE=NAME",
        help="Column of the `slide`, `patient`, `label` or `center` where the table has another "
        "name for it, e.g. `label=diagnosis`; can be repeated.",
        show_default=False,
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of the run; default: the newest in `runs/`.",
        show_default=False,
    ),
]
BagsDir = Annotated[
    Path,
    typer.Option("--bags", metavar="FOLDER", help="Folder of bags, one HDF5 file per slide."),
]
BagsSource = Annotated[
    Path,
    typer.Option("--bags", metavar="FOLDER", help="Folder of bags, or a packed store or its URL."),
]
BagsSources = Annotated[
    list[Path] | None,
    typer.Option(
        "--bags",
        metavar="FOLDER",
        help="Folder of bags, or a packed store or its URL; for runs combined by `mil combine` one "
        "per encoder, or a folder that holds them; default: `bags`.",
        show_default=False,
    ),
]
SlidesDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder of the slides that the bags were made from, to show them."
    ),
]
Prior = Annotated[
    str,
    typer.Option(
        metavar="SHARES",
        help="Class shares assumed for the probabilities: `balanced`, `cohort` (as in training), "
        "or shares such as `CE=0.7,LAA=0.3`.",
    ),
]
ClassName = Annotated[
    str | None,
    typer.Option(
        "--class", metavar="NAME", help="Class that a single column of probabilities is for."
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of folds and bootstrap.")]
JsonOutput = Annotated[bool, flag("--json", "Print the summary as JSON on standard output.")]

SlidePaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="SLIDES",
        help="Slides, folders of slides, URLs of OME-Zarr, or a CSV with `path`.",
    ),
]
SceneNumber = Annotated[
    int | None,
    typer.Option(
        "--scene", min=1, metavar="N",
        help="Which of several scenes of each file is the slide, by its number in `mil inspect`; "
        "default: the largest.",
    ),
]  # fmt: skip


def _check_slide_mpp(mpp: float | None) -> float | None:
    """Raise a usage error for µm/px of no scan, before any slide is read."""
    if mpp is not None:
        from features.errors import ResolutionError
        from features.slides.resolution import resolve_mpp

        try:
            resolve_mpp(None, given_mpp=mpp, where="--slide-mpp")
        except ResolutionError as error:
            raise typer.BadParameter(
                f"{error.actual}; expected {error.expected}. {error.hint}"
            ) from error
    return mpp


SlideMpp = Annotated[
    float | None,
    typer.Option(
        metavar="µm/px",
        callback=_check_slide_mpp,
        help="µm per level-0 px of all slides, if the files state none or a wrong one.",
    ),
]
MppTable = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV", help="Table with `slide_id` and `mpp` (µm per level-0 px) of single slides."
    ),
]

TargetMpp = Annotated[
    float,
    typer.Option(
        "--mpp", min=0.05, max=50, metavar="µm/px", rich_help_panel=TILES,
        help="Resolution of the tiles, µm per px.",
    ),
]  # fmt: skip
TilePx = Annotated[
    int,
    typer.Option(
        min=16, max=4096, metavar="px", rich_help_panel=TILES, help="Side of the tiles, px."
    ),
]
Overlap = Annotated[
    int,
    typer.Option(min=0, metavar="px", rich_help_panel=TILES, help="Overlap of adjacent tiles, px."),
]
MinTissue = Annotated[
    float,
    typer.Option(
        min=0, max=1, metavar="SHARE", rich_help_panel=TILES,
        help="Minimum share of tissue in a tile.",
    ),
]  # fmt: skip


class TissueMethod(StrEnum):
    """Way to find the tissue of a slide."""

    contrast = "contrast"
    all = "all"


Tissue = Annotated[
    TissueMethod,
    typer.Option(
        rich_help_panel=TILES,
        help="Tissue: what is darker than the glass (`contrast`), or everything (`all`), for "
        "pictures that hold no glass and slides whose tissue is not found.",
    ),
]
MaxTiles = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", rich_help_panel=TILES,
        help="Maximum number of tiles per slide, spread over its tissue; always the same.",
    ),
]  # fmt: skip
Rules = Annotated[
    str,
    typer.Option(
        metavar="NAMES", rich_help_panel=TILES,
        help="Rules that reject tiles: `all`, `none`, or some of `dark,ink,grey,fold,blur`.",
    ),
]  # fmt: skip
FilterFile = Annotated[
    Path | None,
    typer.Option(
        "--filter", metavar="FILE", rich_help_panel=TILES,
        help="Tile filter written by `mil filter fit`; the tiles it drops are counted.",
    ),
]  # fmt: skip

Backbone = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=BACKBONE,
        help="Model of timm, pathology encoder (`mil backbones --pathology`), `hf-hub:OWNER/NAME` "
        "or `local-dir:FOLDER`; several joined by `+`. The default needs no network.",
    ),
]  # fmt: skip
ModelArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg", metavar="KEY=VALUE", rich_help_panel=BACKBONE,
        help="Argument that no file states, e.g. `init_values=1e-5`, `mlp_layer=SwiGLUPacked`, "
        "`pooling=token+mean`, `mean=[0.5,0.5,0.5]`; can be repeated.",
    ),
]  # fmt: skip
Weights = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", rich_help_panel=BACKBONE,
        help="Local checkpoint of the backbone (safetensors or torch); with several backbones one "
        "each, `-` for installed weights.",
    ),
]  # fmt: skip
Execution = Annotated[
    str,
    typer.Option(
        metavar="WAY", rich_help_panel=BACKBONE,
        help="Runtime of the backbone: `eager`, `compile`, `onnx`, or `auto`, the fastest with the "
        "same embeddings. A folder of bags keeps its first choice.",
    ),
]  # fmt: skip
Batch = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", rich_help_panel=BACKBONE, help="Tiles per batch of the backbone."
    ),
]

Calibrator = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=FOLDS,
        help="How logits become probabilities: `platt` (Platt scaling, as far as the patients show "
        "that it helps), `temperature` or `none`.",
    ),
]  # fmt: skip

Device = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=MACHINE,
        help="`auto` (a CUDA GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.",
    ),
]  # fmt: skip
Devices = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAMES", rich_help_panel=MACHINE,
        help="`auto` (all CUDA GPUs, else the CPU), `cpu`, `cuda`, `cuda:N`, or several such as "
        "`cuda:0,1`, one process per device.",
    ),
]  # fmt: skip
EngineChoice = Annotated[
    EngineName,
    typer.Option(
        "--engine", rich_help_panel=MACHINE,
        help="Executor: the devices of this machine (`local`), or a Ray cluster (`ray`).",
    ),
]  # fmt: skip
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", rich_help_panel=MACHINE, show_default=False,
        help="Address of the Ray cluster; default: the one this machine belongs to, else a new one "
        "on this machine.",
    ),
]  # fmt: skip
Workers = Annotated[
    int,
    typer.Option(
        min=1, max=256, metavar="N", rich_help_panel=MACHINE, show_default="all cores",
        help="Threads that decode tiles.",
    ),
]  # fmt: skip
WorkersPerDevice = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=256, metavar="N", rich_help_panel=MACHINE, show_default=False,
        help="Cores per device that decode tiles; default: all, divided among the devices. "
        "On Ray also the number of cores per actor.",
    ),
]  # fmt: skip
