"""Advice on backbones, weights and their arguments: each message is followed, and arrives."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError
from PIL import Image
from safetensors.torch import save_file

from features.encoders import hub, model_config, weights
from features.encoders.names import parse_backbone
from features.encoders.weights import build_untrained
from tests.cli.running import expect_advice, follow_advice, mil_ok
from tests.cli.test_filter import pen, tissue
from tests.features.encoders.test_pathology import write_folder

pytestmark = pytest.mark.ci
TILES = "--slide-mpp 0.5 --tile-px 64 --rules none --tissue all --device cpu"
EMBED = f"embed slide.png {TILES} --bags {{out}} --execution eager --backbone"
ARGS = ["depth=2", "embed_dim=48", "num_heads=3", "img_size=112", "input_px=112"]
SMALL = " ".join(f"--model-arg {one}" for one in ARGS)
"""Arguments of a small stand-in of a gated vision transformer."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide, weights of small networks, whole and spoilt, and folders with a configuration."""
    folder = tmp_path_factory.mktemp("backbones")
    Image.fromarray(tissue(0, 160)).save(folder / "slide.png")
    torch.manual_seed(0)
    state = timm.create_model("test_vit").state_dict()
    save_file(state, folder / "w.safetensors")
    save_file({**state, "norm.weight": state["norm.weight"] * np.nan}, folder / "nan.safetensors")
    (folder / "damaged.safetensors").write_bytes((folder / "w.safetensors").read_bytes()[:999])
    torch.save(SimpleNamespace(model=3), folder / "model.pt")
    torch.save({"ema": {"w": torch.ones(2)}, "net": state}, folder / "pair.pt")
    torch.save({key: value.to("meta") for key, value in state.items()}, folder / "meta.pt")
    swiglu = timm.create_model("test_vit", mlp_layer=timm.layers.SwiGLUPacked)
    save_file(swiglu.state_dict(), folder / "swiglu.safetensors")
    save_file(timm.create_model("test_resnet").state_dict(), folder / "cnn.safetensors")
    pooled: Any = build_untrained(parse_backbone("uni2-h", ARGS))
    save_file(getattr(pooled, "model", pooled).state_dict(), folder / "uni.safetensors")
    rows = ["path,label,slide_id"]
    for number in range(3):
        for name, paint in (("keep", tissue), ("drop", pen)):
            Image.fromarray(paint(number, 64)).save(folder / f"{name}{number}.png")
            rows.append(f"{name}{number}.png,{name},s{number}")
    (folder / "examples.csv").write_text("\n".join(rows) + "\n")
    for name in ("good", "bare", "odd"):
        write_folder(folder / name)
    (folder / "good+odd").symlink_to(folder / "good")
    (folder / "bare" / "model.safetensors").unlink()
    write_folder(folder / "headless", model_args={"num_heads": 0})
    write_folder(folder / "wide", pretrained_cfg={"input_size": [3, 64, 96]})
    (folder / "odd" / "config.json").write_text("{}")
    (folder / "unnamed.csv").write_text("path,label\nkeep0.png,keep\n")
    return folder


