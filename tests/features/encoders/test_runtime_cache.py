"""The cache of exports, choices of runtime and encoders."""

from __future__ import annotations

import errno
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from features.encoders import runtime, runtime_cache, runtime_selection, weights
from features.encoders.base import Encoder
from features.encoders.config import EncoderConfig
from features.encoders.encoder import load_encoder
from features.encoders.exported import KnownExport
from features.encoders.exports import choice_name
from features.encoders.runtime_cache import EncoderRecord, read_encoder_record
from features.encoders.runtime_selection import select_runtime
from features.encoders.stored_choice import StoredChoice
from tests.features.encoders.test_encoder import CPU, TINY, random_tiles, tiny_state
from tests.features.encoders.test_runtime import EAGER, ONNX, pixels, tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def here() -> dict[str, Any]:
    """Return what a choice of runtime on the CPU of this machine depends on."""
    return {"device_type": "cpu", "n_threads": torch.get_num_threads()}


@pytest.mark.ci
def test_an_export_is_made_once_and_gives_the_same_bytes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pixels()
    first = runtime.compile_model(tiny(), ONNX, example=batch, cache_key="tiny")(batch)
    assert [path.suffix for path in cache.iterdir()] == [".onnx"]

    def not_again(model: object, part: object) -> bytes:
        raise AssertionError("exported again")

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_export", not_again)
        again = runtime.compile_model(tiny(), ONNX, example=batch, cache_key="tiny")(batch)
    assert torch.equal(first, again)
    (entry,) = cache.iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    mended = runtime.compile_model(tiny(), ONNX, example=batch, cache_key="tiny")(batch)
    assert torch.equal(first, mended)


def test_a_stored_choice_is_taken_without_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"eager": 30.0, "onnx": 90.0, "compile": 60.0}
    started: list[str] = []

    def start(model: object, chosen: runtime.Runtime, *_: object) -> tuple[object, float]:
        started.append(chosen.engine)
        return lambda pixels: torch.tensor(rates[chosen.engine]), 1e-6

    monkeypatch.setattr(runtime_selection, "start_runtime", start)
    monkeypatch.setattr(runtime_selection, "measure_network", lambda network, _: float(network(_)))
    monkeypatch.setattr(runtime_selection, "_quick_rate", lambda model, example: 30.0)
    assert select_runtime(tiny(), example=pixels(), cache_key="k").runtime == ONNX
    assert started == ["eager", "onnx", "compile"]
    started.clear()
    again = select_runtime(tiny(), example=pixels(), cache_key="k", n_tiles_expected=5000)
    assert (again.runtime, started) == (ONNX, ["onnx"])
    few = select_runtime(tiny(), example=pixels(), cache_key="k", n_tiles_expected=60)
    assert (few.runtime, started) == (EAGER, ["onnx"])
    other = select_runtime(tiny(), example=pixels(), cache_key="other", n_tiles_expected=60)
    assert (other.runtime, started) == (EAGER, ["onnx"])
    stored = StoredChoice.read("k", (4, 3, 160, 160), **here())
    assert stored is not None
    forecast = stored.forecast(30.0, 5000)
    assert (forecast.runtime, forecast.tiles_per_s, forecast.start_s) == (ONNX, 90.0, 2.0)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b'{"runtime": "fast", "rates": {}}'])
def test_a_damaged_choice_is_made_again(
    content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_selection, "measure_network", lambda network, _: 10.0)
    select_runtime(tiny(), example=pixels(), runtimes=[EAGER], cache_key="k")
    cache.mkdir(exist_ok=True)
    (cache / choice_name("k", (4, 3, 160, 160), *here().values())).write_bytes(content)
    assert (
        select_runtime(tiny(), example=pixels(), runtimes=[EAGER], cache_key="k").runtime == EAGER
    )


