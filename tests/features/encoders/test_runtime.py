from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import Tensor, nn

from features.encoders import runtime, runtime_selection
from features.encoders.execution import EAGER, Runtime, parse_execution
from features.encoders.runtime import Network, compile_model
from features.encoders.runtime_selection import (
    candidate_runtimes,
    forecast_selection,
    measure_network,
    select_runtime,
)
from features.encoders.weights import build_untrained
from features.errors import EncoderError

CUDA = torch.device("cuda")
ONNX, COMPILED = Runtime(engine="onnx"), Runtime(engine="compile")


def tiny(name: str = "test_efficientnet") -> nn.Module:
    torch.manual_seed(0)
    return build_untrained(name).eval().requires_grad_(requires_grad=False)


def pixels(n_tiles: int = 4) -> Tensor:
    return torch.randn(n_tiles, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Speeds by engine, tiles per second; all start at once, whatever the machine."""
    rates = {"eager": 30.0, "onnx": 90.0, "compile": 60.0}

    def start(
        model: nn.Module, runtime: Runtime, example: Tensor, cache_key: str
    ) -> tuple[Network, float]:
        return lambda pixels: torch.tensor(rates[runtime.engine]), 1e-6

    monkeypatch.setattr(runtime_selection, "start_runtime", start)
    monkeypatch.setattr(runtime_selection, "measure_network", lambda network, _: float(network(_)))
    monkeypatch.setattr(runtime_selection, "_quick_rate", lambda model, _: rates["eager"])
    return rates


@pytest.mark.ci
@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit"])
def test_onnx_gives_the_embeddings_of_plain_float32(name: str) -> None:
    pytest.importorskip("onnxruntime")
    model, batch = tiny(name), pixels()
    with torch.inference_mode():
        expected = model(batch)
        actual = compile_model(model, ONNX, example=batch)(batch)
    assert float(((actual - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-3


@pytest.mark.slow
def test_a_compiled_network_gives_the_embeddings_of_plain_float32_in_any_order() -> None:
    model, batch = tiny(), pixels()
    try:
        network = compile_model(model, COMPILED, example=batch)
    except EncoderError as error:
        pytest.skip(f"no compiler: {error}")
    with torch.inference_mode():
        expected, actual, flipped = model(batch), network(batch), network(batch.flip(0))
    assert float(((actual - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-3
    assert torch.equal(flipped.flip(0), actual)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_runtime_selected_on_cuda_agrees_with_float32_on_the_cpu() -> None:
    model, batch = tiny(), pixels(16)
    with torch.inference_mode():
        expected = model(batch)
        choice = select_runtime(
            model.cuda(), example=batch.cuda(), runtimes=candidate_runtimes(CUDA)[:3]
        )
        actual = choice.network(batch.cuda()).cpu()
    assert float(((actual - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 2e-2


def test_the_fastest_valid_runtime_is_selected(speeds: dict[str, float]) -> None:
    choice = select_runtime(tiny(), example=pixels())
    assert choice.runtime == ONNX
    assert [(t.runtime, t.tiles_per_s) for t in choice.trials] == [
        (EAGER, 30.0), (ONNX, 90.0), (COMPILED, 60.0),
    ]  # fmt: skip
    speeds["eager"] = 100.0
    assert select_runtime(tiny(), example=pixels()).runtime == EAGER


@pytest.mark.parametrize(
    ("n_tiles", "tried"), [(16, 0), (300, 0), (1_000, 0), (2_000, 2), (20_000, 2), (200_000, 3)]
)
def test_runtimes_that_cannot_pay_off_are_not_started(
    speeds: dict[str, float], n_tiles: int, tried: int
) -> None:
    choice = select_runtime(tiny(), example=pixels(), n_tiles_expected=n_tiles)
    assert sum(not trial.refused for trial in choice.trials) == tried
    for trial in choice.trials[tried:]:
        assert trial.refused == f"{n_tiles:,} tiles are too few to pay back its start"


@pytest.mark.parametrize(
    ("name", "n_tiles", "runtime"),
    [("test_efficientnet", 2_000, ONNX), ("test_vit", 2_000, EAGER), ("test_vit", 9_000, ONNX)],
)
def test_a_runtime_is_taken_unmeasured_where_timing_it_would_cost_more_than_a_twentieth(
    speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch,
    name: str, n_tiles: int, runtime: Runtime,
) -> None:  # fmt: skip
    def measure(network: Network, example: Tensor) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(runtime_selection, "measure_network", measure)
    choice = select_runtime(tiny(name), example=pixels(128), n_tiles_expected=n_tiles)
    assert choice.runtime == runtime
    assert [trial.runtime for trial in choice.trials] == ([ONNX] if runtime == ONNX else [])


@pytest.mark.parametrize(("name", "n_tiles"), [("test_efficientnet", 1_400), ("test_vit", 8_000)])
def test_a_runtime_whose_slow_start_would_cost_more_than_a_twentieth_is_not_tried(
    speeds: dict[str, float], name: str, n_tiles: int
) -> None:
    """At 30 tiles per second; 10 s of start would be within it, and 15 s are not."""
    choice = select_runtime(tiny(name), example=pixels(128), n_tiles_expected=n_tiles)
    assert choice.runtime == EAGER


def test_an_export_in_the_cache_is_started_for_fewer_tiles(
    speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert select_runtime(tiny(), example=pixels(), n_tiles_expected=1_000).runtime == EAGER
    monkeypatch.setattr(runtime_selection, "has_export", lambda *_: True)
    assert select_runtime(tiny(), example=pixels(), n_tiles_expected=1_000).runtime == ONNX


def test_an_unmeasured_runtime_that_fails_leaves_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Network:
        raise EncoderError("execution 'onnx'", actual="it cannot run here")

    monkeypatch.setattr(runtime_selection, "_quick_rate", lambda model, _: 30.0)
    monkeypatch.setattr(runtime_selection, "start_runtime", fail)
    choice = select_runtime(tiny(), example=pixels(128), n_tiles_expected=2_000)
    assert (choice.runtime, choice.trials[0].refused) == (EAGER, "it cannot run here")


def test_a_runtime_with_other_embeddings_is_never_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_onnx_network", lambda model, *_: lambda x: model(x) * 1.01)
    monkeypatch.setattr(runtime, "_require_onnx", lambda *_: None)
    choice = select_runtime(tiny(), example=pixels(), runtimes=[ONNX])
    assert choice.runtime == EAGER
    assert choice.trials[1].refused == "its embeddings are 1.0e-02 off"
    assert math.isnan(choice.trials[1].tiles_per_s)
    with pytest.raises(EncoderError, match=r"1\.0e-02 off; expected at most 1e-03"):
        compile_model(tiny(), ONNX, example=pixels())


def test_a_runtime_with_nan_is_never_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_onnx_network", lambda model, *_: lambda x: model(x) * math.nan)
    monkeypatch.setattr(runtime, "_require_onnx", lambda *_: None)
    assert select_runtime(tiny(), example=pixels(), runtimes=[ONNX]).runtime == EAGER


def test_without_a_compiler_eager_float32_is_selected_silently(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(model: nn.Module, **options: object) -> Network:
        def run(pixels: Tensor) -> Tensor:
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nand a long story")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    choice = select_runtime(tiny(), example=pixels(), runtimes=[COMPILED])
    assert choice.runtime == EAGER
    assert choice.trials[1].refused == (
        "it cannot run here (InvalidCxxCompiler: no working C++ compiler)"
    )
    assert capfd.readouterr() == ("", "")


def test_without_the_extra_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r"onnxruntime.*pip install 'mil-slides\[onnx\]'"):
        compile_model(tiny(), ONNX, example=pixels())
    assert select_runtime(tiny(), example=pixels(), runtimes=[ONNX]).runtime == EAGER


def test_onnx_runs_in_float32_on_a_cpu_only() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(EncoderError, match="float16 on cpu; expected float32 on cpu"):
        compile_model(tiny(), Runtime(engine="onnx", precision="float16"), example=pixels())


def test_runtimes_are_parsed_as_they_are_written() -> None:
    assert parse_execution("onnx") == (ONNX, None)
    assert parse_execution("compile bfloat16") == (
        Runtime(engine="compile", precision="bfloat16"), None,
    )  # fmt: skip
    assert parse_execution(f"{EAGER} batch 64") == (EAGER, 64)
    for wrong in ("fast", "onnx int8", "eager float32 batch", ""):
        with pytest.raises(EncoderError, match=r"no such runtime.*auto, eager, onnx, compile"):
            parse_execution(wrong)


def test_reduced_precision_is_tried_on_cuda_only() -> None:
    for kind in ("cpu", "mps", "meta"):
        runtimes = candidate_runtimes(torch.device(kind))
        assert runtimes[0] == EAGER
        assert {runtime.precision for runtime in runtimes} == {"float32"}


def test_throughput_is_in_tiles_per_second() -> None:
    n_calls = 0

    def network(batch: Tensor) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        return batch

    assert measure_network(network, pixels(3)) > 0
    assert 3 <= n_calls <= 51


@pytest.mark.parametrize(
    ("n_tiles", "engine"), [(100, "eager"), (256, "eager"), (300, "eager"), (5000, "onnx")]
)
def test_a_forecast_follows_the_rules_of_the_selection(n_tiles: int, engine: str) -> None:
    forecast = forecast_selection(
        None, tiles_per_s=50.0, batch_tiles=64, n_tiles_expected=n_tiles,
        device=torch.device("cpu"), startup_s=5.0,
    )  # fmt: skip
    assert forecast.runtime.engine == engine
    assert (forecast.start_s > 0) == (n_tiles > 256)
    assert (forecast.tiles_per_s > 50) == (engine != "eager")


def test_a_runtime_that_is_recorded_is_forecast_as_it_is() -> None:
    forecast = forecast_selection(
        Runtime(engine="onnx"), tiles_per_s=50.0, batch_tiles=64, n_tiles_expected=10,
        device=torch.device("cpu"), startup_s=5.0,
    )  # fmt: skip
    assert str(forecast.runtime) == "onnx float32"
    assert forecast.start_s == pytest.approx(7.5)
    eager = forecast_selection(
        Runtime(engine="eager"), tiles_per_s=50.0, batch_tiles=64, n_tiles_expected=10**6,
        device=torch.device("cpu"), startup_s=5.0,
    )  # fmt: skip
    assert (eager.start_s, eager.tiles_per_s) == (0, 50)


@pytest.mark.parametrize("asked", [None, Runtime(engine="onnx")])
def test_an_export_in_the_cache_is_forecast_to_start_soon(asked: Runtime | None) -> None:
    new, cached = (
        forecast_selection(
            asked, tiles_per_s=50.0, batch_tiles=64, n_tiles_expected=5000,
            device=torch.device("cpu"), startup_s=6.0, is_cached=is_cached,
        )
        for is_cached in (False, True)
    )  # fmt: skip
    assert cached.runtime == new.runtime == ONNX
    assert new.start_s - cached.start_s == pytest.approx(9.0 - 2.1)