@pytest.fixture(autouse=True)
def offline(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub refuses everything, each in its way."""
    answer: Any = SimpleNamespace(headers={}, request=None, status_code=403)

    def download(hub_id: str = "", name: str = "", **_: object) -> str:
        if "UNI2" in hub_id:
            raise GatedRepoError("gated", response=answer)
        if "nobody" in hub_id:
            raise RepositoryNotFoundError("no", response=answer)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    for module in (hub, model_config, weights):
        monkeypatch.setattr(module, "cached_file", lambda hub_id, names: None)
    monkeypatch.chdir(study)


W = "--weights w.safetensors"
RESNET = "test_resnet --weights cnn.safetensors"


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("test_vit", "give a local checkpoint with --weights FILE", f"test_vit {W}"),
        (f"uni2-h {SMALL}", "and give it with --weights FILE",
         f"uni2-h {SMALL} --weights uni.safetensors"),
        ("hf-hub:some/one", "give it with --backbone local-dir:FOLDER", "local-dir:good"),
        ("hf-hub:nobody/one", "Check the name; or fetch config.json and the weights",
         "local-dir:good"),
        ("local-dir:moved", "with config.json beside them: --weights FOLDER/model.safetensors.",
         "local-dir:moved --weights good/model.safetensors"),
        ("local-dir:bare", "Copy them there, or give them with --weights FILE.",
         "local-dir:bare --weights good/model.safetensors"),
        ("local-dir:good+odd", "Link the folder under another name.", "local-dir:good"),
        ("local-dir:wide", "Change it there; other inputs are not supported.", "local-dir:good"),
        ("local-dir:headless", "Correct the model_args of its config.json.", "local-dir:good"),
        ("local-dir:odd", "KEY=VALUE, and give the weights with --weights.", f"test_vit {W}"),
        (f"test_vit2 {W}", "Name the backbone these weights belong to with --backbone",
         f"test_vit {W}"),
        ("test_vit --weights swiglu.safetensors", "by --model-arg KEY=VALUE, e.g. mlp_layer=Swi",
         "test_vit --weights swiglu.safetensors --model-arg mlp_layer=SwiGLUPacked"),
        ("test_vit --weights nan.safetensors", "Use the checkpoint of another epoch",
         f"test_vit {W}"),
        ("test_vit --weights damaged.safetensors", "Fetch it again", f"test_vit {W}"),
        ("test_vit --weights model.pt", "Save the state_dict alone", f"test_vit {W}"),
        ("test_vit --weights pair.pt", "Save the state_dict of the network alone.",
         f"test_vit {W}"),
        ("test_vit --weights meta.pt", "Save the state_dict of the network as it runs.",
         f"test_vit {W}"),
        ("test_vit --weights good", "or give it with --backbone local-dir:FOLDER.",
         "local-dir:good"),
        ("hf-hub:some/one@main", "A revision cannot be named: fetch its files, and give them with",
         "local-dir:good"),
        (f"test_vit {W} --model-arg input_px=100", "State its input with --model-arg input_px=PX",
         f"test_vit {W} --model-arg input_px=160"),
        (f"test_vit {W} --model-arg nosuch=1", "Correct what --model-arg states, or leave it out.",
         f"test_vit {W}"),
        (f"{RESNET} --model-arg pooling=token", "Leave --model-arg pooling out.", RESNET),
        (f"test_vit {W} --execution 'eager float16'", "Give --model-arg precision=float16 instead",
         f"test_vit {W} --model-arg precision=float16"),
        (f"test_vit {W} --execution onnx --model-arg precision=bfloat16",
         "Use --execution eager, or auto",
         f"test_vit {W} --execution eager --model-arg precision=bfloat16"),
        (f"test_vit+{RESNET} {W} --model-arg pooling=mean",
         "Write them as NAME?KEY=VALUE+OTHER.",
         f"'test_vit?pooling=mean+test_resnet' {W} --weights cnn.safetensors"),
    ],
)  # fmt: skip
def test_advice_on_weights_and_arguments_leads_to_bags(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    embed = EMBED.format(out=tmp_path / "bags")
    follow_advice(f"{embed} {wrong}", advice, f"{embed} {then}")


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        (f"test_vit.nope {W}", "'mil backbones \"test_vit.*\"' lists its tags.", "test_vit.*"),
        (f"'any vit' {W}", "See 'mil backbones'.", "test_vit"),
    ],
)
def test_advice_to_list_backbones_leads_to_a_list(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    follow_advice(f"{EMBED.format(out=tmp_path / 'bags')} {wrong}", advice, ["backbones", then])
    if "tags" in advice:
        follow_advice("backbones test_vit.nope", advice, ["backbones", then])


def test_a_repository_without_its_prefix_is_advised_and_found(
    study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "hf_hub_download", lambda _, name: str(study / "good" / name))
    embed = EMBED.format(out=tmp_path / "bags")
    advice = "Did you mean the repository of the hub, hf-hub:some/one?"
    follow_advice(f"{embed} some/one", advice, f"{embed} hf-hub:some/one")


@pytest.mark.parametrize(
    ("backbone", "advice", "n_rows", "layout"),
    [
        ("conch", "or bring its embeddings: mil bags import FOLDER --from LAYOUT.", 4,
         "--from torch"),
        ("titan", "Compute them with its own code, then: mil bags import FOLDER --slide-vectors.",
         1, "--slide-vectors"),
    ],
)  # fmt: skip
def test_embeddings_of_code_that_is_not_run_are_imported(
    backbone: str, advice: str, n_rows: int, layout: str, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    torch.manual_seed(0)
    torch.save(torch.randn(n_rows, 8), tmp_path / "made" / "slide.pt")
    follow_advice(
        f"{EMBED.format(out=tmp_path / 'bags')} {backbone}", advice,
        f"bags import {tmp_path}/made {layout} --bags {tmp_path}/bags",
    )  # fmt: skip


def test_bags_of_one_runtime_are_continued_in_it(tmp_path: Path) -> None:
    embed = EMBED.format(out=tmp_path / "bags") + f" test_vit {W}"
    mil_ok(*shlex.split(embed))
    (tmp_path / "bags" / "slide.h5").unlink()
    follow_advice(
        embed.replace("eager", "onnx"),
        "Leave --execution out, or name another folder with --bags.",
        embed.replace("--execution eager", ""),
    )


@pytest.mark.parametrize("backbone", ["local-dir:good", f"test_vit {W} --model-arg pooling=mean"])
def test_a_filter_is_fitted_with_any_backbone_that_embeds(backbone: str, tmp_path: Path) -> None:
    """As the advice to fit it again with the same backbone says."""
    fit = f"filter fit examples.csv --tile-px 64 --out {tmp_path}/f.filter --backbone {backbone}"
    mil_ok(*shlex.split(fit))
    embed = f"{EMBED.format(out=tmp_path / 'bags')} {backbone} --filter {tmp_path}/f.filter"
    mil_ok(*shlex.split(embed))


def test_examples_say_of_which_slide_they_are(tmp_path: Path) -> None:
    fit = f"filter fit {{}} --tile-px 64 --out {tmp_path}/f.filter --backbone test_vit {W}"
    follow_advice(
        fit.format("unnamed.csv"),
        "expected the slide that the image comes from. Without it, tiles of one slide would be in",
        fit.format("examples.csv"),
    )


def test_a_gated_backbone_is_fetched_once_its_terms_are_accepted(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub lets in who has a token, as after ``hf auth login``."""
    refuse = hub.hf_hub_download

    def download(hub_id: str, name: str, **_: object) -> str:
        if not os.environ.get("HF_TOKEN"):
            refuse(hub_id, name)
        if not name.endswith("safetensors"):
            raise EntryNotFoundError("no such file")
        return str(study / "uni.safetensors")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    embed = f"{EMBED.format(out=tmp_path / 'bags')} uni2-h {SMALL}"
    expect_advice(
        embed, "Accept its terms on that page, then log in with 'hf auth login' or set HF_TOKEN"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    mil_ok(*shlex.split(embed))