def spoil_cache(how: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the cache a file, or its disk full after half of a file, or read-only, also for root."""
    write_bytes = Path.write_bytes

    def fill(path: Path, content: bytes) -> int:
        write_bytes(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(path: Path, content: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    if how == "a file":
        cache.write_text("a file where the folder should be")
    else:
        monkeypatch.setattr(Path, "write_bytes", fill if how == "full" else refuse)


@pytest.mark.parametrize(
    ("how", "words"),
    [("a file", "File exists|Not a directory|not a folder"), ("full", "No space left"),
     ("read-only", "Read-only file system")],
)  # fmt: skip
def test_a_cache_that_cannot_be_written_costs_no_result(
    how: str, words: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_cache(how, cache, monkeypatch)
    runtime_cache.take_write_error()
    save_file(tiny_state(), tmp_path / "w.safetensors")
    encoder = load_encoder(TINY, weights_path=tmp_path / "w.safetensors", device=CPU, batch_tiles=2)
    assert encoder.dim == 64
    refusal = runtime_cache.take_write_error()
    assert re.search(rf"^the cache \S+ cannot be (written|used).*({words}).*MIL_CACHE\.$", refusal)
    assert "\n" not in refusal
    assert not cache.is_dir() or not list(cache.iterdir())
    assert runtime_cache.load("x.json") is None
    assert not runtime_cache.take_write_error()


def test_only_the_newest_entries_are_kept(cache: Path) -> None:
    for index in range(20):
        assert not runtime_cache.store(f"{index:02}.onnx", b"x")
        os.utime(cache / f"{index:02}.onnx", (index, index))
    names = sorted(path.name for path in cache.iterdir())
    assert (len(names), names[-1]) == (16, "19.onnx")


@pytest.mark.ci
def test_processes_that_store_at_once_leave_one_whole_entry(cache: Path) -> None:
    content = b"x" * 1_000_000
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(partial(runtime_cache.store, "a.onnx"), [content] * 8))
    assert set(results) == {""}
    assert [path.name for path in cache.iterdir()] == ["a.onnx"]
    assert runtime_cache.load("a.onnx") == content


def test_an_encoder_is_known_until_its_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(tiny_state(), path)
    assert read_encoder_record(TINY, [path]) is None
    encoder = load_encoder(TINY, weights_path=path, device=CPU, batch_tiles=2)
    assert read_encoder_record(TINY, [path]) == EncoderRecord(
        name=TINY, weights_sha256=encoder.weights_sha256, dim=64,
        transform=encoder.preprocessing.as_json(),
        preprocessing_source=encoder.preprocessing_source,
    )  # fmt: skip
    assert read_encoder_record(TINY, [None]) is None
    beside = path.with_name("config.json")  # may state another mean, or another network
    beside.write_text("{}")
    assert read_encoder_record(TINY, [path]) is None
    beside.unlink()
    assert read_encoder_record(TINY, [path]) is not None
    save_file(tiny_state(seed=1), path)
    os.utime(path, (1, 1))
    assert read_encoder_record(TINY, [path]) is None


@pytest.mark.ci
def test_an_export_runs_without_its_network_until_something_changes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "w.safetensors"
    save_file(tiny_state(), path)

    def load(execution: str = "auto", n_tiles: int | None = 32, batch_tiles: int = 2) -> Encoder:
        config = EncoderConfig(
            encoder=TINY, weights=(path,), device="cpu", batch_tiles=batch_tiles, runtime=execution
        )
        return config.load_encoder(n_tiles_expected=n_tiles)

    def known(execution: str = "auto", n_tiles: int = 3, batch_tiles: int = 2) -> bool:
        found = KnownExport.find(
            TINY, [path], device="cpu", execution=execution, batch_tiles=batch_tiles,
            n_tiles=n_tiles,
        )  # fmt: skip
        return found is not None and (found.measure(n_tiles) or (0, 0))[1] > 0

    assert not known("onnx")
    first, tiles = load("onnx"), random_tiles(3)
    assert known()
    assert known("onnx")
    assert known(first.execution, 10**6, 64)
    assert not known(n_tiles=10**6)  # its runtime is to be chosen
    assert not known("eager")
    assert not known(batch_tiles=16)
    loaded: list[str] = []

    def count(name: str, **options: Path | None) -> weights.LoadedModel:
        loaded.append(name)
        return whole(name, **options)

    whole = weights.load_model
    monkeypatch.setattr(weights, "load_model", count)
    for again in (load(), load("onnx"), load(first.execution, n_tiles=10**6)):
        assert not loaded
        assert again.embed(tiles).tobytes() == first.embed(tiles).tobytes()
        for name in ("name", "weights_sha256", "preprocessing", "preprocessing_source", "dim"):
            assert getattr(again, name) == getattr(first, name)
        assert again.execution == first.execution == "onnx float32 batch 2"
    assert load("eager").execution == "eager float32 batch 2"
    np.testing.assert_allclose(load("eager").embed(tiles), first.embed(tiles), atol=1e-4)
    assert load(batch_tiles=16).execution == "eager float32 batch 16"  # no export of that shape
    choice = StoredChoice(
        runtime="eager float32", rates={"eager float32": 2.0, "o": 1.0}, batch_tiles=2
    )
    choice.write(f"{TINY} {first.weights_sha256}", (2, 3, 160, 160), **here())
    assert load().execution == "eager float32 batch 2"  # eager was faster here
    assert not known()
    (export,) = cache.glob("*.onnx")
    model = onnx.load(export)
    (stored,) = model.metadata_props
    stored.value = json.dumps((np.array(json.loads(stored.value)) + 1).tolist())
    onnx.save(model, export)
    loaded.clear()
    assert load("onnx").embed(tiles).tobytes() == first.embed(tiles).tobytes()
    assert loaded == [TINY]  # an export that disagrees is compared with the network itself
    export.write_bytes(export.read_bytes()[:1000])
    assert not known("onnx")
    assert load("onnx").embed(tiles).tobytes() == first.embed(tiles).tobytes()
    save_file(tiny_state(seed=1), path)
    os.utime(path, (1, 1))
    assert load("onnx").weights_sha256 != first.weights_sha256
