"""Ways to run a frozen network on this machine, each checked against plain float32 before use."""

from __future__ import annotations

import importlib.util
import logging
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from features.errors import EncoderError

__all__ = [
    "EAGER",
    "Network",
    "Runtime",
    "RuntimeChoice",
    "RuntimeTrial",
    "candidate_runtimes",
    "compile_model",
    "measure_network",
    "parse_execution",
    "select_runtime",
]

Network = Callable[[Tensor], Tensor]
"""Normalised pixels (batch, 3, side, side), float32, to embeddings (batch, dim), float32."""

_PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}

_LARGEST_ERROR = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-2}
"""Largest relative distance of an embedding from plain float32. Half precision rounds every
product to 3e-4 (float16) or 2e-3 (bfloat16); one part in a hundred of an embedding's length is
what may be left of it."""

_START_S = {"eager": 0.0, "onnx": 10.0, "compile": 60.0}
"""What it takes to start a way, s: an assumption, used only to leave out what cannot pay back."""

_BEST_GAIN = 4.0
"""A way is not expected to be more than so many times faster than plain float32."""

_MEASURED_S = 1.0
_LEAST_BATCHES, _MOST_BATCHES = 2, 50
_TILES_COMPARED = 4

_FEW_BATCHES = 4
"""A job of so few batches is done in about the time that measuring takes."""

