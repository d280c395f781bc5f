"""Checkpoints of encoders: reading without running code, unwrapping, keys of other libraries."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor

from features.errors import EncoderError
from features.utils.file_kinds import START_BYTES, find_foreign_kind
from features.utils.files import path_exists
from features.utils.torch_io import safe_torch_load

__all__ = [
    "convert_transformers_keys",
    "first_line",
    "hash_weights",
    "read_checkpoint",
    "select_network",
]

_WRAPPERS = (
    "state_dict_ema", "model_ema", "teacher", "target_encoder", "state_dict", "model",
    "model_state_dict", "encoder_q", "student", "backbone",
)  # fmt: skip
"""Names under which training scripts store a state dict; of several, the first is taken."""

_PREFIXES = (
    "module.", "_orig_mod.", "teacher.", "student.", "encoder_q.", "base_encoder.", "model.",
    "backbone.", "encoder.", "timm_model.", "feature_extractor.",
)  # fmt: skip
"""Prefixes of keys that wrappers of the network leave behind."""


_LEAST_BYTES = 2
"""Bytes of a number of half precision; fewer change embeddings."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a torch file; nothing in it is executed.

    Wrappers such as ``teacher`` or ``state_dict`` and prefixes such as ``module.`` are taken off,
    tensors of transformers' vision models and the blocks of DINOv2's training get timm's names, and
    half precision becomes float32.

    Raises
    ------
    EncoderError
        If the file is missing, truncated, unreadable, or holds no named tensors.
    """
    if not path.is_file():
        is_folder = path_exists(path) and path.is_dir()
        raise EncoderError(
            path,
            actual="a folder, no file" if is_folder
            else "no regular file" if path_exists(path)
            else "there is no such file",
            expected="a checkpoint",
            hint="Name the file in it, or give it with --backbone local-dir:FOLDER." * is_folder,
        )  # fmt: skip
    try:
        content = load_file(path) if _is_safetensors(path) else safe_torch_load(path)
    except Exception as error:  # The unpickler raises errors of any type on damaged data.
        reason, hint = _why_unreadable(path, error)
        raise EncoderError(
            path,
            actual=f"not readable as weights ({reason})",
            expected="safetensors, or a torch file of tensors only",
            hint=hint,
        ) from error
    if not isinstance(content, dict):
        raise EncoderError(path, actual=f"a {type(content).__name__}", expected="a state dict")
    try:
        state = _unwrap(content)
    except RecursionError:  # It holds itself.
        state = {}
    if not state:
        parts = ", ".join(repr(str(key)) for key in list(content)[:4])
        raise EncoderError(
            path,
            actual=f"no single state dict under its names ({parts})" if parts else "empty",
            expected="tensors by name, of one network",
            hint="Save the state_dict of the network alone.",
        )
    state = convert_transformers_keys(_without_chunks(_strip_prefixes(state)))
    for key, value in state.items():
        if value.is_floating_point() and value.element_size() < _LEAST_BYTES:
            raise EncoderError(
                path,
                actual=f"{key!r} is of {value.dtype}",
                expected="weights of 16 bits or more",
                hint="Use the checkpoint of another epoch, or one that is not quantised.",
            )
        if value.layout != torch.strided or value.is_meta:
            raise EncoderError(
                path,
                actual=f"{key!r} is {'without values' if value.is_meta else 'sparse'}",
                expected="dense tensors",
                hint="Save the state_dict of the network as it runs.",
            )
    return {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by its first bytes, else by its name.

    safetensors begins with the length of its header, 8 bytes, and the JSON of the header.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):  # torch's archive
        return False
    return start[8:] == b"{" or path.suffix.lower() == ".safetensors"


def _why_unreadable(path: Path, error: Exception) -> tuple[str, str]:
    """Return why a checkpoint could not be read, and what to do."""
    if isinstance(error, OSError):
        return error.strerror or first_line(error), ""
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    kind, hint = find_foreign_kind(start)
    if start.lstrip().startswith(b"{"):
        kind, hint = "JSON", "Give the file of the weights; join those of several into one."
    if kind:
        return kind, hint
    if "TorchScript" in str(error):
        return "a TorchScript program", "Save the state_dict alone."
    if isinstance(error, UnpicklingError):
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            return f"it needs code to be run: {found[1]}", "Save the state_dict alone."
        return "no file of torch", "Fetch it again if it was downloaded."
    return first_line(error), "Fetch it again if it was downloaded."


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes, independent of the file format."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 160 characters of whole words."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return textwrap.shorten(line, 160, placeholder=" …") if " " in line else line[:160]


def _unwrap(content: Mapping[object, object]) -> dict[str, Tensor]:
    """Return the tensors of the innermost known wrapper."""
    inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
    if inner is None and not _holds_tensors(content):
        near = [value for value in content.values() if _holds_tensors(value)]
        others = near or [value for value in content.values() if _leads_to_tensors(value)]
        inner = others[0] if len(others) == 1 else None
    if isinstance(inner, dict):
        return _unwrap(inner)
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(one, Tensor) for one in value.values())


def _leads_to_tensors(value: object) -> bool:
    return _holds_tensors(value) or (
        isinstance(value, Mapping) and any(map(_leads_to_tensors, value.values()))
    )


def select_network(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors below the one prefix under which a state dict has a network's names.

    At least half of the expected names must be there. Without such a prefix, or with several, the
    state dict is returned as it is.
    """
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for n_before in range(len(parts)):
            if ".".join(parts[n_before:]) in expected:
                counts[".".join([*parts[:n_before], ""]) if n_before else ""] += 1
    found = [prefix for prefix, count in counts.items() if 2 * count >= len(expected)]
    if len(found) != 1:
        return state
    (prefix,) = found
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before all keys of the network.

    A checkpoint of a whole method, e.g. MoCo, holds other parts beside the network: of the keys
    with a prefix only those of its first group are kept, if it is most of the file.
    """
    while True:
        for prefix in _PREFIXES:
            inside = {key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix)}
            # transformers keeps its blocks, but not its embeddings, under encoder.
            if len(inside) * 3 > len(state) and not _is_part(prefix, state):
                state = inside
                break
        else:
            return state


def _is_part(prefix: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a prefix is the name of a part of the network, which has others beside it."""
    return prefix == "encoder." and any(key.startswith("embeddings.") for key in state)


