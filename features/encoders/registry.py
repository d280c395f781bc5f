"""What backbones there are: input, dim, parameters, licence, weights here, speed here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import timm
import torch
from huggingface_hub import CacheNotFound, scan_cache_dir
from timm.models import get_pretrained_cfg

from features.encoders.encoder import TimmEncoder, measure_dim
from features.encoders.preprocessing import resolve_preprocessing
from features.encoders.weights import DEFAULT_BACKBONE, build_untrained, require_known, weights_here
from features.errors import EncoderError

__all__ = [
    "WELL_TRIED",
    "EncoderInfo",
    "encoder_info",
    "list_encoders",
    "measure_backbone",
]

WELL_TRIED = (
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
"""A short list to begin with: small and middling, of several families, widely used."""


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What is known of a backbone without its weights."""

    name: str
    """Name in timm."""
    input_px: int = 0
    """Side of the square it sees, px; 0 if it cannot serve."""
    dim: int = 0
    """Length of an embedding; 0 if it cannot serve."""
    n_parameters: int = 0
    """Weights without the classifier; 0 if it cannot serve."""
    licence: str = ""
    """Licence of the weights as timm states it; empty where it does not."""
    weights_here: str = ""
    """``package``, ``hub cache``, or empty where they are not on this machine."""
    unusable: str = ""
    """Why it cannot serve; empty if it can."""


def list_encoders(pattern: str | None = None) -> list[str]:
    """Names in timm, in alphabetical order.

    Parameters
    ----------
    pattern
        Name with wildcards, e.g. ``*vit*``; with a dot, names with tags are searched. Without a
        pattern: well-tried ones, and those whose weights are in the hub's cache.

    Raises
    ------
    EncoderError
        If nothing fits the pattern.
    """
    if pattern is None:
        return list(dict.fromkeys([*WELL_TRIED, *_cached_names()]))
    found: list[str] = timm.list_models(pattern, pretrained="." in pattern)
    if not found:
        require_known(pattern)  # says what comes close
        raise EncoderError(
            f"backbone {pattern!r}",
            actual="timm knows no such name",
            hint="Use wildcards, e.g. 'mil backbones \"*vit*\"'.",
        )
    return found


def encoder_info(name: str) -> EncoderInfo:
    """What is known of a backbone, from a copy of it without memory for its weights.

    Nothing is loaded or computed: the network is laid out on torch's meta device, which knows
    shapes alone. One that does not give one vector an image is told in ``unusable``.

    Parameters
    ----------
    name
        Name in timm, with or without a tag.
    """
    about = EncoderInfo(name=name, licence=_licence(name), weights_here=weights_here(name))
    try:
        with torch.device("meta"):
            model = build_untrained(name).eval()
            side = resolve_preprocessing(model).input_px
            dim = measure_dim(model, name, torch.empty(1, 3, side, side))
    except EncoderError as error:
        return replace(about, unusable=error.actual)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return replace(about, unusable=f"not known without weights ({reason[:80]})")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return replace(about, input_px=side, dim=dim, n_parameters=n_parameters)


def measure_backbone(
    name: str, *, device: torch.device, batch_tiles: int, execution: str = "eager"
) -> tuple[float, str]:
    """Tiles a second through a backbone with random weights, on batches that lie ready.

    Parameters
    ----------
    name
        Name in timm, with or without a tag.
    device
        Where it shall run.
    batch_tiles
        Tiles the network sees at once.
    execution
        As for :func:`features.encoders.encoder.load_encoder`.

    Returns
    -------
    tuple
        Tiles a second, and how the backbone ran, e.g. ``eager float32 batch 16``.
    """
    torch.manual_seed(0)
    model = build_untrained(name)
    encoder = TimmEncoder(
        model, name=name, preprocessing=resolve_preprocessing(model), device=device,
        batch_tiles=batch_tiles, execution=execution,
    )  # fmt: skip
    return encoder.measure(), encoder.execution


def _licence(name: str) -> str:
    config = get_pretrained_cfg(name, allow_unregistered=True)
    stated = str((config and config.license) or "")
    return "" if stated == "unknown" else stated


def _cached_names() -> list[str]:
    """Models whose weights timm fetched from the hub before, with their tags."""
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        return []
    names = [repo.repo_id.removeprefix("timm/") for repo in cached if repo.repo_id[:5] == "timm/"]
    return sorted(name for name in names if timm.is_model(name.split(".", maxsplit=1)[0]))
