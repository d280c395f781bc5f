"""Catalogue of encoders: input size, dim, parameters, licence, local weights, speed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import timm
import torch
from huggingface_hub import CacheNotFound, scan_cache_dir

from features.encoders.encoder import TimmEncoder, measure_dim
from features.encoders.model_config import resolve_model_config
from features.encoders.pathology import find_pathology_encoder
from features.encoders.preprocessing import resolve_preprocessing
from features.encoders.weights import (
    DEFAULT_BACKBONE,
    build_untrained,
    local_weights,
    pretrained_config,
    require_known,
    tags_command,
)
from features.errors import EncoderError

__all__ = [
    "COMMON_ENCODERS",
    "EncoderInfo",
    "encoder_info",
    "list_encoders",
    "measure_encoder",
]

COMMON_ENCODERS = (
    DEFAULT_BACKBONE,
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "convnext_tiny",
    "poolformer_s36",
    "poolformerv2_s36",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_224",
    "vit_small_patch14_dinov2",
)
"""Short list to begin with: small and medium models of several families, widely used."""


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """Properties of an encoder that are known without its weights.

    ``unusable`` is the reason if it cannot be used; the side of its square input, px, the length of
    an embedding and the number of weights without the classifier are then 0. ``licence`` is that of
    the weights as stated by timm or the model card. ``weights_here`` is ``package``, ``hub cache``,
    or empty if the weights are not on this machine. Of pathology encoders, ``mpp`` are the
    resolutions of their training tiles, µm/px, ``gated`` says that the hub asks for an agreement,
    and ``card`` and ``paper`` are their sources.
    """

    name: str
    input_px: int = 0
    dim: int = 0
    n_parameters: int = 0
    licence: str = ""
    weights_here: str = ""
    unusable: str = ""
    mpp: tuple[float, ...] = ()
    gated: bool = False
    card: str = ""
    paper: str = ""


def list_encoders(pattern: str | None = None) -> list[str]:
    """List the timm names that match a pattern with wildcards, e.g. ``*vit*``, alphabetically.

    A pattern with a dot searches names with tags. None lists widely used models, and those whose
    weights are in the hub's cache.

    Raises
    ------
    EncoderError
        If no name matches the pattern.
    """
    if pattern is None:
        return list(dict.fromkeys([*COMMON_ENCODERS, *_cached_names()]))
    if find_pathology_encoder(pattern):
        return [pattern]
    names: list[str] = timm.list_models(pattern, pretrained="." in pattern)
    if not names:
        require_known(pattern)  # its error names the closest matches
        raise EncoderError(
            f"backbone {pattern!r}",
            actual="timm knows no such tag of it",
            hint=f"{tags_command(pattern)} lists its tags.",
        )
    return names


def encoder_info(name: str) -> EncoderInfo:
    """Describe an encoder, with or without a tag in its name: input px, dimension, parameters.

    The network is built on torch's meta device, which computes nothing but shapes. A network whose
    output for one image is not of shape (1, dim), and a name that is unknown, have the reason in
    ``unusable``; no error is raised.
    """
    info = EncoderInfo(name=name, licence=_licence(name), weights_here=local_weights(name))
    if entry := find_pathology_encoder(name):
        info = replace(
            info, licence=entry.licence, mpp=entry.mpp, gated=entry.gated, card=entry.card,
            paper=entry.paper,
        )  # fmt: skip
    try:
        config = resolve_model_config(name)
        with torch.device("meta"):
            model = build_untrained(config).eval()
            side = resolve_preprocessing(model, stated=config.preprocessing).input_px
            dim = measure_dim(model, name, torch.empty(1, 3, side, side))
    except EncoderError as error:
        return replace(info, unusable=error.actual)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return replace(info, unusable=f"not known without weights ({reason[:80]})")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return replace(info, input_px=side, dim=dim, n_parameters=n_parameters)


def measure_encoder(
    name: str, *, device: torch.device, batch_tiles: int, execution: str = "eager"
) -> tuple[float, str]:
    """Measure an encoder with random weights on prepared batches.

    Returns tiles per second, and the runtime, e.g. ``eager float32 batch 16``.
    """
    torch.manual_seed(0)
    config = resolve_model_config(name)
    model = build_untrained(config)
    encoder = TimmEncoder(
        model, name=name, device=device, batch_tiles=batch_tiles, execution=execution,
        preprocessing=resolve_preprocessing(model, stated=config.preprocessing),
    )  # fmt: skip
    return encoder.measure(), encoder.execution


def _licence(name: str) -> str:
    config = pretrained_config(name)
    stated = str((config and config.license) or "")
    return "" if stated == "unknown" else stated


def _cached_names() -> list[str]:
    """List models, with tags, whose weights are in the hub's cache."""
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        return []
    names = [repo.repo_id.removeprefix("timm/") for repo in cached if repo.repo_id[:5] == "timm/"]
    return sorted(name for name in names if timm.is_model(name.split(".", maxsplit=1)[0]))
