"""The command line as a stranger reads it: one manner of help in all commands."""

from __future__ import annotations

import re
import shlex
from enum import Enum
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.cli.running import COMMANDS, mil

NAMES = sorted(COMMANDS)


def paragraphs(name: str) -> list[str]:
    return [" ".join(part.split()) for part in COMMANDS[name].help.split("\n\n")]


def examples(name: str) -> list[str]:
    result = [part for part in paragraphs(name) if part.startswith("Example: ")]
    return [part.removeprefix("Example: ").strip("`") for part in result]


@pytest.mark.parametrize("name", NAMES)
def test_help_says_first_what_is_done_then_gives_examples_and_last_the_exit_codes(
    name: str,
) -> None:
    parts = paragraphs(name)
    kinds = [part.split(":")[0] in {"Example", "Exit codes"} for part in parts]
    assert not kinds[0]
    assert kinds == sorted(kinds)
    assert parts[-1].startswith("Exit codes: 0 ")
    assert parts[-2].startswith("Example: ")


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_taken_by_the_command_it_is_of(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.toml").touch()
    monkeypatch.chdir(tmp_path)
    for example in examples(name):
        assert f"{example} ".startswith(f"{name} ")
        words = shlex.split(example)[len(name.split()) :]
        given = COMMANDS[name].make_context(name, words).params
        assert given


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_explained_in_a_sentence_and_says_what_it_takes(name: str) -> None:
    kinds = get_type_hints(COMMANDS[name].callback)
    for option in COMMANDS[name].params:
        assert re.match(r"[A-Zµ`0-9]", option.help), option.name
        assert option.help.endswith("."), option.name
        kind = kinds[option.name]
        is_choice = isinstance(kind, type) and issubclass(kind, Enum)
        assert is_choice or option.metavar is not None, option.name
        assert (option.metavar == "") is (kind is bool), option.name


@pytest.mark.parametrize("name", ["mil", "mil train", "mil bags", "mil filter fit"])
def test_no_option_shows_a_value_that_it_does_not_take(name: str) -> None:
    shown = mil(*name.split()[1:], "--help").output
    assert "--help" in shown
    assert "bool" not in shown


def test_an_option_takes_the_same_kind_of_thing_in_every_command() -> None:
    kinds: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for option in command.params:
            for word in option.opts:
                if word.startswith("--") and word != "--out":  # a file of each command's own kind
                    kinds.setdefault(word, set()).add(str(option.metavar))
    kinds["--device"].discard("NAMES")  # of one command that takes several
    kinds["--by"].discard("COLUMNS")  # to make groups by; folds are made by one of two things
    assert {word: result for word, result in kinds.items() if len(result) > 1} == {}
