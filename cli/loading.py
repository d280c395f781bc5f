"""The backbone that options of the command line ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from features.encoders import Encoder
    from features.loading import EncoderRequest
    from features.series.table import SeriesSpec

__all__ = ["TILES_A_SLIDE", "images_expected", "load_encoder_for", "request_encoder"]

TILES_A_SLIDE = 200
"""A guess, made before any slide is opened."""

_IMAGES_A_SERIES = 40
_INSTALLED = "-"  # weights that are installed, where several backbones need a checkpoint each


def images_expected(specs: Sequence[SeriesSpec]) -> int:
    """Images of series: those that are listed, and a guess for folders that were not opened yet."""
    return sum(max(_IMAGES_A_SERIES, len(spec.listed)) for spec in specs)


def request_encoder(
    name: str,
    *,
    weights: list[Path] | None,
    device: str,
    batch: int,
    execution: str,
    n_tiles_expected: int,
) -> EncoderRequest:
    """What the options ask for.

    Parameters
    ----------
    name, weights
        Backbone, and a checkpoint for each of its parts; None for installed weights.
    device, batch, execution
        As on the command line.
    n_tiles_expected
        Tiles to be embedded; for few of them nothing is started that takes long to start.
    """
    from features.loading import EncoderRequest

    paths = tuple(None if str(path) == _INSTALLED else path.absolute() for path in weights or ())
    return EncoderRequest(
        name=name, weights=paths, device=device, batch_tiles=batch, execution=execution,
        n_tiles_expected=n_tiles_expected,
    )  # fmt: skip


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
    name, weights, device, batch, execution
        As for :func:`request_encoder`.
    n_slides
        Slides to be embedded; for few of them nothing is started that takes long to start.
    n_tiles_expected
        Tiles or images to be embedded, where their number is known better than from ``n_slides``.
    """
    return request_encoder(
        name, weights=weights, device=device, batch=batch, execution=execution,
        n_tiles_expected=n_tiles_expected or n_slides * TILES_A_SLIDE,
    ).load(bags_dir)  # fmt: skip
