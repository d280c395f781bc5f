"""Encoders of installed packages, found by the entry point ``mil.encoders``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import timm
from torch import nn

from features.encoders.checkpoints import first_line
from features.encoders.names import split_model_args
from features.encoders.pathology import find_pathology_encoder
from features.encoders.preprocessing import Preprocessing, require_colours, require_input
from features.errors import EncoderError

__all__ = ["ENTRY_POINT_GROUP", "PluginEncoder", "find_plugin"]

ENTRY_POINT_GROUP = "mil.encoders"
"""Group of entry points; the name of one is what ``--backbone`` takes."""


@dataclass(frozen=True, kw_only=True)
class PluginEncoder:
    """An encoder that a package provides.

    ``model`` takes normalised images, float32 of shape (batch, 3, input_px, input_px) in px, and
    returns vectors, shape (batch, dim). ``source`` says where the preprocessing comes from.
    """

    model: nn.Module
    preprocessing: Preprocessing
    source: str = "its package"


def find_plugin(name: str, *, weights_path: Path | None) -> PluginEncoder | None:
    """Return the encoder of this name that a package provides; None if there is none.

    The entry point is called with ``weights_path`` and the arguments in the name as keywords.

    Raises
    ------
    EncoderError
        If the package fails or returns something else, or the name is that of another encoder too.
    """
    name, model_args = split_model_args(name)
    points = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name]
    if not points:
        return None
    packages = [point.value if point.dist is None else point.dist.name for point in points]
    package = packages[0]
    _require_one_encoder(name, packages)
    where = f"backbone {name!r} of {package}"
    try:
        encoder = points[0].load()(weights_path=weights_path, **model_args)
    except EncoderError:
        raise
    except (Exception, SystemExit) as error:  # The code is not ours.
        raise EncoderError(
            where,
            actual=f"it could not be loaded ({type(error).__name__}: {first_line(error)})",
            expected=f"a function that returns a {PluginEncoder.__name__}",
        ) from error
    if not isinstance(encoder, PluginEncoder):
        raise EncoderError(
            where,
            actual=f"it returned a {type(encoder).__name__}",
            expected=f"a features.encoders.plugins.{PluginEncoder.__name__}",
        )
    for key, kind in (("model", nn.Module), ("preprocessing", Preprocessing)):
        if not isinstance(given := getattr(encoder, key), kind):
            raise EncoderError(
                where,
                actual=f"its {key} is a {type(given).__name__}",
                expected=f"a {kind.__module__}.{kind.__name__}",
            )
    require_colours(where, vars(encoder.preprocessing), source=encoder.source)
    require_input(where, vars(encoder.preprocessing))
    return encoder


def _require_one_encoder(name: str, packages: Sequence[str]) -> None:
    """Raise EncoderError where a name that packages provide has another meaning too."""
    others = []
    if find_pathology_encoder(name) is not None:
        others.append("the registry of pathology encoders")
    if timm.is_model(name.partition(".")[0]):
        others.append("timm")
    if len(packages) + len(others) > 1:
        raise EncoderError(
            f"backbone {name!r}",
            actual=f"an encoder of {' and of '.join([*packages, *others])}",
            expected="a name of one encoder",
            hint=f"Rename the entry point of {packages[-1]}, or uninstall it.",
        )
