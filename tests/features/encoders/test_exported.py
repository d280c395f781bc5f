"""Encoders that run by their cached export: the embeddings of the network, without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from features.encoders import exported
from features.encoders.base import Encoder
from features.encoders.config import EncoderConfig
from features.encoders.exported import ExportedEncoder, KnownExport, open_export
from features.encoders.preprocessing import Preprocessing
from features.encoders.scaling import scale_antialiased
from tests.features.encoders.test_encoder import TINY, tiny_state


def noise(n_tiles: int, height_px: int, width_px: int) -> np.ndarray:
    shape = (n_tiles, height_px, width_px, 3)
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height_px", "width_px", "side_px"),
    [(256, 256, 224), (224, 224, 160), (96, 96, 224), (512, 300, 224), (7, 9, 32), (32, 32, 32)],
)
def test_tiles_are_scaled_as_by_torch(
    height_px: int, width_px: int, side_px: int, interpolation: str
) -> None:
    tiles = noise(2, height_px, width_px)
    expected = functional.interpolate(
        torch.from_numpy(tiles).permute(0, 3, 1, 2).float(), size=(side_px, side_px),
        mode=interpolation, antialias=True, align_corners=False,
    ).clamp(0, 255)  # fmt: skip
    scaled = scale_antialiased(tiles, side_px, interpolation)
    np.testing.assert_allclose(scaled, expected.permute(0, 2, 3, 1).numpy(), atol=2e-3)


def test_levels_are_normalised_as_by_torch() -> None:
    preprocessing = Preprocessing(
        input_px=16, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    scale, shift = map(torch.from_numpy, preprocessing.scale_and_shift)
    levels = torch.arange(256).float().repeat(3, 1)
    expected = torch.addcmul(shift[:, None], levels, scale[:, None])
    np.testing.assert_allclose(preprocessing.normalised_levels, expected.numpy(), atol=5e-7)
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    exact = (np.arange(256) / 255 - mean[:, None]) / std[:, None]
    np.testing.assert_allclose(preprocessing.normalised_levels, exact, atol=1e-6)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load the tiny encoder with a runtime, its cache in a folder of the test."""
    monkeypatch.setenv("MIL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "w.safetensors"
    save_file(tiny_state(), path)

    def load_tiny(runtime: str, *, batch_tiles: int = 8, **options: Any) -> Encoder:
        config = EncoderConfig(
            encoder=TINY, weights=(path,), device="cpu", batch_tiles=batch_tiles, runtime=runtime
        )
        return config.load_encoder(**options)

    return load_tiny


@pytest.mark.ci
def test_an_export_gives_the_embeddings_of_its_network(load: Any) -> None:
    pytest.importorskip("onnxruntime")
    eager, first, again = load("eager"), load("onnx"), load("onnx")
    assert not isinstance(first, ExportedEncoder)
    assert isinstance(again, ExportedEncoder)
    for side_px in (160, 224, 96):
        tiles = noise(11, side_px, side_px)
        whole = again.embed(tiles)
        for other, largest in ((eager, 1e-3), (first, 2e-6)):
            expected = other.embed(tiles)
            errors = np.linalg.norm(whole - expected, axis=1) / np.linalg.norm(expected, axis=1)
            assert errors.max() < largest
        for start, stop in ((0, 1), (3, 11), (5, 5)):  # whatever else is in the batch
            np.testing.assert_array_equal(again.embed(tiles[start:stop]), whole[start:stop])
    assert (again.device.type, str(again.device)) == ("cpu", "cpu")


@pytest.mark.ci
def test_an_export_is_compared_once_and_again_when_it_has_changed(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    load("onnx")
    compared: list[int] = []

    def count(n_tiles: int, side_px: int) -> np.ndarray:
        compared.append(n_tiles)
        return made(n_tiles, side_px)

    made = exported.random_tiles
    monkeypatch.setattr(exported, "random_tiles", count)
    for _ in range(3):
        assert isinstance(load("onnx"), ExportedEncoder)
    assert compared == [4]
    (path,) = (tmp_path / "cache").glob("*.onnx")
    model = onnx.load(path)
    model.doc_string = "written anew"
    onnx.save(model, path)
    assert isinstance(load("onnx"), ExportedEncoder)
    assert compared == [4, 4]
    os.truncate(path, 1000)
    export = KnownExport.find(
        TINY, [tmp_path / "w.safetensors"], device="cpu", execution="onnx", batch_tiles=8, n_tiles=1
    )
    assert export is not None
    assert open_export(export) is None
    assert not isinstance(load("onnx"), ExportedEncoder)  # and is made again


@pytest.mark.ci
def test_a_worker_of_several_takes_the_export_of_its_share_of_cores(
    load: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    n_threads = torch.get_num_threads()
    try:
        load("onnx", batch_tiles=6, n_threads=2)
        one = KnownExport.find(
            TINY, [tmp_path / "w.safetensors"], device="cpu", execution="onnx", batch_tiles=6,
            n_tiles=1, n_threads=2,
        )  # fmt: skip
        assert one is not None
        assert (one.part_shape, one.n_at_once) == ((3, 3, 160, 160), 2)
        assert isinstance(load("onnx", batch_tiles=6, n_threads=2), ExportedEncoder)
        assert not isinstance(load("onnx", batch_tiles=6, n_threads=3), ExportedEncoder)
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.parametrize("execution", ["onnx float16", "eager", "compile", "fast", "onnx batch x"])
def test_other_runtimes_begin_with_no_export(execution: str) -> None:
    found = KnownExport.find(
        TINY, [None], device="cpu", execution=execution, batch_tiles=8, n_tiles=1
    )
    assert found is None


@pytest.mark.parametrize(
    ("stated", "expected"),
    [("3", [3]), ("2,4", [2]), ("0", None), ("many", None), ("", None)],
)
def test_threads_are_those_of_torch(
    stated: str, expected: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exported._possible_threads() == [torch.get_num_threads()]
    monkeypatch.delitem(exported.sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", stated)
    monkeypatch.setattr(exported, "CPU_COUNT", 4)
    monkeypatch.setattr(exported, "physical_core_count", lambda: 2)
    assert exported._possible_threads() == (expected or [2, 4, 3, 1])
