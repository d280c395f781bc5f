from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from features.encoders.encoder import (
    DEFAULT_BACKBONE,
    TimmEncoder,
    load_encoder,
)
from features.encoders.preprocessing import Preprocessing, resolve_preprocessing
from features.encoders.weights import build_untrained
from features.errors import EncoderError

CPU = torch.device("cpu")
TINY = "test_vit"


def tiny_state(seed: int = 0, name: str = TINY) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = timm.create_model(name, pretrained=False).state_dict()
    return state


@pytest.fixture
def tiny_weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_state(), path)
    return path


def random_tiles(n_tiles: int = 3, side_px: int = 160) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n_tiles, side_px, side_px, 3), np.uint8)


def test_preprocessing_is_timms_own() -> None:
    encoder = load_encoder(DEFAULT_BACKBONE, weights_path=None, device=CPU, batch_tiles=1)
    config = timm.create_model(DEFAULT_BACKBONE, pretrained=False).pretrained_cfg
    assert encoder.preprocessing.mean == config["mean"]
    assert encoder.preprocessing.std == config["std"]
    assert encoder.preprocessing.input_px == config["input_size"][-1]
    assert encoder.dim == 1280


def test_embeddings_equal_those_of_timm(tiny_weights: Path) -> None:
    encoder = load_encoder(TINY, weights_path=tiny_weights, device=CPU, batch_tiles=4)
    tiles = random_tiles()
    model = timm.create_model(TINY, pretrained=False)
    model.load_state_dict(tiny_state())
    model.reset_classifier(0)
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = model.eval()((pixels - mean) / std).numpy()
    np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-3, atol=1e-4)


def test_tiles_of_another_size_are_scaled_whole(tiny_weights: Path) -> None:
    encoder = load_encoder(TINY, weights_path=tiny_weights, device=CPU, batch_tiles=4)
    flat = np.full((1, 160, 160, 3), 90, np.uint8)
    large = np.full((1, 400, 400, 3), 90, np.uint8)
    np.testing.assert_allclose(encoder.embed(flat), encoder.embed(large), rtol=1e-3, atol=1e-4)


def test_the_hash_depends_on_weights_and_not_on_files(tmp_path: Path, tiny_weights: Path) -> None:
    torch.save({"state_dict": tiny_state()}, tmp_path / "same.pth")
    save_file(tiny_state(seed=1), tmp_path / "other.safetensors")
    first, same, other = (
        load_encoder(TINY, weights_path=path, device=CPU, batch_tiles=4).weights_sha256
        for path in (tiny_weights, tmp_path / "same.pth", tmp_path / "other.safetensors")
    )
    assert first == same
    assert first != other


@pytest.mark.parametrize(
    "name",
    ["test_convnext", "test_coatnet", "test_efficientnet", "test_mambaout", "test_maxvit",
     "test_nfnet", "test_resnet", "test_vit", "test_vit_relpos"],
)  # fmt: skip
def test_any_family_gives_one_vector_per_tile(name: str) -> None:
    encoder = untrained(name)
    assert encoder.embed(random_tiles()).shape == (3, encoder.dim)
    assert encoder.embed(random_tiles(0)).shape == (0, encoder.dim)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("poolformer_s36", 512),
        ("poolformerv2_s36", 512),
        ("swin_tiny_patch4_window7_224", 768),
        ("convnext_tiny", 768),
        ("vit_small_patch16_224", 384),
    ],
)
def test_networks_in_common_use_give_one_vector_per_tile(name: str, dim: int) -> None:
    assert untrained(name, batch_tiles=1).embed(random_tiles(1, 224)).shape == (1, dim)


def untrained(name: str, batch_tiles: int = 4, execution: str = "eager") -> TimmEncoder:
    torch.manual_seed(0)
    model = build_untrained(name)
    return TimmEncoder(
        model, name=name, preprocessing=resolve_preprocessing(model), device=CPU,
        batch_tiles=batch_tiles, execution=execution,
    )  # fmt: skip


