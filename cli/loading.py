"""The backbone for a folder of bags, run as its other bags were."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from features.encoders import Encoder

__all__ = ["INSTALLED", "load_encoder_for"]

INSTALLED = "-"
"""Stands for weights that are installed, where several backbones need a checkpoint each."""

_TILES_A_SLIDE = 200


def load_encoder_for(
    bags_dir: Path | None,
    name: str,
    *,
    weights: list[Path] | None,
    device: str,
    batch: int,
    execution: str,
    n_slides: int = 0,
    n_tiles_expected: int | None = None,
) -> Encoder:
    """Load a backbone, and run it as the bags of the folder were made, or choose that now.

    Parameters
    ----------
    bags_dir
        Folder of the bags; None chooses without noting it.
    name, weights
        Backbone, and a checkpoint for each of its parts; None for installed weights.
    device, batch, execution
        As on the command line.
    n_slides
        Slides to be embedded; for few of them nothing is started that takes long to start.
    n_tiles_expected
        Tiles or images to be embedded, where their number is known better than from ``n_slides``.
    """
    from features.encoders import load_encoder
    from features.engines import choose_device
    from features.errors import EncoderError
    from features.files import make_folder
    from features.pinning import pin_execution, pinned_execution

    def load(way: str) -> Encoder:
        return load_encoder(
            name, weights_path=_paths(weights), device=choose_device(device), batch_tiles=batch,
            execution=way, n_tiles_expected=n_tiles_expected or n_slides * _TILES_A_SLIDE,
        )  # fmt: skip

    pinned = None if bags_dir is None else pinned_execution(bags_dir)
    if pinned and execution != "auto" and not pinned.startswith(execution):
        raise EncoderError(
            bags_dir,
            found=f"bags made with {pinned!r}",
            expected=f"--execution {execution}",
            advice="Leave --execution out, or name another folder with --bags.",
        )
    encoder = load(pinned or execution)
    if bags_dir is None or pinned:
        return encoder
    settled = pin_execution(make_folder(bags_dir), encoder.execution)
    return encoder if settled == encoder.execution else load(settled)


def _paths(weights: list[Path] | None) -> Path | list[Path | None] | None:
    if not weights:
        return None
    paths = [None if str(path) == INSTALLED else path for path in weights]
    return paths if len(paths) > 1 else paths[0]