def _without_chunks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the chunk of DINOv2's ``blocks.CHUNK.BLOCK.``, which numbers blocks through."""
    if "cls_token" not in state:  # EfficientNets have stages of blocks.
        return state
    chunked = re.compile(r"blocks\.\d+\.(\d+\.)")
    return {chunked.sub(r"blocks.\1", key, count=1): value for key, value in state.items()}


_TRANSFORMERS_BLOCK = re.compile(r"(?:encoder\.)?layers?\.(\d+)\.(.+)\.(weight|bias|lambda1)")
_TRANSFORMERS_PARTS = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "norm1": "norm1", "norm2": "norm2",
    "attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1", "mlp.weights_out": "mlp.fc2", "mlp.down_proj": "mlp.fc2",
    "layer_scale1": "ls1", "layer_scale2": "ls2",
}  # fmt: skip
_TRANSFORMERS_JOINED = {
    "attention.attention.query": ("attn.qkv", "query", ("query", "key", "value")),
    "attention.q_proj": ("attn.qkv", "q_proj", ("q_proj", "k_proj", "v_proj")),
    "mlp.gate_proj": ("mlp.fc1", "gate_proj", ("gate_proj", "up_proj")),
}
"""First of several matrices that timm has as one: its name there, and the names to join."""
_TRANSFORMERS_JOINED_OTHERS = {
    name for _, _, names in _TRANSFORMERS_JOINED.values() for name in names
}
_TRANSFORMERS_OUTER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}


def convert_transformers_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with timm's names if it is of a ViT or DINOv2 of transformers.

    Query, key and value become one matrix, and with register tokens the position of the class
    token is added to it, since timm has none for it then. Other state dicts are returned as they
    are; the pooler and the mask token, which embeddings do not use, are dropped.
    """
    prefix = next((p for p in ("vit.", "dinov2.", "") if f"{p}embeddings.cls_token" in state), None)
    if prefix is None:
        return state
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if new := _TRANSFORMERS_OUTER.get(key):
            converted[new] = value
        elif match := _TRANSFORMERS_BLOCK.fullmatch(key):
            block, part, leaf = match.groups()
            if part in _TRANSFORMERS_JOINED:
                new, first, names = _TRANSFORMERS_JOINED[part]
                joined = [state.get(key.replace(first, name)) for name in names]
                tensors = [tensor for tensor in joined if tensor is not None]
                converted[f"blocks.{block}.{new}.{leaf}"] = torch.cat(tensors)
            elif part in _TRANSFORMERS_PARTS:
                leaf = "gamma" if leaf == "lambda1" else leaf
                converted[f"blocks.{block}.{_TRANSFORMERS_PARTS[part]}.{leaf}"] = value
            elif part.rpartition(".")[2] not in _TRANSFORMERS_JOINED_OTHERS:
                converted[key] = value
        elif not key.startswith("pooler.") and key != "embeddings.mask_token":
            converted[key] = value
    if "reg_token" in converted:
        positions = converted["pos_embed"]
        converted["cls_token"] = converted["cls_token"] + positions[:, :1]
        converted["pos_embed"] = positions[:, 1:]
    return converted
