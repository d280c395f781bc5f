"""Names of options and commands that other programs use: the usage error says ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.console import _names
from cli.synonyms import _COMMANDS, _OPTIONS
from tests.cli.running import COMMANDS, mil


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("embed slides --out x", "--bags"),
        ("embed slides -o x", "--bags"),
        ("embed slides --runtime onnx", "--execution"),
        ("embed slides --tile_px 256", "--tile-px"),
        ("embed slides --magnification 20", "--mpp µm/px (0.5 for 20x)"),
        ("embed --input slides", "PATHS, without an option"),
        ("train --label diagnosis", "--column label=NAME"),
        ("train --output=x", "--run"),
        ("train --lr 0.1", "--set learning_rate=VALUE"),
        ("train --batch-size 4", "--set batch_patients=N"),
        ("infer --checkpoint x", "--run"),
        ("infer --csv x", "--patients"),
        ("report --run x", "RUN, without an option"),
        ("inspect --mpp 0.5", "--slide-mpp"),
    ],
)
def test_the_option_meant_is_named(words: str, meant: str) -> None:
    result = mil(*words.split())
    shown = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2
    assert f". Did you mean {meant}?" in shown
    assert "Possible options" not in shown


def test_words_of_a_command_without_arguments_lead_to_options() -> None:
    shown = " ".join(mil("train", "train.csv", "bags").output.replace("│", " ").split())
    assert "(train.csv bags). Name files and folders by --cohort, " in shown
    assert "Name files" not in mil("report", "run", "bags").output  # it takes one


def test_an_option_that_nobody_uses_keeps_the_similar_ones() -> None:
    assert "Possible options: --filter" in mil("train", "--filt", "x").output
    assert "Did you mean" not in mil("train", "--frobnicate", "x").output


@pytest.mark.parametrize(("given", "meant"), [("predict", "infer"), ("extract", "embed")])
def test_the_command_meant_is_named(given: str, meant: str) -> None:
    result = mil(given, Path("x"))
    assert result.exit_code == 2
    assert f"No such command '{given}'. Did you mean '{meant}'?" in result.output


def test_every_name_that_is_advised_exists_and_no_synonym_stands_twice() -> None:
    names = {word for command in COMMANDS.values() for one in command.params
             for word in _names(one)}  # fmt: skip
    assert {one.split()[0] for ours in _OPTIONS for one in ours.split("|")} <= names
    assert {f"mil {ours}" for ours in _COMMANDS} <= set(COMMANDS)
    for table in (_OPTIONS, _COMMANDS):
        each = " ".join(table.values()).split()
        assert len(each) == len(set(each))
