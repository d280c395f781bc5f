"""Runtimes of a frozen network (eager, torch.compile, ONNX Runtime), checked against float32."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import platform
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from statistics import median

import torch
from torch import Tensor, nn

from features.encoders import runtime_cache
from features.errors import EncoderError
from features.utils.hardware import CPU_COUNT

__all__ = [
    "EAGER",
    "Network",
    "Runtime",
    "RuntimeChoice",
    "RuntimeForecast",
    "RuntimeTrial",
    "StoredChoice",
    "candidate_runtimes",
    "compile_model",
    "forecast_selection",
    "measure_network",
    "parse_execution",
    "select_runtime",
]

Network = Callable[[Tensor], Tensor]
"""Normalised pixels (batch, 3, side, side), float32, to embeddings (batch, dim), float32."""

_PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}

_LARGEST_ERROR = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-2}
"""Largest relative distance of an embedding from eager float32. Half precision rounds every
product to 3e-4 (float16) or 2e-3 (bfloat16), of which 1 % of an embedding's length may remain."""

_START_S = {"eager": 0.0, "onnx": 10.0, "compile": 60.0}
"""Assumed start-up time of each runtime, seconds: skips runtimes that cannot pay off."""

_CACHED_START_S = 2.0
"""Assumed time to load an export from the cache and to compare its embeddings, seconds."""

_QUICK_TILES = 2
"""Tiles of the first estimate of the eager speed, which decides whether to measure at all."""

_LARGEST_EXPORT_BYTES = 1_900_000_000
"""Bytes of weights that fit into one ONNX file, which protobuf limits to 2 GiB."""

_BEST_GAIN = 4.0
"""Largest speed-up over eager float32 that is expected of any runtime."""

_EXPECTED_GAIN = {("cpu", "onnx"): 4.5, ("cpu", "compile"): 2.0, ("cuda", "compile"): 1.3}
"""Throughput of an engine, in units of the eager one, by device: with the default backbone ONNX
Runtime is 4.4 to 4.8 times as fast on two cores."""

_START_PER_STARTUP = {"eager": 0.0, "onnx": 1.5, "compile": 10.0}
"""Start of a runtime in units of the time from the command to a loaded network: export by ONNX took
9.6 and 11.2 s where the start took 5.8 and 7.0 s."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

_MEASURED_S = 1.0
_MOST_BATCHES = 50
_TILES_COMPARED = 4

_FEW_BATCHES = 4
"""Number of batches that take about as long as the measurement itself."""

_ADVICE = "Use --execution eager, or auto, which takes the fastest that works."


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Engine and precision in which a network runs.

    The engine is ``eager`` (torch as it is), ``compile`` (torch.compile) or ``onnx`` (ONNX Runtime,
    on the CPU). ``float16`` and ``bfloat16`` are autocast, on CUDA only.
    """

    engine: str
    precision: str = "float32"

    def __str__(self) -> str:
        """Return the stored form, e.g. ``onnx float32``."""
        return f"{self.engine} {self.precision}"


EAGER = Runtime(engine="eager")
"""The reference for all other runtimes."""


@dataclass(frozen=True, kw_only=True)
class RuntimeTrial:
    """Result of trying one runtime; NaN for what was not measured.

    ``start_s`` are the seconds for export, compilation and check, ``tiles_per_s`` the throughput on
    prepared batches, ``relative_error`` the largest distance of an embedding from eager float32,
    relative to its length, and ``refused`` the reason why it may not be chosen.
    """

    runtime: Runtime
    start_s: float = math.nan
    tiles_per_s: float = math.nan
    relative_error: float = math.nan
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class RuntimeChoice:
    """Fastest valid runtime, the network as it runs there, and all trials in order."""

    runtime: Runtime
    network: Network
    trials: tuple[RuntimeTrial, ...]


@dataclass(frozen=True, kw_only=True)
class RuntimeForecast:
    """Runtime expected of a selection, its tiles per second, and the seconds to choose it."""

    runtime: Runtime
    tiles_per_s: float
    start_s: float


def parse_execution(text: str) -> tuple[Runtime, int | None]:
    """Parse a text such as ``onnx``, ``compile float16`` or ``eager float32 batch 64``.

    The batch size, tiles, is None if the text states none.

    Raises
    ------
    EncoderError
        If there is no such runtime.
    """
    match = re.fullmatch(r"(\w+)(?: (\w+))?(?: batch (\d+))?", text)
    if match is None or match[1] not in _START_S or (match[2] or "float32") not in _PRECISIONS:
        raise EncoderError(
            f"execution {text!r}",
            actual="no such runtime",
            expected=f"auto, {', '.join(_START_S)}, or one of these with a precision "
            f"({', '.join(_PRECISIONS)})",
        )
    batch_tiles = int(match[3]) if match[3] else None
    return Runtime(engine=match[1], precision=match[2] or "float32"), batch_tiles


