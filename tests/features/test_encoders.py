from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from features import encoders
from features.encoders import DEFAULT_BACKBONE, load_encoder
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


def test_the_default_backbone_knows_what_photographs_show() -> None:
    # The mapping of the packaged weights is right only if the whole network still classifies.
    from sklearn.datasets import load_sample_image

    state = encoders._read_checkpoint(packaged_path())
    model = timm.create_model(DEFAULT_BACKBONE, pretrained=False)
    model.load_state_dict(encoders._rename_lite(state, model))
    encoder = load_encoder(DEFAULT_BACKBONE, weights_path=None, device=CPU)
    embedding = torch.from_numpy(encoder.embed(load_sample_image("flower.jpg")[None].copy()))
    with torch.inference_mode():
        best = int(model.eval().get_classifier()(embedding).argmax())
    assert timm.data.ImageNetInfo().index_to_description(best) == "daisy"


def packaged_path() -> Path:
    from importlib import metadata

    package, name = encoders._PACKAGED_WEIGHTS[DEFAULT_BACKBONE]
    return next(Path(str(f.locate())) for f in metadata.files(package) or [] if f.name == name)


def test_preprocessing_is_timms_own() -> None:
    encoder = load_encoder(DEFAULT_BACKBONE, weights_path=None, device=CPU)
    config = timm.create_model(DEFAULT_BACKBONE, pretrained=False).pretrained_cfg
    assert encoder.preprocessing.mean == config["mean"]
    assert encoder.preprocessing.std == config["std"]
    assert encoder.preprocessing.input_px == config["input_size"][-1]
    assert encoder.dim == 1280


def test_embeddings_equal_timm_called_by_hand(tiny_weights: Path) -> None:
    encoder = load_encoder(TINY, weights_path=tiny_weights, device=CPU)
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
    encoder = load_encoder(TINY, weights_path=tiny_weights, device=CPU)
    flat = np.full((1, 160, 160, 3), 90, np.uint8)
    large = np.full((1, 400, 400, 3), 90, np.uint8)
    np.testing.assert_allclose(encoder.embed(flat), encoder.embed(large), rtol=1e-3, atol=1e-4)


def test_the_hash_tells_weights_and_not_files(tmp_path: Path, tiny_weights: Path) -> None:
    torch.save({"state_dict": tiny_state()}, tmp_path / "same.pth")
    save_file(tiny_state(seed=1), tmp_path / "other.safetensors")
    first, same, other = (
        load_encoder(TINY, weights_path=path, device=CPU).weights_sha256
        for path in (tiny_weights, tmp_path / "same.pth", tmp_path / "other.safetensors")
    )
    assert first == same
    assert first != other


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_resnet", "test_vit"])
def test_any_family_gives_one_vector_a_tile(tmp_path: Path, name: str) -> None:
    save_file(tiny_state(name=name), tmp_path / "w.safetensors")
    encoder = load_encoder(name, weights_path=tmp_path / "w.safetensors", device=CPU)
    assert encoder.embed(random_tiles()).shape == (3, encoder.dim)


def test_weights_of_another_model_are_refused(tiny_weights: Path) -> None:
    with pytest.raises(EncoderError, match="do not fit 'test_resnet'"):
        load_encoder("test_resnet", weights_path=tiny_weights, device=CPU)


def test_an_unknown_name_is_answered_with_likely_ones() -> None:
    with pytest.raises(EncoderError, match=r"does not know it.*Did you mean .*resnet50"):
        load_encoder("resnet_50", weights_path=None, device=CPU)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(EncoderError, match="not readable as weights"):
        load_encoder(TINY, weights_path=tmp_path / "evil.pth", device=CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02garbage"])
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EncoderError, match="not readable as weights"):
        load_encoder(TINY, weights_path=tmp_path / name, device=CPU)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="there is no such file"):
        load_encoder(TINY, weights_path=tmp_path / "gone.pth", device=CPU)


def test_without_the_hub_the_message_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def without_network(name: str, *, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("no route to the hub")
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    with pytest.raises(EncoderError) as caught:
        load_encoder("resnet18", weights_path=None, device=CPU)
    for way_out in ("no route to the hub", "--weights FILE", "HF_HOME", DEFAULT_BACKBONE):
        assert way_out in str(caught.value)


def test_hub_weights_are_asked_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model
    asked: list[str] = []

    def with_network(name: str, *, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            asked.append(name)
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", with_network)
    load_encoder(TINY, weights_path=None, device=CPU)
    assert asked == [TINY]
