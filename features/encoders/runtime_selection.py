"""Choice of the fastest runtime of a network on this machine, and what it will take."""

from __future__ import annotations

import importlib.util
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from features.encoders.base import Device
from features.encoders.execution import EAGER, ONNX, Runtime, parse_execution
from features.encoders.exports import ONNX_PACKAGES, are_few
from features.encoders.runtime import Network, has_export, start_runtime
from features.encoders.stored_choice import (
    CACHED_START_S,
    SLOW_START,
    RuntimeForecast,
    StoredChoice,
)
from features.errors import EncoderError

__all__ = [
    "RuntimeChoice",
    "RuntimeTrial",
    "candidate_runtimes",
    "forecast_selection",
    "measure_network",
    "select_runtime",
]

_START_S = {"eager": 0.0, "onnx": 10.0, "compile": 60.0}
"""Assumed start-up time of each runtime, seconds, for the model of cost."""

_QUICK_TILES = 2
"""Tiles of the first estimate of the eager speed, which decides whether to measure at all."""

_MOST_SHARE = 0.05
"""Largest share of a run that measuring runtimes, or trying one of unknown gain, may take."""

_LEAST_GAIN = 1.3
"""Gain of ONNX Runtime that is relied on unmeasured for networks with batch normalisation, which it
merges into convolutions: resnet50 and the default backbone gained more wherever they were timed."""

_EXPECTED_GAIN = {("cpu", "onnx"): 4.5, ("cpu", "compile"): 2.0, ("cuda", "compile"): 1.3}
"""Throughput of an engine, in units of the eager one, by device: with the default backbone ONNX
Runtime is 4.4 to 4.8 times as fast on two cores."""

_START_PER_STARTUP = {"eager": 0.0, "onnx": 1.5, "compile": 10.0}
"""Start of a runtime in units of the time from the command to a loaded network: export by ONNX took
9.6 and 11.2 s where the start took 5.8 and 7.0 s."""

_CACHED_START_PER_STARTUP = 0.35
"""The same for an export in the cache, which is loaded and compared."""

_MEASURED_S = 1.0

_MOST_BATCHES = 50


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


def candidate_runtimes(device: Device) -> list[Runtime]:
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
        return [EAGER, ONNX, Runtime(engine="compile")]
    return [EAGER]


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
    seconds (ONNX) to a minute (compilation), so with a known number of tiles the choice follows a
    model of cost: a runtime is started if the run, even after a start half as long again as assumed
    and with the gain that is sure, takes at most 5 % longer than eagerly; what is measured takes at
    most 5 % too, else the first such runtime is taken unmeasured. If there is none, the network
    runs eagerly and nothing is measured. With
    ``cache_key``, which stands for network and weights, choice and exports are kept in the cache,
    and a later run on this machine begins with them. The example is as for :func:`compile_model`,
    of shape (batch, 3, side_px, side_px); the default is to try all candidates for its device.
    """
    if n_tiles_expected is not None and are_few(n_tiles_expected, len(example)):
        return RuntimeChoice(runtime=EAGER, network=model, trials=())
    n_tiles = n_tiles_expected or math.inf
    where: dict[str, Any] = {
        "device_type": example.device.type, "n_threads": torch.get_num_threads()
    }  # fmt: skip
    stored = StoredChoice.read(cache_key, tuple(example.shape), **where)
    if stored is not None and (
        choice := _start_stored(stored, model, example, n_tiles, cache_key)
    ):  # fmt: skip
        return choice
    candidates = candidate_runtimes(example.device) if runtimes is None else runtimes
    others = [runtime for runtime in candidates if runtime != EAGER]
    gain = _LEAST_GAIN if _has_batch_norm(model) else 1.0

    def start_s(runtime: Runtime) -> float:
        is_cached = runtime.engine == "onnx" and has_export(cache_key, example)
        return CACHED_START_S if is_cached else _START_S[runtime.engine]

    if n_tiles_expected is not None:
        rate = _quick_rate(model, example)
        hopeful = [
            runtime
            for runtime in others
            if _may_pay_off(runtime, n_tiles, rate, start_s=start_s(runtime), gain=gain)
        ]
        if not hopeful:
            return RuntimeChoice(runtime=EAGER, network=model, trials=())
        if 2 * _measuring_s(rate, len(example)) > _MOST_SHARE * n_tiles / rate:
            trial, network = _try(model, hopeful[0], example, cache_key, is_timed=False)
            runtime = EAGER if trial.refused else trial.runtime
            return RuntimeChoice(runtime=runtime, network=network, trials=(trial,))
    best, network = _try(model, EAGER, example, cache_key)
    trials = [best]
    for runtime in others:
        if not _may_pay_off(
            runtime, n_tiles, best.tiles_per_s, start_s=start_s(runtime), gain=gain
        ):
            refused = f"{n_tiles_expected:,} tiles are too few to pay back its start"
            trials.append(RuntimeTrial(runtime=runtime, refused=refused))
            continue
        trial, tried = _try(model, runtime, example, cache_key)
        trials.append(trial)
        if trial.tiles_per_s > best.tiles_per_s:  # False for NaN.
            best, network = trial, tried
    rates = {str(one.runtime): one.tiles_per_s for one in trials if one.tiles_per_s > 0}
    StoredChoice(runtime=str(best.runtime), rates=rates, batch_tiles=len(example)).write(
        cache_key, tuple(example.shape), **where
    )
    return RuntimeChoice(runtime=best.runtime, network=network, trials=tuple(trials))


def _start_stored(
    stored: StoredChoice, model: nn.Module, example: Tensor, n_tiles: float, cache_key: str
) -> RuntimeChoice | None:
    """Start the stored runtime, or eager where it does not pay off; None if it fails."""
    runtime = parse_execution(stored.runtime)[0]
    if runtime == EAGER or not stored.pays_off(n_tiles):
        return RuntimeChoice(runtime=EAGER, network=model, trials=())
    try:
        network = start_runtime(model, runtime, example, cache_key)[0]
    except EncoderError:
        return None
    return RuntimeChoice(runtime=runtime, network=network, trials=())


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _quick_rate(model: nn.Module, example: Tensor) -> float:
    """Estimate the eager throughput from a few tiles, tiles per second."""
    few = example[:_QUICK_TILES]
    with torch.inference_mode():
        model(few).float().cpu()
        started = time.perf_counter()
        model(few).float().cpu()
    return len(few) / max(time.perf_counter() - started, 1e-6)


def _starts(*, is_cached: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Return the assumed starts of engines, seconds, and in units of the program's own start."""
    onnx = (
        ({"onnx": CACHED_START_S}, {"onnx": _CACHED_START_PER_STARTUP}) if is_cached else ({}, {})
    )
    return _START_S | onnx[0], _START_PER_STARTUP | onnx[1]


