"""Runtimes of a frozen network (eager, torch.compile, ONNX Runtime), checked against float32."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn import functional

from features.encoders import runtime_cache
from features.encoders.execution import EAGER, LARGEST_ERROR, Runtime, parse_execution
from features.encoders.exports import (
    EXPECTED_KEY,
    ONNX_PACKAGES,
    TILES_COMPARED,
    export_name,
    export_part_tiles,
    start_session,
)
from features.errors import EncoderError

__all__ = [
    "Network",
    "compile_model",
    "has_export",
    "in_parts",
    "in_precision",
    "start_runtime",
    "takes_any_number",
]

Network = Callable[[Tensor], Tensor]
"""Normalised pixels (batch, 3, side, side), float32, to embeddings (batch, dim), float32."""

_DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


_MOST_PART_TILES = 16
"""Tiles that go through a network together on a CPU: more are slower and take more memory."""

_LARGEST_EXPORT_BYTES = 1_900_000_000
"""Bytes of weights that fit into one ONNX file, which protobuf limits to 2 GiB."""

_ADVICE = "Use --execution eager, or auto, which takes the fastest that works."


def in_precision(execution: str, precision: str, device: torch.device) -> str:
    """Return a runtime in the precision that the encoder's name states, if it states one.

    Half precision changes embeddings by more than runtimes do. On a CPU, where it is never chosen,
    it must therefore be in the name, which bags keep in their fingerprint.

    Raises
    ------
    EncoderError
        If a runtime of half precision on a CPU is asked for by its name alone.
    """
    runtime, batch_tiles = (EAGER, None) if execution == "auto" else parse_execution(execution)
    if precision:
        return f"{runtime.engine} {precision}" + (f" batch {batch_tiles}" if batch_tiles else "")
    if device.type == "cpu" and runtime.precision != "float32":
        raise EncoderError(
            f"execution {execution!r}",
            actual=f"{runtime.precision} on a CPU, which changes embeddings",
            expected="the precision as part of the encoder",
            hint=f"Give --model-arg precision={runtime.precision} instead.",
        )
    return execution


def compile_model(
    model: nn.Module, runtime: Runtime, *, example: Tensor, cache_key: str = ""
) -> Network:
    """Prepare a frozen model for a runtime and compare its embeddings with eager float32.

    The example is one normalised batch, shape (batch, 3, side_px, side_px), float32, on the
    model's device, with sides in px; all later batches must have this shape. With ``cache_key``,
    which stands for network and weights, exports are kept in the cache.

    Raises
    ------
    EncoderError
        If the runtime does not work here or changes the embeddings; the message says why.
    """
    if runtime == EAGER:
        return model
    return start_runtime(model, runtime, example, cache_key)[0]


def takes_any_number(runtime: Runtime, device: torch.device) -> bool:
    """Return whether a runtime takes batches of any size, each tile still in the same shape."""
    return device.type == "cpu" and (runtime == EAGER or runtime.engine == "onnx")


def in_parts(
    network: Network, *, batch_tiles: int, pool: ThreadPoolExecutor | None = None
) -> Network:
    """Return a network that takes 16 tiles of a batch, shape (batch, 3, side, side), at a time.

    The last part is filled up with zeros, so that a tile does not depend on how many others there
    are: a few take the time of one part. Activations of a whole batch of 64 take a gigabyte on a
    CPU, where they are slower. Smaller ``batch_tiles`` are one part. The threads of ``pool`` take
    a part each.
    """
    part_tiles = min(_MOST_PART_TILES, batch_tiles)

    def run(pixels: Tensor) -> Tensor:
        parts = list(torch.split(pixels, part_tiles))
        n_missing = part_tiles - len(parts[-1])
        parts[-1] = functional.pad(parts[-1], (0, 0, 0, 0, 0, 0, 0, n_missing))
        done = map(network, parts) if pool is None else pool.map(network, parts)
        return torch.cat(list(done))[: len(pixels)]

    return run


def has_export(cache_key: str, example: Tensor) -> bool:
    """Return whether the cache has the ONNX export for batches of shape (batch, 3, side, side)."""
    shape = (_onnx_part_tiles(len(example)), *example.shape[1:])
    return bool(cache_key) and runtime_cache.exists(export_name(cache_key, shape))


def _onnx_part_tiles(batch_tiles: int) -> int:
    return export_part_tiles(batch_tiles, torch.get_num_threads())


def _in_precision(network: Network, runtime: Runtime) -> Network:
    dtype = _DTYPES[runtime.precision]
    if dtype is None:
        return network

    def run(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype=dtype):
            output: Tensor = network(pixels)
            return output.float()

    return run


def start_runtime(
    model: nn.Module, runtime: Runtime, example: Tensor, cache_key: str
) -> tuple[Network, float]:
    """Start a runtime; return its network and the relative error of its embeddings."""
    if runtime.engine == "onnx":
        _require_onnx(runtime, example.device, model)
    try:
        with _silenced():
            if runtime.engine == "onnx":
                network = _onnx_network(model, example, cache_key)
            else:
                is_compiled = runtime.engine == "compile"
                compiled = torch.compile(model, dynamic=False) if is_compiled else model
                network = _in_precision(compiled, runtime)
            with torch.inference_mode():
                expected = model(example[:TILES_COMPARED]).float()
                error = _relative_error(network(example)[:TILES_COMPARED], expected)
    except Exception as failure:
        # Exporters and compilers raise errors of any type, depending on model and machine.
        reason = next(iter(str(failure).strip().splitlines()), "") or type(failure).__name__
        raise EncoderError(
            f"execution '{runtime}'",
            actual=f"it cannot run here ({reason[:160]})",
            hint=_ADVICE,
        ) from failure
    limit = LARGEST_ERROR[runtime.precision]
    if not error <= limit:  # True for NaN.
        raise EncoderError(
            f"execution '{runtime}'",
            actual=f"its embeddings are {error:.1e} off",
            expected=f"at most {limit:.0e} of plain float32",
            hint=_ADVICE,
        )
    return network, error


def _require_onnx(runtime: Runtime, device: torch.device, model: nn.Module) -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise EncoderError(
            f"execution '{runtime}'",
            actual=f"not installed: {', '.join(missing)}",
            hint="Install them: pip install 'mil-slides[onnx]'",
        )
    if device.type != "cpu" or runtime.precision != "float32":
        raise EncoderError(
            f"execution '{runtime}'",
            actual=f"{runtime.precision} on {device}",
            expected="float32 on cpu",
            hint=_ADVICE,
        )
    n_bytes = sum(one.numel() * one.element_size() for one in model.parameters())
    if n_bytes > _LARGEST_EXPORT_BYTES:
        raise EncoderError(
            f"execution '{runtime}'",
            actual=f"{n_bytes / 1e9:.1f} GB of weights",
            expected=f"at most {_LARGEST_EXPORT_BYTES / 1e9:g} GB, as ONNX can hold",
            hint=_ADVICE,
        )


def _onnx_network(model: nn.Module, example: Tensor, cache_key: str) -> Network:
    """Run with ONNX Runtime on as many threads as torch uses; export what the cache has not."""
    part = example[: _onnx_part_tiles(len(example))]
    name = export_name(cache_key, tuple(part.shape))
    exported = runtime_cache.load(name) if cache_key else None
    if exported is not None:
        with suppress(Exception):  # A damaged entry is made again.
            return _run_export(exported, example)
    exported = _export(model, part)
    network = _run_export(exported, example)
    if cache_key:
        runtime_cache.store(name, exported)
    return network


def _run_export(exported: bytes, example: Tensor) -> Network:
    """Return a network that runs an export.

    Each thread takes a part of the batch through all layers: threads that share a layer would wait
    for each other after it, and for the slowest wherever other processes use the cores.
    """
    n_threads, part_tiles = torch.get_num_threads(), _onnx_part_tiles(len(example))
    n_at_once = min(n_threads, -(-len(example) // part_tiles))
    session = start_session(exported, n_threads=max(1, n_threads // n_at_once))

    def run_part(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pixels": pixels.contiguous().numpy()})[0])

    pool = ThreadPoolExecutor(n_at_once, thread_name_prefix="backbone-part")
    return in_parts(run_part, batch_tiles=part_tiles, pool=pool)


def _export(model: nn.Module, part: Tensor) -> bytes:
    """Export a model to ONNX for batches of the shape of ``part``, (batch, 3, side, side) in px.

    Eager embeddings of its first tiles are stored with it, for :mod:`features.encoders.exported`.
    """
    with torch.no_grad():
        program = torch.onnx.export(
            model, (part.contiguous(),), dynamo=True, verbose=False, input_names=["pixels"]
        )
        expected = model(part[:TILES_COMPARED]).float()
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    proto = program.model_proto
    proto.metadata_props.add(key=EXPECTED_KEY, value=json.dumps(expected.tolist()))
    content: bytes = proto.SerializeToString()
    return content


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest distance of an embedding, shape (n, dim), from the expected one."""
    lengths = expected.norm(dim=1).clamp(min=1e-12)
    return float(((actual.float() - expected).norm(dim=1) / lengths).max())


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence logs and warnings of exporters and compilers; failures still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
