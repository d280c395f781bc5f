"""The model hub's answers, faked: no test asks the network."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from features.encoders import hub, model_config, weights
from features.encoders.encoder import load_encoder
from features.encoders.weights import load_model
from features.errors import EncoderError
from tests.features.encoders.test_encoder import CPU, random_tiles
from tests.features.encoders.test_pathology import write_folder

ANSWER: Any = SimpleNamespace(headers={}, request=None, status_code=403)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hub, model_config, weights):
        monkeypatch.setattr(module, "cached_file", lambda hub_id, names: None)


def answer_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(hub_id: str, name: str) -> str:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", download)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError("gated", response=ANSWER),
         "access is gated, and your token has not been granted it; .*hf auth login.*--weights"),
        (RepositoryNotFoundError("no", response=ANSWER), "no such repository, or it is private"),
        (HfHubHTTPError("401 Invalid token", response=ANSWER), "401 Invalid token"),
        (LocalEntryNotFoundError("cannot find the file, no connection"), "could not be downloaded"),
        (OfflineModeIsEnabled("offline mode is enabled"), "offline mode is enabled"),
        (ConnectionError("no route to host\nsecond line"), "no route to host"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (EntryNotFoundError("404"), "no file model.safetensors or pytorch_model.bin"),
    ],
)  # fmt: skip
def test_one_message_names_the_file_and_how_to_give_it(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, error)
    with pytest.raises(EncoderError, match=words) as caught:
        load_model("uni2-h")
    text = str(caught.value)
    assert "https://huggingface.co/MahmoodLab/UNI2-h" in text
    assert "model.safetensors" in text
    assert "--weights FILE" in text
    assert "\n" not in text


def test_weights_of_a_name_of_their_own_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, ConnectionError("no route to host"))
    with pytest.raises(EncoderError, match=r"Fetch GPFM\.pth from that page .*--weights FILE"):
        load_model("gpfm")


def test_an_unknown_repository_without_network_asks_for_a_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer_with(monkeypatch, ConnectionError("no route to host"))
    with pytest.raises(EncoderError, match=r"config.json.*--backbone local-dir:FOLDER"):
        load_model("hf-hub:someone/else")


def test_a_repository_is_read_like_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "repository")
    requested: list[tuple[str, str]] = []

    def download(hub_id: str, name: str) -> str:
        requested.append((hub_id, name))
        if not (tmp_path / "repository" / name).is_file():
            raise EntryNotFoundError("404")
        return str(tmp_path / "repository" / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    loaded = load_model("hf-hub:someone/else")
    assert (loaded.preprocessing.mean, loaded.preprocessing.input_px) == ((0.7, 0.5, 0.6), 64)
    assert requested == [("someone/else", "config.json"), ("someone/else", "model.safetensors")]


def test_a_truncated_download_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "repository")
    file = tmp_path / "repository" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    monkeypatch.setattr(hub, "hf_hub_download", lambda hub_id, name: str(file.with_name(name)))
    with pytest.raises(EncoderError, match=r"not readable as weights .*Fetch it again"):
        load_model("hf-hub:someone/else")


def write_package(folder: Path, code: str, *, name: str = "my-encoder") -> None:
    """Write an installed package with an entry point, as ``pip install`` leaves it."""
    example = Path(__file__).parents[2] / "data" / "encoder_package"
    shutil.copytree(example, folder, dirs_exist_ok=True)
    if code:
        (folder / "my_encoder.py").write_text(code, encoding="utf-8")
    info = folder / "my_encoder-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-encoder\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mil.encoders]\n{name} = my_encoder:load\n")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import sys

    def install(code: str = "", *, name: str = "my-encoder") -> None:
        write_package(tmp_path / "site", code, name=name)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.delitem(sys.modules, "my_encoder", raising=False)

    return install


def test_an_installed_package_provides_an_encoder(package: Any) -> None:
    package()
    loaded = load_model("my-encoder?width=24")
    assert (loaded.name, loaded.preprocessing.input_px) == ("my-encoder?width=24", 64)
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "other"), [("uni", "the registry of pathology encoders"), ("resnet18", "timm")]
)
def test_a_package_does_not_take_the_name_of_another_encoder(
    package: Any, name: str, other: str
) -> None:
    package(name=name)
    message = f"backbone {name!r}: an encoder of my-encoder and of {other}; .*Rename the entry"
    with pytest.raises(EncoderError, match=message):
        load_model(name)


PLUGIN = """
from dataclasses import replace
from torch import nn
from features.errors import EncoderError
from features.encoders.plugins import PluginEncoder
from features.encoders.preprocessing import Preprocessing

GIVEN = Preprocessing(input_px=8, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)

def refuse():
    raise EncoderError("backbone 'my-encoder'", actual="licence not accepted")

class Network(nn.Module):
    def forward(self, images):
        vectors = images.mean((2, 3))
        return OUTPUT

def load(weights_path):
    return PluginEncoder"""


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("{}['x']", "cannot take an image of 8 px .'x'"),
        ("exit(3)", "cannot take an image of 8 px"),
        ("refuse()", "licence not accepted$"),
        ("vectors[:, :0]", r"shape \(1, 0\).*expected one vector per tile"),
        ("vectors.int()", r"shape \(1, 3\) and torch.int32"),
        ("vectors + 1j", r"shape \(1, 3\) and torch.complex64"),
        ("vectors[:1]", r"shape \(1, 3\) for 2 tiles; expected \(2, 3\)"),
        ("vectors.repeat(2, 1)", r"shape \(2, 3\).*expected one vector per tile"),
    ],
)
def test_a_package_whose_network_returns_no_vector_per_tile_is_one_message(
    package: Any, output: str, words: str
) -> None:
    code = PLUGIN.replace("OUTPUT", output) + "(model=Network(), preprocessing=GIVEN)"
    package(code)
    with pytest.raises(EncoderError, match=f"backbone 'my-encoder'.*{words}"):
        load_encoder("my-encoder", weights_path=None, device=CPU, batch_tiles=2).embed(
            random_tiles(side_px=8)
        )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("load = 3", "TypeError"),
        ("def load(weights_path): return 3", "it returned a int"),
        (f"{PLUGIN}(model=len, preprocessing=GIVEN)", "its model is a builtin_function"),
        (f"{PLUGIN}(model=nn.Identity(), preprocessing={{}})", "its preprocessing is a dict"),
        (f"{PLUGIN}(model=nn.Identity(), preprocessing=replace(GIVEN, input_px=0))", "input_px 0"),
        (
            f"{PLUGIN}(model=nn.Identity(), preprocessing=replace(GIVEN, interpolation='box'))",
            "interpolation 'box'; expected bicubic or bilinear",
        ),
    ],
)
def test_a_broken_package_is_one_message(package: Any, code: str, words: str) -> None:
    package(code)
    with pytest.raises(EncoderError, match=f"'my-encoder' of my-encoder.*{words}"):
        load_model("my-encoder")
