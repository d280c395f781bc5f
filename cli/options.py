"""Options that several commands share, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["BagsDir", "Batch", "Device", "JsonOutput", "Workers"]

BagsDir = Annotated[Path, typer.Option("--bags", help="Folder of bags, one HDF5 file a slide.")]
Device = Annotated[
    str, typer.Option(help="`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.")
]
JsonOutput = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON on standard output.")
]
Workers = Annotated[
    int, typer.Option(min=1, max=256, help="Threads that decode tiles; default: all cores.")
]
Batch = Annotated[int, typer.Option(min=1, help="Tiles through the backbone at once.")]
