from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cli import console
from cli.commands import backbones
from features.encoders.registry import EncoderInfo
from tests.cli.running import mil, mil_ok


def test_backbones_are_listed_with_their_speed() -> None:
    options = ["--measure", "--batch", "2", "--device", "cpu", "--json"]
    result = mil_ok("backbones", "test_efficientnet", *options)
    (info,) = json.loads(result.stdout)["backbones"]
    assert info["name"] == "test_efficientnet"
    assert (info["dim"], info["input_px"], info["weights_here"]) == (256, 160, "")
    assert info["tiles_per_s"] > 0
    assert info["execution"] == "eager float32 batch 2"


def test_a_table_of_backbones_is_for_people() -> None:
    result = mil_ok("backbones", "tf_efficientnet_lite0")
    for shown in ("tf_efficientnet_lite0", "224", "1,280", "3.4 M", "apache-2.0", "package"):
        assert shown in result.stdout
    assert "tiles/s" not in result.stdout


def test_names_of_pathology_encoders_are_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    infos = [
        EncoderInfo(name=name, input_px=224, dim=dim, n_parameters=1_134_800_000, gated=gated,
                    licence="Apache-2.0 with conditions", mpp=(0.25, 0.5, 1.0, 2.0))
        for name, dim, gated in (("prov-gigapath", 1536, True), ("lunit-dino-p8", 384, False))
    ]  # fmt: skip
    printed = io.StringIO()
    for module in (console, backbones):
        monkeypatch.setattr(module, "stdout", Console(file=printed, width=80))
    backbones._print(infos, {})
    for shown in ("│ prov-gigapath │ 1,536 │  1,134.8 M │", "│ 0.25, 0.5, 1, 2 │"):
        assert shown in printed.getvalue()
    assert all(len(line) <= 80 for line in printed.getvalue().splitlines())


def test_an_unknown_backbone_is_one_line() -> None:
    result = mil("backbones", "resnet_50")
    assert result.exit_code == 1
    assert "Did you mean" in result.stderr


@pytest.mark.parametrize(
    ("here", "gated", "chosen"),
    [("", "", "a"), ("b", "", "b"), ("", "a", "b"), ("b", "b", "b"), ("", "ab", "a")],
)
def test_a_backbone_whose_weights_are_here_is_suggested_and_what_others_take_is_said(
    monkeypatch: pytest.MonkeyPatch, here: str, gated: str, chosen: str
) -> None:
    infos = [
        EncoderInfo(name=name, input_px=224, dim=8, gated=name in gated,
                    weights_here="hub cache" if name in here else "")
        for name in "ab"
    ]  # fmt: skip
    printed = io.StringIO()
    for module, name in ((console, "stdout"), (console, "stderr"), (backbones, "stdout")):
        monkeypatch.setattr(module, name, Console(file=printed, width=200))
    backbones._print(infos, {})
    text = printed.getvalue()
    assert f"Next: mil embed SLIDES --bags bags-new --backbone {chosen}\n" in text
    assert (f"The weights of {chosen} are not here" in text) == (not here)
    assert (f"--backbone {chosen} --weights FILE" in text) == (not here)
    assert ("its licence was accepted" in text) == (chosen in gated and not here)
