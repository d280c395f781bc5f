"""Published pathology encoders: built as their cards state, with weights of random stand-ins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from features.encoders import hub
from features.encoders.encoder import load_encoder
from features.encoders.model_config import layer_args, resolve_model_config
from features.encoders.names import parse_backbone
from features.encoders.pathology import PATHOLOGY_ENCODERS, find_pathology_encoder
from features.encoders.registry import encoder_info
from features.encoders.weights import load_model
from features.errors import EncoderError
from tests.features.encoders.test_encoder import CPU, TINY, random_tiles, tiny_state

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 112}
"""Arguments that make a small stand-in of any vision transformer."""


@pytest.mark.parametrize("name", PATHOLOGY_ENCODERS)
def test_every_entry_builds_with_the_size_of_its_card(name: str) -> None:
    entry = PATHOLOGY_ENCODERS[name]
    info = encoder_info(name)
    assert (info.unusable, info.dim, info.input_px) == ("", entry.dim, entry.input_px)
    assert info.n_parameters / 1e6 == pytest.approx(entry.millions, rel=0.005)
    assert (info.licence, info.gated, info.mpp) == (entry.licence, entry.gated, entry.mpp)
    assert info.card.startswith("https://huggingface.co/")


def test_a_hub_name_finds_the_same_entry_in_any_case() -> None:
    assert find_pathology_encoder("hf-hub:mahmoodlab/uni2-h") is PATHOLOGY_ENCODERS["uni2-h"]
    assert find_pathology_encoder("hf_hub:MahmoodLab/UNI2-h") is PATHOLOGY_ENCODERS["uni2-h"]
    assert find_pathology_encoder("UNI") is PATHOLOGY_ENCODERS["uni"]
    assert find_pathology_encoder("hf-hub:someone/else") is None


def small_name(name: str) -> str:
    stated = [f"{key}={value}" for key, value in SMALL.items()]
    return parse_backbone(name, [*stated, "input_px=112"])


def by_hand(model: Any, pooling: str, tiles: np.ndarray, mean: Any, std: Any) -> torch.Tensor:
    """Embed tiles with timm alone; tiles have the size of the input."""
    scale = [torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std)]
    pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - scale[0]) / scale[1]
    with torch.inference_mode():
        tokens = model.eval().forward_features(pixels)
    if pooling == "token":
        return tokens[:, 0]
    return torch.cat([tokens[:, 0], tokens[:, model.num_prefix_tokens :].mean(1)], 1)


@pytest.mark.parametrize("name", PATHOLOGY_ENCODERS)
def test_a_small_stand_in_embeds_as_timm_by_hand(name: str, tmp_path: Path) -> None:
    entry = PATHOLOGY_ENCODERS[name]
    config = resolve_model_config(small_name(name))
    torch.manual_seed(1)
    model: Any = timm.create_model(entry.architecture, num_classes=0, **layer_args(config))
    for parameter in model.parameters():  # LayerScale and positions begin near 0
        nn.init.normal_(parameter, std=0.2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = load_encoder(
        small_name(name), weights_path=tmp_path / "model.safetensors", device=CPU, batch_tiles=2
    )
    tiles = random_tiles(side_px=112)
    mean, std = entry.normalisation
    expected = by_hand(model, entry.pooling, tiles, mean, std)
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5, rtol=1e-5)
    assert encoder.preprocessing_source == entry.card


TRANSFORMERS = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
                "intermediate_size": 192, "image_size": 112}  # fmt: skip


def transformers_model(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    patch = 14 if name in ("hibou-b", "midnight") else 16
    sizes: dict[str, Any] = TRANSFORMERS | {"patch_size": patch}
    if name == "phikon":
        return transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=True)
    if name == "hibou-b":
        return transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=4)
        )
    return transformers.Dinov2Model(
        transformers.Dinov2Config(**sizes, use_swiglu_ffn=name == "midnight")
    )


@pytest.mark.parametrize("as_saved", [True, False])
@pytest.mark.parametrize("name", ["phikon", "phikon-v2", "hibou-b", "midnight"])
def test_weights_of_transformers_embed_as_transformers_does(
    name: str, as_saved: bool, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    reference = transformers_model(name).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.2)
    if as_saved:  # names of the hub's files, which differ from those in memory, and config.json
        reference.save_pretrained(tmp_path)
    else:
        save_file(reference.state_dict(), tmp_path / "model.safetensors")
    encoder = load_encoder(
        small_name(name), weights_path=tmp_path / "model.safetensors", device=CPU, batch_tiles=3
    )
    tiles = random_tiles(side_px=112)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in PATHOLOGY_ENCODERS[name].normalisation)
    pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.inference_mode():
        tokens = reference(pixels).last_hidden_state
    expected = tokens[:, 0]
    if PATHOLOGY_ENCODERS[name].pooling == "token+mean":
        expected = torch.cat([expected, tokens[:, 1:].mean(1)], 1)
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: {"student": state, "teacher": state, "optimizer": {"lr": 0.1}},
        lambda state: {"state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}},
        lambda state: {
            "state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}
            | {f"module.encoder_k.{k}": v for k, v in state.items()}
            | {"module.queue": torch.zeros(4, 4)}
        },
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"model": {"state_dict": {f"model.{k}": v for k, v in state.items()}}},
        lambda state: {k: v.half() for k, v in state.items()},
        lambda state: {k: v.bfloat16() for k, v in state.items()},
        lambda state: {"ema": state, "epoch": 3},
        lambda state: {"state_dict": {f"model.net.{k}": v for k, v in state.items()}},
        lambda state: (
            {f"base_model.model.{k}": v for k, v in state.items()}
            | {f"text.{k}": v for k, v in list(state.items())[:9]}
        ),
        lambda state: {"module._orig_mod.backbone." + k: v.double() for k, v in state.items()},
    ],
)
def test_wrapped_and_half_checkpoints_are_taken(wrap: Any, tmp_path: Path) -> None:
    state = {k: v.half().float() for k, v in tiny_state().items()}
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    model = load_model(TINY, weights_path=tmp_path / "wrapped.pth").model
    for key, value in model.state_dict().items():
        assert torch.allclose(value, state[key], atol=0.01), key
        assert value.dtype == state[key].dtype


def test_layer_scale_and_size_are_read_from_the_weights(tmp_path: Path) -> None:
    model = timm.create_model(TINY, num_classes=0, init_values=0.1, img_size=64)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder(TINY, weights_path=tmp_path / "w.safetensors", device=CPU, batch_tiles=2)
    assert encoder.preprocessing.input_px == 64
    tiles = random_tiles(side_px=64)
    mean, std = encoder.preprocessing.mean, encoder.preprocessing.std
    expected = by_hand(model, "token", tiles, mean, std)
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5)


def write_folder(folder: Path, **stated: Any) -> Any:
    """Write a folder as the hub lays it out, of a tiny model that only its configuration knows."""
    args = {"img_size": 64, "init_values": 0.1, "num_classes": 0}
    model = timm.create_model(TINY, **args)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": TINY, "num_features": 64, "global_pool": "token", "model_args": args,
        "pretrained_cfg": {
            "tag": "mine", "input_size": [3, 64, 64], "interpolation": "bilinear",
            "mean": [0.7, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "classifier": "head",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | stated), encoding="utf-8")
    return model


def test_a_local_folder_is_read_with_its_configuration(tmp_path: Path) -> None:
    model = write_folder(tmp_path / "mine")
    name = f"local-dir:{tmp_path / 'mine'}"
    encoder = load_encoder(name, weights_path=None, device=CPU, batch_tiles=2)
    tiles = random_tiles(side_px=64)
    expected = by_hand(model, "token", tiles, [0.7, 0.5, 0.6], [0.2, 0.3, 0.25])
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5)
    assert (encoder.name, encoder.preprocessing_source) == (name, "config.json")


def test_a_configuration_beside_the_weights_belongs_to_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    weights = tmp_path / "mine" / "model.safetensors"
    for name in (TINY, "hf-hub:someone/else", "local-dir:/moved/away"):
        loaded = load_model(name, weights_path=weights)
        assert loaded.preprocessing.mean == (0.7, 0.5, 0.6)
        assert loaded.preprocessing.input_px == 64


@pytest.mark.parametrize("name", ["uni", "hf-hub:MahmoodLab/UNI2-h"])
def test_a_folder_of_a_registered_repository_states_its_own_sizes(
    name: str, tmp_path: Path
) -> None:
    entry = PATHOLOGY_ENCODERS["uni2-h" if "2" in name else "uni"]
    layers = {k: v for k, v in entry.model_args.items() if k.endswith("_layer")}
    args = {"img_size": 64, "init_values": 0.1, "num_classes": 0}
    torch.manual_seed(3)
    built = layer_args(resolve_model_config(name))
    model = timm.create_model(TINY, **args, **{key: built[key] for key in layers})
    write_folder(tmp_path / "mine")
    save_file(model.state_dict(), tmp_path / "mine" / "model.safetensors")
    loaded = load_model(name, weights_path=tmp_path / "mine" / "model.safetensors")
    assert loaded.preprocessing.input_px == 64
    assert loaded.preprocessing.mean == (0.7, 0.5, 0.6)


@pytest.mark.parametrize("name", ["mstar", "kaiko-vitl14", "virchow2"])
def test_a_published_encoder_is_what_its_card_states_whatever_lies_beside_its_weights(
    name: str, tmp_path: Path
) -> None:
    """The ``config.json`` of some repositories is that of the network training began with."""
    entry = PATHOLOGY_ENCODERS[name]
    args = {k: v for k, v in entry.model_args.items() if not k.endswith("_layer")}
    stated = {"input_size": [3, 518, 518], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}
    content = {"architecture": entry.architecture, "model_args": args | {"global_pool": ""},
               "num_classes": 0, "pretrained_cfg": stated}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    weights = tmp_path / "model.safetensors"
    assert resolve_model_config(name, weights_path=weights) == replace(
        resolve_model_config(name), weights_path=weights
    )


def test_a_configuration_of_a_training_script_beside_the_weights_states_nothing(
    tmp_path: Path,
) -> None:
    save_file(tiny_state(), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text('{"lr": 0.1, "epochs": 30}', encoding="utf-8")
    assert load_model(TINY, weights_path=tmp_path / "w.safetensors").source == "timm"


def test_a_damaged_configuration_beside_the_weights_is_refused(tmp_path: Path) -> None:
    save_file(tiny_state(), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "vit_', encoding="utf-8")
    with pytest.raises(EncoderError, match="not a configuration of timm"):
        load_model(TINY, weights_path=tmp_path / "w.safetensors")


def test_a_configuration_that_does_not_fit_the_weights_is_not_theirs(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    save_file(tiny_state(), tmp_path / "mine" / "other.safetensors")
    loaded = load_model(TINY, weights_path=tmp_path / "mine" / "other.safetensors")
    assert loaded.source == "timm"


def test_arguments_state_what_no_file_does(tmp_path: Path) -> None:
    model = timm.create_model(TINY, num_classes=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    name = parse_backbone(TINY, ["pooling=token+mean", "mean=[0.5, 0.4, 0.3]", "std=[1, 1, 1]"])
    encoder = load_encoder(name, weights_path=tmp_path / "w.safetensors", device=CPU, batch_tiles=2)
    tiles = random_tiles()
    expected = by_hand(model, "token+mean", tiles, [0.5, 0.4, 0.3], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5)
    assert encoder.preprocessing_source == "--model-arg"
    again = load_encoder(
        encoder.name, weights_path=tmp_path / "w.safetensors", device=CPU, batch_tiles=2
    )
    np.testing.assert_array_equal(again.embed(tiles), encoder.embed(tiles))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (TINY, ["pooling"], "not KEY=VALUE"),
        (TINY, ["=3"], "not KEY=VALUE"),
        (TINY, ["pooling="], "not KEY=VALUE"),
        (f"{TINY}?pooling", [], r"not KEY=VALUE \(pooling="),
        (TINY, ["input_px=x"], "input_px 'x'; expected a whole number of px"),
        (TINY, ["input_px=99999"], "input_px 99999; expected a whole number of px up to 4096"),
        (TINY, ["input_px=0"], "input_px 0; expected a whole number of px"),
        (TINY, ["input_px=224.5"], "input_px 224.5; expected a whole number of px"),
        (TINY, ["interpolation=cubic"], "interpolation 'cubic'; expected bicubic or bilinear"),
        (f"{TINY}+resnet18", ["pooling=token"], "with several backbones"),
        (TINY, ["pooling=max"], "expected token, mean, token.mean"),
        ("resnet18", ["pooling=token"], "expected a VisionTransformer"),
        (TINY, ["mlp_layer=NoSuchLayer"], "no layer 'NoSuchLayer'"),
        (TINY, ["mean=0.5"], "three numbers from 0 to 1"),
        (TINY, ["std=[127, 127, 127]"], "three numbers above 0 to 1"),
        (TINY, ["no_such_argument=1"], "timm cannot build it"),
        (TINY, ["num_heads=0"], "timm cannot build it.*Correct what --model-arg states"),
        ("resnet18", ["block=BasicBlock"], "timm cannot build it.*Correct what --model-arg states"),
        ("unii", [], "Did you mean .*uni"),
        ("virchow3", [], "Did you mean .*virchow2"),
        ("HOptimus0", [], r"Did you mean h-optimus-0\?$"),
        ("phikon_v2", [], r"Did you mean phikon-v2\?$"),
        ("uni_v2", [], r"Did you mean uni2-h\?$"),
        ("gigapath", [], r"Did you mean prov-gigapath\?$"),
        ("lunit", [], r"Did you mean lunit-dino, lunit-dino-p8\?$"),
        ("kaiko", [], r"Did you mean kaiko-vits16, .*kaiko-vitl14\?$"),
        ("timm/resnet50.a1_in1k", [], r"Did you mean .*, hf-hub:timm/resnet50.a1_in1k\?$"),
        ("someone/else", [], r"Did you mean .*, hf-hub:someone/else\?$"),
        ("hf-hub:someone/else@main", [], "A revision cannot be named.*local-dir:FOLDER"),
        ("h0-mini", [], "--backbone hf-hub:bioptimus/H0-mini --model-arg mlp_layer=SwiGLUPacked"),
        ("conch_v15", [], "entry point mil.encoders"),
        ("hf-hub:MahmoodLab/conchv1_5", [], "timm cannot build it.*entry point mil.encoders"),
        ("hf-hub:paige-ai/Prism", [], "one vector per slide.*--slide-vectors"),
        ("titan", [], "one vector per slide.*mil bags import FOLDER --slide-vectors"),
        ("local-dir:nowhere", [], r"no such folder.*If it has moved.*--weights FOLDER/model"),
    ],
)
def test_bad_names_and_arguments_are_clear(
    name: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(EncoderError, match=message):
        load_model(parse_backbone(name, arguments), weights_path=tmp_path / "w.safetensors")


def test_arguments_join_those_that_the_name_has() -> None:
    name = parse_backbone(f"{TINY}?img_size=64&depth=2", ["depth=3"])
    assert name == f"{TINY}?depth=3&img_size=64"


def test_the_advice_on_h0_mini_builds_what_its_repository_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository leaves out layers, which JSON cannot hold, and gives all tokens."""
    with pytest.raises(EncoderError) as raised:
        load_model("h0-mini")
    words = (raised.value.hint or "").split()
    arguments = [words[i + 1] for i, word in enumerate(words) if word == "--model-arg"]
    args: Any = {"img_size": 112, "depth": 2, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 5.33334}
    layers: Any = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    torch.manual_seed(0)
    architecture = "vit_base_patch14_reg4_dinov2"
    model = timm.create_model(architecture, num_classes=0, global_pool="", **args, **layers)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    mean, std = [0.7, 0.5, 0.6], [0.2, 0.3, 0.25]
    stated = {"input_size": [3, 112, 112], "mean": mean, "std": std, "interpolation": "bicubic"}
    content = {"architecture": architecture, "global_pool": "", "model_args": args}
    (tmp_path / "config.json").write_text(json.dumps(content | {"pretrained_cfg": stated}))
    monkeypatch.setattr(hub, "hf_hub_download", lambda _, name: str(tmp_path / name))
    name = parse_backbone(words[words.index("--backbone") + 1], arguments)
    encoder = load_encoder(name, weights_path=None, device=CPU, batch_tiles=2)
    tiles = random_tiles(side_px=112)
    expected = by_hand(model, "token+mean", tiles, mean, std)
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("stated", "built"),
    [
        ({"act_layer": "silu"}, {"act_layer": nn.SiLU}),
        ({"act_layer": "gelu_tanh"}, {"act_layer": timm.layers.GELUTanh}),
        ({"norm_layer": "rmsnorm"}, {"norm_layer": timm.layers.RmsNorm}),
        ({"norm_layer": None, "act_layer": None}, {}),
    ],
)
def test_layers_of_a_configuration_are_called_as_timm_calls_them(
    tmp_path: Path, stated: dict[str, Any], built: dict[str, Any]
) -> None:
    args: dict[str, Any] = {"img_size": 64, "num_classes": 0}
    torch.manual_seed(4)
    model = timm.create_model(TINY, **args, **built)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    write_folder(tmp_path / "mine", model_args=args | stated)
    save_file(model.state_dict(), tmp_path / "mine" / "model.safetensors")
    name = f"local-dir:{tmp_path / 'mine'}"
    encoder = load_encoder(name, weights_path=None, device=CPU, batch_tiles=2)
    tiles = random_tiles(side_px=64)
    expected = by_hand(model, "token", tiles, [0.7, 0.5, 0.6], [0.2, 0.3, 0.25])
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5, rtol=1e-5)