def forecast_selection(
    runtime: Runtime | None,
    *,
    tiles_per_s: float,
    batch_tiles: int,
    n_tiles_expected: int,
    device: Device,
    startup_s: float,
    is_cached: bool = False,
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
    is_cached
        Whether the cache has the export to ONNX.
    """
    assumed_s, per_startup = _starts(is_cached=is_cached)

    def started(engine: str) -> float:
        return per_startup[engine] * startup_s

    def gained(engine: str) -> float:
        gain = _EXPECTED_GAIN.get((device.type, engine), 1.0)
        return tiles_per_s * gain

    if runtime is not None:
        engine = runtime.engine
        return RuntimeForecast(runtime=runtime, tiles_per_s=gained(engine), start_s=started(engine))
    if math.isnan(tiles_per_s) or are_few(n_tiles_expected, batch_tiles):
        return RuntimeForecast(runtime=EAGER, tiles_per_s=tiles_per_s, start_s=0.0)
    measures = (
        2 * _measuring_s(tiles_per_s, batch_tiles) <= _MOST_SHARE * n_tiles_expected / tiles_per_s
    )
    best, rate = EAGER, tiles_per_s
    start_s = _measuring_s(rate, batch_tiles) if measures else 2 * _QUICK_TILES / rate
    for candidate in candidate_runtimes(device):
        engine = candidate.engine
        if engine == "eager" or not _is_available(engine):
            continue
        if not _may_pay_off(
            candidate, n_tiles_expected, rate, gain=_LEAST_GAIN,
            start_s=assumed_s[engine],
        ):  # fmt: skip
            continue
        own_rate = gained(engine)
        start_s += started(engine) + (_measuring_s(own_rate, batch_tiles) if measures else 0.0)
        if own_rate > rate:
            best, rate = candidate, own_rate
        if not measures:
            break
    return RuntimeForecast(runtime=best, tiles_per_s=rate, start_s=start_s)


def _may_pay_off(
    runtime: Runtime, n_tiles: float, tiles_per_s: float, *, start_s: float, gain: float
) -> bool:
    """Return whether a run that tries a runtime is surely not much slower than at the rate so far.

    Even after a slow start, and with the least gain, it takes at most 5 % longer.
    """
    sure = gain if runtime.engine == "onnx" else 1.0
    return SLOW_START * start_s <= n_tiles / tiles_per_s * (1 + _MOST_SHARE - 1 / sure)


def _measuring_s(tiles_per_s: float, batch_tiles: int) -> float:
    """Return the seconds that :func:`measure_network` takes, with one batch to warm up."""
    batch_s = batch_tiles / tiles_per_s
    return batch_s + max(_MEASURED_S, batch_s)


def _is_available(engine: str) -> bool:
    if engine == "onnx":
        return all(importlib.util.find_spec(name) for name in ONNX_PACKAGES)
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


def _try(
    model: nn.Module, runtime: Runtime, example: Tensor, cache_key: str, *, is_timed: bool = True
) -> tuple[RuntimeTrial, Network]:
    """Start a runtime and time it; where it fails, the trial has the reason, and eager is left."""
    started = time.perf_counter()
    try:
        network, error = start_runtime(model, runtime, example, cache_key)
    except EncoderError as refusal:
        return RuntimeTrial(runtime=runtime, refused=refusal.actual), model
    start_s = time.perf_counter() - started
    rate = measure_network(network, example) if is_timed else math.nan
    trial = RuntimeTrial(runtime=runtime, start_s=start_s, relative_error=error, tiles_per_s=rate)
    return trial, network