def candidate_runtimes(device: torch.device) -> list[Runtime]:
    """List the runtimes worth trying on a device, eager float32 first, then by start-up time.

    bfloat16 on a CPU is left out: the default encoder's embeddings are 6 % off, and without units
    for bfloat16 it is ten times slower.
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
    return _start(model, runtime, example, cache_key)[0]


def select_runtime(
    model: nn.Module,
    *,
    example: Tensor,
    runtimes: Sequence[Runtime] | None = None,
    n_tiles_expected: int | None = None,
    cache_key: str = "",
) -> RuntimeChoice:
    """Select the fastest runtime on this machine whose embeddings agree with eager float32.

    Each runtime is started, compared on the example and timed for about a second. Starting takes
    seconds (ONNX) to a minute (compilation), so with a known number of tiles, runtimes whose
    start-up cannot pay off are skipped, and if that is all of them, nothing is measured. With
    ``cache_key``, which stands for network and weights, choice and exports are kept in the cache,
    and a later run on this machine begins with them. The example is as for :func:`compile_model`,
    of shape (batch, 3, side_px, side_px); the default is to try all candidates for its device.
    """
    if n_tiles_expected is not None and _are_few(n_tiles_expected, len(example)):
        return RuntimeChoice(runtime=EAGER, network=model, trials=())
    n_tiles = n_tiles_expected or math.inf
    stored = StoredChoice.read(cache_key, tuple(example.shape), example.device)
    if stored is not None and (choice := stored.start(model, example, n_tiles, cache_key)):
        return choice
    candidates = candidate_runtimes(example.device) if runtimes is None else runtimes
    others = [runtime for runtime in candidates if runtime != EAGER]
    if n_tiles_expected is not None:
        rate = _quick_rate(model, example)
        if not any(_may_pay_off(runtime, n_tiles, rate) for runtime in others):
            return RuntimeChoice(runtime=EAGER, network=model, trials=())
    best, network = _try(model, EAGER, example, cache_key)
    trials = [best]
    for runtime in others:
        if not _may_pay_off(runtime, n_tiles, best.tiles_per_s):
            refused = f"{n_tiles_expected:,} tiles are too few to pay back its start"
            trials.append(RuntimeTrial(runtime=runtime, refused=refused))
            continue
        trial, tried = _try(model, runtime, example, cache_key)
        trials.append(trial)
        if trial.tiles_per_s > best.tiles_per_s:  # False for NaN.
            best, network = trial, tried
    StoredChoice.of(trials, best, batch_tiles=len(example)).write(
        cache_key, tuple(example.shape), example.device
    )
    return RuntimeChoice(runtime=best.runtime, network=network, trials=tuple(trials))


def _quick_rate(model: nn.Module, example: Tensor) -> float:
    """Estimate the eager throughput from a few tiles, tiles per second."""
    few = example[:_QUICK_TILES]
    with torch.inference_mode():
        model(few).float().cpu()
        started = time.perf_counter()
        model(few).float().cpu()
    return len(few) / max(time.perf_counter() - started, 1e-6)


@dataclass(frozen=True, kw_only=True)
class StoredChoice:
    """Choice of an earlier run on this machine, with the rates of all trials, tiles per second."""

    runtime: str
    rates: dict[str, float]
    batch_tiles: int

    @classmethod
    def of(
        cls, trials: Sequence[RuntimeTrial], best: RuntimeTrial, *, batch_tiles: int
    ) -> StoredChoice:
        """Return the choice of ``best`` among trials."""
        rates = {str(one.runtime): one.tiles_per_s for one in trials if one.tiles_per_s > 0}
        return cls(runtime=str(best.runtime), rates=rates, batch_tiles=batch_tiles)

    @classmethod
    def read(
        cls, cache_key: str, shape: tuple[int, ...], device: torch.device
    ) -> StoredChoice | None:
        """Return what is stored for batches of a shape, (batch, 3, side, side) in px, or None."""
        content = runtime_cache.load(_choice_name(cache_key, shape, device)) if cache_key else None
        try:
            stored = cls(**json.loads(content or b""), batch_tiles=shape[0])
            parse_execution(stored.runtime)
            rates = {name: float(rate) for name, rate in stored.rates.items()}
        except (ValueError, TypeError, AttributeError, EncoderError):
            return None
        return stored if {str(EAGER), stored.runtime} <= rates.keys() else None

    def write(self, cache_key: str, shape: tuple[int, ...], device: torch.device) -> None:
        """Store the choice; a runtime that was compared with nothing is none."""
        if cache_key and len(self.rates) > 1:
            content = json.dumps({"runtime": self.runtime, "rates": self.rates}).encode()
            runtime_cache.store(_choice_name(cache_key, shape, device), content)

    def pays_off(self, n_tiles: float) -> bool:
        """Return whether so many tiles pay for the start of the runtime from the cache."""
        saved_s = n_tiles * (1 / self.rates[str(EAGER)] - 1 / self.rates[self.runtime])
        return saved_s > _CACHED_START_S

    def forecast(self, eager_tiles_per_s: float, n_tiles: float) -> RuntimeForecast:
        """Return what :func:`select_runtime` will begin with, and the seconds that takes."""
        few = math.isnan(eager_tiles_per_s) or _are_few(n_tiles, self.batch_tiles)
        if few or self.runtime == str(EAGER) or not self.pays_off(n_tiles):
            return RuntimeForecast(runtime=EAGER, tiles_per_s=eager_tiles_per_s, start_s=0.0)
        gain = self.rates[self.runtime] / self.rates[str(EAGER)]
        return RuntimeForecast(
            runtime=parse_execution(self.runtime)[0], tiles_per_s=eager_tiles_per_s * gain,
            start_s=_CACHED_START_S,
        )  # fmt: skip

    def start(
        self, model: nn.Module, example: Tensor, n_tiles: float, cache_key: str
    ) -> RuntimeChoice | None:
        """Start the stored runtime, or eager where it does not pay off; None if it fails."""
        runtime = parse_execution(self.runtime)[0]
        if runtime == EAGER or not self.pays_off(n_tiles):
            return RuntimeChoice(runtime=EAGER, network=model, trials=())
        try:
            network = _start(model, runtime, example, cache_key)[0]
        except EncoderError:
            return None
        return RuntimeChoice(runtime=runtime, network=network, trials=())


def _choice_name(cache_key: str, shape: tuple[int, ...], device: torch.device) -> str:
    where = (device.type, platform.machine(), platform.node(), CPU_COUNT, torch.get_num_threads())
    return f"{runtime_cache.cache_key('choice', cache_key, shape, *where, *_versions())}.json"


def _export_name(cache_key: str, shape: tuple[int, ...]) -> str:
    """Return the name of an export for batches of a shape."""
    return f"{runtime_cache.cache_key('onnx', cache_key, shape, *_versions())}.onnx"


def _versions() -> list[str]:
    names = ("torch", "timm", *_ONNX_PACKAGES)
    return [metadata.version(name) for name in names if importlib.util.find_spec(name) is not None]


def forecast_selection(
    runtime: Runtime | None,
    *,
    tiles_per_s: float,
    batch_tiles: int,
    n_tiles_expected: int,
    device: torch.device,
    startup_s: float,
) -> RuntimeForecast:
    """Forecast what :func:`select_runtime` will choose and how long it takes, without trying it.

    Engines that take long to start are assumed to gain what they do with convolutional networks on
    CPUs of 2026, and their start, which is mostly Python as the start of the program is, to take in
    proportion to it.

    Parameters
    ----------
    runtime
        Runtime that is asked for or recorded; None if it is to be chosen.
    tiles_per_s
        Throughput of an eager runtime, NaN if not known.
    batch_tiles, n_tiles_expected
        Batch size and number of tiles of the run.
    device
        Device of the network.
    startup_s
        Time from the start of the program to a loaded network, seconds.
    """

    def started(engine: str) -> float:
        return _START_PER_STARTUP[engine] * startup_s

    def gained(engine: str) -> float:
        gain = _EXPECTED_GAIN.get((device.type, engine), 1.0)
        return tiles_per_s * gain

    def measured(rate: float) -> float:
        batch_s = batch_tiles / rate
        return batch_s + max(_MEASURED_S, batch_s)  # after one batch to warm up

    if runtime is not None:
        engine = runtime.engine
        return RuntimeForecast(runtime=runtime, tiles_per_s=gained(engine), start_s=started(engine))
    if math.isnan(tiles_per_s) or _are_few(n_tiles_expected, batch_tiles):
        return RuntimeForecast(runtime=EAGER, tiles_per_s=tiles_per_s, start_s=0.0)
    best, rate, start_s = EAGER, tiles_per_s, measured(tiles_per_s)
    for candidate in candidate_runtimes(device):
        engine = candidate.engine
        if engine == "eager" or not _may_pay_off(candidate, n_tiles_expected, rate):
            continue
        if not _is_available(engine):
            continue
        own_rate = gained(engine)
        start_s += started(engine) + measured(own_rate)
        if own_rate > rate:
            best, rate = candidate, own_rate
    return RuntimeForecast(runtime=best, tiles_per_s=rate, start_s=start_s)


def _are_few(n_tiles: float, batch_tiles: int) -> bool:
    """Return whether a selection would take about as long as the tiles themselves."""
    return n_tiles <= _FEW_BATCHES * batch_tiles


def _may_pay_off(runtime: Runtime, n_tiles: float, tiles_per_s: float) -> bool:
    """Return whether the start of a runtime can be saved, given the fastest rate so far."""
    return n_tiles / tiles_per_s * (1 - 1 / _BEST_GAIN) > _START_S[runtime.engine]


def _is_available(engine: str) -> bool:
    if engine == "onnx":
        return all(importlib.util.find_spec(name) for name in _ONNX_PACKAGES)
    return engine != "compile" or any(map(shutil.which, ("g++", "gcc", "clang", "cl")))


def measure_network(network: Network, example: Tensor) -> float:
    """Measure throughput, tiles per second, after one warm-up batch.

    The example, a normalised batch of shape (batch, 3, side_px, side_px), is repeated for about a
    second; the median is used, so that a busy moment does not decide.
    """
    times: list[float] = []
    with torch.inference_mode():
        network(example).float().cpu()
        while sum(times) < _MEASURED_S and len(times) < _MOST_BATCHES:
            started = time.perf_counter()
            network(example).float().cpu()  # The copy waits for the device.
            times.append(time.perf_counter() - started)
    return len(example) / median(times)


def _in_precision(network: Network, runtime: Runtime) -> Network:
    dtype = _PRECISIONS[runtime.precision]
    if dtype is None:
        return network

    def run(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype=dtype):
            output: Tensor = network(pixels)
            return output.float()

    return run


def _try(
    model: nn.Module, runtime: Runtime, example: Tensor, cache_key: str
) -> tuple[RuntimeTrial, Network]:
    """Start a runtime and time it; a runtime that fails is recorded with the reason."""
    started = time.perf_counter()
    try:
        network, error = _start(model, runtime, example, cache_key)
    except EncoderError as refusal:
        return RuntimeTrial(runtime=runtime, refused=refusal.actual), model
    start_s = time.perf_counter() - started
    rate = measure_network(network, example)
    trial = RuntimeTrial(runtime=runtime, start_s=start_s, relative_error=error, tiles_per_s=rate)
    return trial, network


def _start(
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
                expected = model(example[:_TILES_COMPARED]).float()
                error = _relative_error(network(example)[:_TILES_COMPARED], expected)
    except Exception as failure:
        # Exporters and compilers raise errors of any type, depending on model and machine.
        reason = next(iter(str(failure).strip().splitlines()), "") or type(failure).__name__
        raise EncoderError(
            f"execution '{runtime}'",
            actual=f"it cannot run here ({reason[:160]})",
            hint=_ADVICE,
        ) from failure
    limit = _LARGEST_ERROR[runtime.precision]
    if not error <= limit:  # True for NaN.
        raise EncoderError(
            f"execution '{runtime}'",
            actual=f"its embeddings are {error:.1e} off",
            expected=f"at most {limit:.0e} of plain float32",
            hint=_ADVICE,
        )
    return network, error


def _require_onnx(runtime: Runtime, device: torch.device, model: nn.Module) -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
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
    """Run with ONNX Runtime on as many threads as torch uses; export what the cache has not.

    Each thread takes a part of the batch through all layers: threads that share a layer would wait
    for each other after it, and for the slowest wherever other processes use the cores.
    """
    import onnxruntime  # noqa: PLC0415 - an extra, and heavy

    n_threads = torch.get_num_threads()
    n_parts = _largest_divisor(len(example), most=n_threads)
    part = example[: len(example) // n_parts]
    name = _export_name(cache_key, tuple(part.shape))
    exported = runtime_cache.load(name) if cache_key else None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, n_threads // n_parts)
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the threads that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = None
    if exported is not None:
        with suppress(Exception):  # A damaged entry is made again.
            session = onnxruntime.InferenceSession(
                exported, options, providers=["CPUExecutionProvider"]
            )
    if session is None:
        exported = _export(model, part)
        session = onnxruntime.InferenceSession(
            exported, options, providers=["CPUExecutionProvider"]
        )
        if cache_key:
            runtime_cache.store(name, exported)
    pool = ThreadPoolExecutor(n_parts, thread_name_prefix="backbone-part")

    def run_part(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])

    def run(pixels: Tensor) -> Tensor:
        return torch.cat(list(pool.map(run_part, pixels.contiguous().chunk(n_parts))))

    return run


def _export(model: nn.Module, part: Tensor) -> bytes:
    """Export a model to ONNX for batches of the shape of ``part``, (batch, 3, side, side) in px."""
    with torch.no_grad():
        program = torch.onnx.export(
            model, (part.contiguous(),), dynamo=True, verbose=False, input_names=["pixels"]
        )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    content: bytes = program.model_proto.SerializeToString()
    return content


def _largest_divisor(number: int, *, most: int) -> int:
    return next(part for part in range(min(number, most), 0, -1) if number % part == 0)


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