class Maps(nn.Module):
    """Model that returns one feature map or several instead of a vector."""

    def __init__(self, n_maps: int) -> None:
        super().__init__()
        self.n_maps = n_maps

    def forward(self, pixels: torch.Tensor) -> object:
        return pixels if self.n_maps == 1 else [pixels] * self.n_maps


@pytest.mark.parametrize(
    ("n_maps", "output"), [(1, r"shape \(1, 3, 32, 32\)"), (2, "a list for one tile")]
)
def test_a_model_that_returns_maps_is_refused(n_maps: int, output: str) -> None:
    preprocessing = Preprocessing(
        input_px=32, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    with pytest.raises(EncoderError, match=f"backbone 'maps'.*{output}.*one vector per tile"):
        TimmEncoder(Maps(n_maps), name="maps", preprocessing=preprocessing, device=CPU)


class Function(nn.Module):
    """Model that returns the value of a function of the pixels."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.function(pixels)


def of_function(function: Callable[[torch.Tensor], torch.Tensor]) -> TimmEncoder:
    preprocessing = Preprocessing(
        input_px=32, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    return TimmEncoder(Function(function), name="own", preprocessing=preprocessing, device=CPU)


def test_a_model_that_takes_single_tiles_only_is_one_message() -> None:
    encoder = of_function(lambda pixels: pixels.reshape(1, 3 * 32 * 32))
    with pytest.raises(EncoderError, match=r"backbone 'own': it fails on a batch of 2 tiles \("):
        encoder.embed(random_tiles(2))


def test_a_sparse_vector_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"shape \(1, 3072\) \(sparse\) for one tile"):
        of_function(lambda pixels: pixels.flatten(1).to_sparse())


@pytest.mark.parametrize("execution", ["eager", pytest.param("onnx", marks=pytest.mark.ci)])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_tiles_bytes_depend_neither_on_its_batch_nor_on_its_position(
    name: str, execution: str
) -> None:
    if execution == "onnx":
        pytest.importorskip("onnxruntime")
    encoder = untrained(name, batch_tiles=5, execution=execution)
    tiles = random_tiles(11)
    together = encoder.embed(tiles)
    assert encoder.embed(tiles[::-1]).tobytes() == together[::-1].tobytes()
    for index in (0, 4, 7):
        assert encoder.embed(tiles[index : index + 1]).tobytes() == together[index].tobytes()


def test_a_recorded_execution_is_used_again(tiny_weights: Path) -> None:
    first = load_encoder(TINY, weights_path=tiny_weights, device=CPU, batch_tiles=3)
    assert first.execution == "eager float32 batch 3"
    again = load_encoder(TINY, weights_path=tiny_weights, device=CPU, execution=first.execution)
    assert again.execution == first.execution
    assert again.embed(random_tiles()).tobytes() == first.embed(random_tiles()).tobytes()


def test_half_precision_on_a_cpu_is_part_of_the_encoder(tiny_weights: Path) -> None:
    load = partial(load_encoder, weights_path=tiny_weights, device=CPU, batch_tiles=2)
    plain, half = load(TINY), load(f"{TINY}?precision=bfloat16", execution="auto")
    assert (half.name, half.execution) == (
        f"{TINY}?precision=bfloat16", "eager bfloat16 batch 2",
    )  # fmt: skip
    expected, found = plain.embed(random_tiles()), half.embed(random_tiles())
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert 1e-5 < errors.max() < 1e-2
    again = load(half.name, execution=half.execution)  # what a folder of bags records
    assert again.embed(random_tiles()).tobytes() == found.tobytes()
    with pytest.raises(EncoderError, match=r"changes embeddings.*--model-arg precision=bfloat16"):
        load(TINY, execution="eager bfloat16")
    with pytest.raises(EncoderError, match="'int8'; expected float32, bfloat16, float16"):
        load(f"{TINY}?precision=int8")


def test_for_few_tiles_no_runtime_is_tried(tiny_weights: Path) -> None:
    encoder = load_encoder(
        TINY, weights_path=tiny_weights, device=CPU, execution="auto", n_tiles_expected=10
    )
    assert encoder.execution == "eager float32 batch 64"


def test_two_backbones_are_joined_with_both_fingerprints(
    tmp_path: Path, tiny_weights: Path
) -> None:
    save_file(tiny_state(name="test_resnet"), tmp_path / "resnet.safetensors")
    paths = [tiny_weights, tmp_path / "resnet.safetensors"]
    joined = load_encoder(
        "test_vit+test_resnet", weights_path=paths, device=CPU, batch_tiles=4, execution="eager"
    )
    vit, resnet = (
        load_encoder(name, weights_path=path, device=CPU, batch_tiles=4)
        for name, path in zip(("test_vit", "test_resnet"), paths, strict=True)
    )
    tiles = random_tiles()
    expected = np.hstack([vit.embed(tiles), resnet.embed(tiles)])
    assert joined.embed(tiles).tobytes() == expected.tobytes()
    assert joined.name == "test_vit+test_resnet"
    assert joined.dim == vit.dim + resnet.dim
    assert joined.weights_sha256 == f"{vit.weights_sha256}+{resnet.weights_sha256}"
    assert joined.execution == "eager float32 batch 4+eager float32 batch 4"
    assert joined.preprocessing_source == vit.preprocessing_source == resnet.preprocessing_source
    both = json.loads(joined.preprocessing.as_json())["parts"]
    assert both == [json.loads(one.preprocessing.as_json()) for one in (vit, resnet)]


def test_each_of_several_backbones_needs_its_checkpoint(tiny_weights: Path) -> None:
    with pytest.raises(EncoderError, match="1 checkpoints for 2 backbones"):
        load_encoder("test_vit+test_vit", weights_path=tiny_weights, device=CPU)
    mixed = load_encoder(
        f"test_vit+{DEFAULT_BACKBONE}", weights_path=[tiny_weights, None], device=CPU, batch_tiles=1
    )
    assert mixed.dim == 64 + 1280


class Short(nn.Module):
    """Model on a device with memory for ``n_tiles`` at once."""

    def __init__(self, n_tiles: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.n_tiles = n_tiles

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > self.n_tiles:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return pixels.mean(dim=(2, 3)) * self.weight


def short_encoder(model: Short) -> TimmEncoder:
    return TimmEncoder(
        model, name="short", device=CPU, batch_tiles=16,
        preprocessing=Preprocessing(
            input_px=160, interpolation="bicubic", mean=(0.5,) * 3, std=(0.2,) * 3
        ),
    )  # fmt: skip


def test_a_device_out_of_memory_gets_half_the_batch_until_it_fits() -> None:
    encoder = short_encoder(Short(3))
    tiles = random_tiles(21)
    embeddings = encoder.embed(tiles)
    assert encoder.execution == "eager float32 batch 2"
    np.testing.assert_allclose(embeddings, short_encoder(Short(16)).embed(tiles), rtol=1e-6)
    encoder.embed(tiles)
    assert encoder.batch_tiles == 2


def test_a_device_without_memory_for_one_tile_is_one_clear_error() -> None:
    model = Short(1)
    encoder = short_encoder(model)
    model.n_tiles = 0  # as if another program had taken what was left
    with pytest.raises(EncoderError, match=r"device cpu: out of memory with a single .*--device"):
        encoder.embed(random_tiles())


def test_a_device_without_memory_for_the_backbone_is_one_clear_error(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(nn.Module, "to", refuse)
    with pytest.raises(EncoderError, match=r"device cpu: out of memory.*'test_vit'"):
        load_encoder(TINY, weights_path=tiny_weights, device=CPU)
