from __future__ import annotations

import json

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


def test_an_unknown_backbone_is_one_line() -> None:
    result = mil("backbones", "resnet_50")
    assert result.exit_code == 1
    assert "Did you mean" in result.stderr