_ADVICE = "Use --execution eager, or auto, which takes the fastest that works."


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One way to run a network."""

    engine: str
    """``eager`` (torch as it is), ``compile`` (torch.compile), ``onnx`` (ONNX Runtime, CPU)."""
    precision: str = "float32"
    """``float32``; ``float16`` or ``bfloat16`` are autocast, on CUDA only."""

    def __str__(self) -> str:
        """As it is written down, e.g. ``onnx float32``."""
        return f"{self.engine} {self.precision}"


EAGER = Runtime(engine="eager")
"""The way all others are checked against."""


@dataclass(frozen=True, kw_only=True)
class RuntimeTrial:
    """What came of trying one way."""

    way: Runtime
    """The way."""
    start_s: float = math.nan
    """Seconds to export, compile and check it; NaN if it was not started."""
    tiles_per_s: float = math.nan
    """Tiles a second on batches that lie ready; NaN if it was not measured."""
    relative_error: float = math.nan
    """Largest distance of an embedding from plain float32, relative to its length."""
    refused: str = ""
    """Why it may not be chosen; empty if it may."""


@dataclass(frozen=True, kw_only=True)
class RuntimeChoice:
    """The fastest way that is right, and how it was found."""

    way: Runtime
    """The way chosen."""
    network: Network
    """The network, run in that way."""
    trials: tuple[RuntimeTrial, ...]
    """All ways that were looked at, in the order of looking."""


def parse_execution(text: str) -> tuple[Runtime, int | None]:
    """Way and batch of a text such as ``onnx``, ``compile float16`` or ``eager float32 batch 64``.

    Returns
    -------
    tuple
        The way, and the batch in tiles, or None where the text does not say.

    Raises
    ------
    EncoderError
        If there is no such way.
    """
    match = re.fullmatch(r"(\w+)(?: (\w+))?(?: batch (\d+))?", text)
    if match is None or match[1] not in _START_S or (match[2] or "float32") not in _PRECISIONS:
        raise EncoderError(
            f"execution {text!r}",
            actual="no such way to run a backbone",
            expected=f"auto, {', '.join(_START_S)}, or one of these with a precision "
            f"({', '.join(_PRECISIONS)})",
        )
    batch_tiles = int(match[3]) if match[3] else None
    return Runtime(engine=match[1], precision=match[2] or "float32"), batch_tiles


def candidate_runtimes(device: torch.device) -> list[Runtime]:
    """Ways worth trying on a kind of device, plain float32 first, then the cheapest to start.

    bfloat16 on a CPU is not among them: its embeddings of the default backbone are 6 % off, and
    without units for it, it is ten times slower.
    """
    if device.type == "cuda":
        half = ["float16"]
        if torch.cuda.is_bf16_supported(including_emulation=False):
            half.append("bfloat16")
        precisions = [*half, "float32"]
        reduced = [Runtime(engine="eager", precision=name) for name in half]
        return [EAGER, *reduced, *(Runtime(engine="compile", precision=p) for p in precisions)]
    if device.type == "cpu":
        return [EAGER, Runtime(engine="onnx"), Runtime(engine="compile")]
    return [EAGER]


def compile_model(model: nn.Module, way: Runtime, *, example: Tensor) -> Network:
    """A frozen model, made ready to run in one way and compared with plain float32.

    Parameters
    ----------
    model
        In evaluation mode, on its device.
    way
        How to run it.
    example
        Pixels of one batch, shape (batch, 3, side, side), float32, normalised; all later batches
        have this shape.

    Raises
    ------
    EncoderError
        If it cannot run this way here, or gives other embeddings; the message says why.
    """
    if way == EAGER:
        return model
    return _start(model, way, example)[0]


def select_runtime(
    model: nn.Module,
    *,
    example: Tensor,
    ways: Sequence[Runtime] | None = None,
    n_tiles_expected: int | None = None,
) -> RuntimeChoice:
    """Try the ways on this machine and take the fastest that gives the right embeddings.

    Each way is started, compared with plain float32 on the example and timed for about a second.
    Starting costs seconds (ONNX) to a minute (compilation), so where the number of tiles is known,
    ways whose start cannot pay back are not tried.

    Parameters
    ----------
    model
        In evaluation mode, on its device.
    example
        Pixels of one batch, shape (batch, 3, side, side), float32, normalised.
    ways
        Ways to try; all that make sense on the device by default.
    n_tiles_expected
        Tiles that are to be embedded, where known.
    """
    if n_tiles_expected is not None and n_tiles_expected <= _FEW_BATCHES * len(example):
        return RuntimeChoice(way=EAGER, network=model, trials=())
    best, network = _try(model, EAGER, example)
    trials = [best]
    for way in candidate_runtimes(example.device) if ways is None else ways:
        if way == EAGER:
            continue
        if not _pays_back(way, best.tiles_per_s, n_tiles_expected):
            refused = f"{n_tiles_expected:,} tiles are too few to pay back its start"
            trials.append(RuntimeTrial(way=way, refused=refused))
            continue
        trial, tried = _try(model, way, example)
        trials.append(trial)
        if trial.tiles_per_s > best.tiles_per_s:  # false for NaN
            best, network = trial, tried
    return RuntimeChoice(way=best.way, network=network, trials=tuple(trials))


def measure_network(network: Network, example: Tensor) -> float:
    """Tiles a second on one batch again and again, after a first that does not count.

    The median batch tells, so that a busy moment does not decide.

    Parameters
    ----------
    network
        The network, made ready.
    example
        Pixels of one batch, shape (batch, 3, side, side), float32, normalised.
    """
    times: list[float] = []
    with torch.inference_mode():
        network(example).float().cpu()
        while len(times) < _LEAST_BATCHES or (
            sum(times) < _MEASURED_S and len(times) < _MOST_BATCHES
        ):
            started = time.perf_counter()
            network(example).float().cpu()  # the copy waits for the device
            times.append(time.perf_counter() - started)
    return len(example) / median(times)


def _in_precision(network: Network, way: Runtime) -> Network:
    dtype = _PRECISIONS[way.precision]
    if dtype is None:
        return network

    def run(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype=dtype):
            output: Tensor = network(pixels)
            return output.float()

    return run


def _pays_back(way: Runtime, tiles_per_s: float, n_tiles: int | None) -> bool:
    """Whether the time a way could save at best exceeds what its start takes."""
    if n_tiles is None:
        return True
    return n_tiles / tiles_per_s * (1 - 1 / _BEST_GAIN) > _START_S[way.engine]


def _try(model: nn.Module, way: Runtime, example: Tensor) -> tuple[RuntimeTrial, Network]:
    """Start a way and time it; one that cannot be used is told and not measured."""
    started = time.perf_counter()
    try:
        network, error = _start(model, way, example)
    except EncoderError as refusal:
        return RuntimeTrial(way=way, refused=refusal.actual), model
    start_s = time.perf_counter() - started
    rate = measure_network(network, example)
    return RuntimeTrial(way=way, start_s=start_s, relative_error=error, tiles_per_s=rate), network


def _start(model: nn.Module, way: Runtime, example: Tensor) -> tuple[Network, float]:
    """The network run in one way, and how far off its embeddings are."""
    if way.engine == "onnx":
        _require_onnx(way, example.device)
    try:
        with _quietly():
            network = _network(model, way, example)
            with torch.inference_mode():
                expected = model(example[:_TILES_COMPARED]).float()
                error = _relative_error(network(example)[:_TILES_COMPARED], expected)
    except Exception as failure:
        # Exporters and compilers fail in as many ways as there are models and machines.
        reason = next(iter(str(failure).strip().splitlines()), "") or type(failure).__name__
        raise EncoderError(
            f"execution '{way}'",
            actual=f"it cannot run here ({reason[:160]})",
            hint=_ADVICE,
        ) from failure
    limit = _LARGEST_ERROR[way.precision]
    if not error <= limit:  # so that NaN is refused as well
        raise EncoderError(
            f"execution '{way}'",
            actual=f"its embeddings are {error:.1e} off",
            expected=f"at most {limit:.0e} of plain float32",
            hint=_ADVICE,
        )
    return network, error


def _network(model: nn.Module, way: Runtime, example: Tensor) -> Network:
    if way.engine == "onnx":
        return _onnx_network(model, example)
    network = torch.compile(model, dynamic=False) if way.engine == "compile" else model
    return _in_precision(network, way)


def _require_onnx(way: Runtime, device: torch.device) -> None:
    packages = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise EncoderError(
            f"execution '{way}'",
            actual=f"not installed: {', '.join(missing)}",
            hint="Install them: pip install 'mil-slides[onnx]'",
        )
    if device.type != "cpu" or way.precision != "float32":
        raise EncoderError(
            f"execution '{way}'",
            actual=f"{way.precision} on {device}",
            expected="float32 on cpu",
            hint=_ADVICE,
        )


def _onnx_network(model: nn.Module, example: Tensor) -> Network:
    """Export to ONNX, run by ONNX Runtime on as many threads as torch has.

    Each thread takes a part of the batch through all layers: threads that share a layer wait for
    each other after it, and for the slowest wherever others use the cores too.
    """
    import onnxruntime  # noqa: PLC0415 - an extra, and heavy

    n_threads = torch.get_num_threads()
    n_parts = _largest_divisor(len(example), most=n_threads)
    part = example[: len(example) // n_parts]
    with torch.no_grad():
        program = torch.onnx.export(
            model, (part.contiguous(),), dynamo=True, verbose=False, input_names=["pixels"]
        )
    if program is None:
        raise RuntimeError("the exporter gave nothing")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, n_threads // n_parts)
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the threads that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    pool = ThreadPoolExecutor(n_parts, thread_name_prefix="backbone-part")

    def run_part(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])

    def run(pixels: Tensor) -> Tensor:
        return torch.cat(list(pool.map(run_part, pixels.contiguous().chunk(n_parts))))

    return run


def _largest_divisor(number: int, *, most: int) -> int:
    return next(part for part in range(min(number, most), 0, -1) if number % part == 0)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest distance between two embeddings of a tile, relative to the length of the second."""
    lengths = expected.norm(dim=1).clamp(min=1e-12)
    return float(((found.float() - expected).norm(dim=1) / lengths).max())


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the chatter of exporters and compilers from the terminal; failures still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
