"""Configuration of an encoder: architecture, arguments, pooling, normalisation, their source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm.layers
from timm.layers.create_act import get_act_layer
from timm.layers.create_norm import get_norm_layer
from torch import nn

from features.encoders.hub import cached_file, download_file, require_hub_id
from features.encoders.names import WEIGHT_FILES, name_with_args, split_model_args
from features.encoders.pathology import PathologyEncoder, find_pathology_encoder, require_of_timm
from features.encoders.preprocessing import require_colours, require_input
from features.errors import CONTENT_ERRORS, EncoderError
from features.utils.files import missing_folder

__all__ = [
    "POOLINGS",
    "PRECISIONS",
    "ModelConfig",
    "layer_args",
    "resolve_model_config",
]

PRECISIONS = ("float32", "bfloat16", "float16")
"""Of a network; all but float32 are autocast."""

POOLINGS = ("token", "mean", "token+mean")
"""Class token; mean of the patch tokens; both joined. Register tokens are left out of the mean."""

_PREPROCESSING = ("mean", "std", "input_px", "interpolation")
"""Arguments that describe the preprocessing, not the network."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What an encoder is built from.

    Attributes
    ----------
    name
        As given to ``--backbone``, with its arguments; that of the registry if it is there.
    architecture, model_args
        timm architecture, with or without tag, and the arguments to build it with.
    pooling
        One of :data:`POOLINGS`, or empty for the pooling of the model itself.
    precision
        One of :data:`PRECISIONS`, or empty for that of the runtime.
    preprocessing
        ``mean`` and ``std`` of the channels (0 to 1), ``input_px`` and ``interpolation`` as far as
        they are stated; the model's own otherwise.
    source
        Where the preprocessing was stated: ``timm``, a model card, a ``config.json``.
    hub_id, weights_files
        Repository of the hub and names of its weights; empty for models of timm.
    weights_path
        Local checkpoint, or None.
    without_file
        The configuration that holds if the ``config.json`` beside a checkpoint belongs to other
        weights; None if none was read.
    """

    name: str
    architecture: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = ""
    precision: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    source: str = "timm"
    hub_id: str = ""
    weights_files: Sequence[str] = ()
    weights_path: Path | None = None
    without_file: ModelConfig | None = None


def resolve_model_config(name: str, *, weights_path: Path | None = None) -> ModelConfig:
    """Return the configuration of a name; what only the hub knows is fetched from it.

    A ``config.json`` of timm beside a checkpoint belongs to it, if the weights fit; a published
    pathology encoder is what its card states all the same. Arguments in the name, as of
    :mod:`features.encoders.names`, override all else.

    Raises
    ------
    EncoderError
        If a configuration is missing, unreadable or not of timm, or an argument has no such value.
    """
    name, model_args = split_model_args(name)
    source, _, rest = name.partition(":")
    config = ModelConfig(name=name, architecture=name, weights_path=weights_path)
    beside = _beside(config)
    if entry := find_pathology_encoder(name):
        config = replace(
            config, name=entry.name, architecture=entry.architecture, model_args=entry.model_args,
            pooling=entry.pooling, hub_id=entry.hub_id,
            weights_files=entry.weights_files,
            source=entry.card,
            preprocessing={
                "mean": entry.normalisation[0], "std": entry.normalisation[1],
                "input_px": entry.input_px, "interpolation": entry.interpolation,
            },
        )  # fmt: skip
        stated = beside and _from_json(config, beside)
        if stated and not _is_published(stated, entry):
            # JSON cannot hold the layers of the card.
            layers = {k: v for k, v in entry.model_args.items() if k.endswith("_layer")}
            config = replace(
                stated, model_args=layers | dict(stated.model_args), without_file=config
            )
    elif source == "local-dir" and rest:
        config = _from_folder(config, Path(rest), beside)
    elif source in ("hf-hub", "hf_hub") and rest:
        require_hub_id(rest)
        require_of_timm(rest)
        path = beside or cached_file(rest, ["config.json"]) or download_file(rest, ["config.json"])
        config = replace(_from_json(config, path), hub_id=rest)
    elif beside:
        stated = _from_json(config, beside)
        if stated.architecture.split(".")[0] == name.split(".")[0]:
            config = replace(stated, without_file=config)
    config = _with_args(config, model_args)
    require_colours(f"backbone {config.name!r}", config.preprocessing, source=config.source)
    return config


def layer_args(config: ModelConfig) -> dict[str, Any]:
    """Return the model arguments with the layers that they name, e.g. ``SwiGLUPacked``.

    Names are those of classes or timm's own, e.g. ``silu``, ``gelu_tanh``, ``layernorm``, and null
    is the layer of the architecture. ``LayerNorm:1e-12`` is a layer norm with that epsilon.

    Raises
    ------
    EncoderError
        If neither timm nor torch has a layer of a name.
    """
    return {
        key: _layer(value, config.name) if key.endswith("_layer") and value is not None else value
        for key, value in config.model_args.items()
    }


def _layer(value: Any, name: str) -> Any:
    class_name, _, epsilon = str(value).partition(":")
    for find in (
        partial(getattr, timm.layers), partial(getattr, nn),
        get_act_layer, get_norm_layer,
    ):  # fmt: skip
        try:
            layer: Any = find(class_name)
        except (AttributeError, KeyError):
            continue
        made = layer.func if isinstance(layer, partial) else layer  # some of timm's are partials
        if isinstance(made, type) and issubclass(made, nn.Module):
            break
    else:
        raise EncoderError(
            f"backbone {name!r}",
            actual=f"no layer {class_name!r}",
            expected="a layer of timm.layers or torch.nn, e.g. SwiGLUPacked or SiLU",
        )
    return partial(layer, eps=float(epsilon)) if epsilon else layer


def _beside(config: ModelConfig) -> Path | None:
    """Return the ``config.json`` beside a checkpoint; None if there is none, or not of timm.

    That of transformers or of a training script has no ``architecture``, and states nothing here.
    """
    if config.weights_path is None:
        return None
    path = config.weights_path.with_name("config.json")
    if not path.is_file():
        return None
    try:
        content = _read_json(path)
    except CONTENT_ERRORS:
        return path  # Reading it says what is wrong with it.
    return None if isinstance(content, dict) and "architecture" not in content else path


def _is_published(stated: ModelConfig, entry: PathologyEncoder) -> bool:
    """Whether a configuration is of the network that a model card describes.

    Some repositories have the mean, deviation and size of the network that training began with in
    their ``config.json``, other than the card's.
    """
    own = {key: value for key, value in stated.model_args.items() if key != "global_pool"}
    same_args = all(key in entry.model_args and entry.model_args[key] == own[key] for key in own)
    return stated.architecture.split(".")[0] == entry.architecture and same_args


def _from_folder(config: ModelConfig, folder: Path, beside: Path | None) -> ModelConfig:
    """Read a folder with ``config.json`` and weights, as timm and the hub lay it out.

    If the folder has moved since, the configuration beside a checkpoint that is given serves.
    """
    path = folder / "config.json"
    if beside and not path.is_file():
        path = beside
    if not path.is_file():
        raise EncoderError(
            folder,
            actual="no config.json" if folder.is_dir() else missing_folder(folder),
            expected="a folder with config.json and " + " or ".join(WEIGHT_FILES),
            hint=f"If it has moved, give the weights where they are now, with config.json beside "
            f"them: --weights FOLDER/{WEIGHT_FILES[0]}.",
        )
    stated = _from_json(config, path)
    if config.weights_path is not None:
        return stated
    weights = next(
        (folder / file for file in stated.weights_files if (folder / file).is_file()), None
    )
    if weights is None:
        raise EncoderError(
            folder,
            actual="no weights",
            expected=" or ".join(stated.weights_files),
            hint="Copy them there, or give them with --weights FILE.",
        )
    return replace(stated, weights_path=weights)


def _read_json(path: Path) -> Any:
    # Editors on Windows put a byte order mark before UTF-8.
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _from_json(config: ModelConfig, path: Path) -> ModelConfig:
    """Read timm's ``config.json``."""
    try:
        content = _read_json(path)
        architecture = content["architecture"]
        stated = content.get("pretrained_cfg", content)
        file = Path(stated.get("hf_hub_filename") or stated.get("file") or "").name
        preprocessing = {
            "mean": stated.get("mean"), "std": stated.get("std"),
            "interpolation": stated.get("interpolation"),
        }  # fmt: skip
        size = list(stated.get("input_size") or ())
        model_args = dict(content.get("model_args") or {})
    except CONTENT_ERRORS as error:
        raise EncoderError(
            path,
            actual="not a configuration of timm",
            expected="JSON with 'architecture', 'model_args' and 'pretrained_cfg'",
            hint="Name the architecture with --backbone and its arguments with --model-arg "
            "KEY=VALUE, and give the weights with --weights.",
        ) from error
    if size:
        if len(size) != 3 or size[0] != 3 or size[1] != size[2] or type(size[2]) is not int:
            raise EncoderError(
                path,
                actual=f"input_size {stated['input_size']!r}",
                expected="three colours of a square in px, e.g. [3, 224, 224]",
                hint="Change it there; other inputs are not supported.",
            )
        preprocessing["input_px"] = size[2]
    pooling = model_args.pop("global_pool", stated.get("global_pool") or content.get("global_pool"))
    model_args.pop("num_classes", None)
    tag = str(stated.get("tag") or "")
    return replace(
        config,
        architecture=str(architecture).removesuffix(f".{tag}") if tag else str(architecture),
        model_args=model_args | ({"global_pool": pooling} if pooling is not None else {}),
        preprocessing={key: value for key, value in preprocessing.items() if value},
        weights_files=[file, *WEIGHT_FILES] if file else WEIGHT_FILES,
        source=path.name,
    )


def _with_args(config: ModelConfig, model_args: Mapping[str, Any]) -> ModelConfig:
    """Apply what the user stated."""
    if not model_args:
        return config
    if config.without_file is not None:
        config = replace(config, without_file=_with_args(config.without_file, model_args))
    chosen = {}
    for key, known in (("pooling", POOLINGS), ("precision", PRECISIONS)):
        chosen[key] = str(model_args.get(key, getattr(config, key)))
        if chosen[key] and chosen[key] not in known:
            raise EncoderError(
                f"--model-arg {key}", actual=f"{key} {chosen[key]!r}", expected=", ".join(known)
            )
    stated = {key: model_args[key] for key in _PREPROCESSING if key in model_args}
    require_input("--model-arg", stated)
    others = {k: v for k, v in model_args.items() if k not in chosen and k not in stated}
    return replace(
        config,
        name=name_with_args(config.name, model_args),
        pooling=chosen["pooling"],
        precision=chosen["precision"],
        model_args={**config.model_args, **others},
        preprocessing={**config.preprocessing, **stated},
        source="--model-arg" if {"mean", "std"} & set(stated) else config.source,
    )