def test_a_configuration_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    path = tmp_path / "mine" / "config.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert resolve_model_config(f"local-dir:{tmp_path / 'mine'}").preprocessing["input_px"] == 64


def test_a_configuration_that_timm_cannot_build_is_to_be_corrected(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", model_args={"num_heads": 0})
    with pytest.raises(EncoderError, match=r"cannot build it.* Correct the model_args of its conf"):
        load_model(f"local-dir:{tmp_path / 'mine'}")


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", "{}", '{"architecture": 3, "model_args": 7}',
     json.dumps({"architecture": TINY, "pretrained_cfg": {"hf_hub_filename": 1}}),
     json.dumps({"architecture": TINY, "pretrained_cfg": {"file": ["model.safetensors"]}})],
)  # fmt: skip
def test_a_folder_with_another_configuration_is_refused(content: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    (tmp_path / "mine" / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(EncoderError, match=r"not a configuration of timm.*--model-arg"):
        load_model(f"local-dir:{tmp_path / 'mine'}")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"mean": [127, 127, 127]}, r"mean \[127, 127, 127\] \(config.json\).*--model-arg mean"),
        ({"mean": "x"}, "three numbers from 0 to 1"),
        ({"mean": [0.5]}, "three numbers from 0 to 1"),
        ({"std": [0, 1, 1]}, "three numbers above 0 to 1"),
        ({"input_size": [1, 64, 64]}, r"input_size \[1, 64, 64\]"),
        ({"input_size": [3, 64, 128]}, "a square in px"),
        ({"input_size": "64"}, "a square in px"),
    ],
)
def test_a_folder_with_impossible_preprocessing_is_refused(
    stated: Any, message: str, tmp_path: Path
) -> None:
    write_folder(tmp_path / "mine", pretrained_cfg=stated)
    with pytest.raises(EncoderError, match=message):
        load_model(f"local-dir:{tmp_path / 'mine'}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v * float("nan"), "is not finite"),
        (lambda v: v / 0, "is not finite"),
        (lambda v: v.to(torch.int8), "is of torch.int8"),
        (lambda v: v.to(torch.complex64), "is of torch.complex64"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    state = tiny_state()
    torch.save(state | {"norm.weight": spoil(state["norm.weight"])}, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match=f"'norm.weight' {message}"):
        load_model(TINY, weights_path=tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["hf-hub:uni", "hf-hub:a/b/c", "hf-hub:a b/c", "hf-hub:a/b@main"])
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(EncoderError, match="expected hf-hub:OWNER/NAME"):
        load_model(name)


@pytest.mark.parametrize("name", ["resnet50.nonsense", "nonsense", "uni?depth=-1", ""])
def test_what_cannot_be_built_is_described_as_unusable(name: str) -> None:
    assert encoder_info(name).unusable


def test_a_folder_without_weights_names_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"no weights.*model.safetensors.*--weights FILE"):
        load_model(f"local-dir:{tmp_path / 'mine'}")


def test_weights_built_with_another_layer_are_refused_with_advice(tmp_path: Path) -> None:
    model = timm.create_model(TINY, num_classes=0, mlp_layer=timm.layers.SwiGLUPacked)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(EncoderError, match="mlp_layer=SwiGLUPacked"):
        load_model(TINY, weights_path=tmp_path / "w.safetensors")
    load_model(f"{TINY}?mlp_layer=SwiGLUPacked", weights_path=tmp_path / "w.safetensors")
