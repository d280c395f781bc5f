"""Advice in messages: the commands and options that it names exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.app import app
from tests.cli.running import mil, mil_ok
from tests.fakes import write_cohort

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"[`'\"]mil ([a-z]+(?: [a-z]+)?)((?: [^`'\"]*)?)[`'\"]")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OF_OTHERS = {"backbones": {"--weights"}}
"""Options of other commands that a docstring explains."""
OTHER_PROGRAM = re.compile(r"\b(?:docker|pip|python|vips) .*")


def commands() -> dict[str, Any]:
    """All commands by name, those of groups as ``bags pack``."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found[name] = command
        parts = getattr(command, "commands", {})
        found |= {f"{name} {part}": one for part, one in parts.items()}
    return found


def options_of(command: Any) -> set[str]:
    return {word for one in command.params for word in (*one.opts, *one.secondary_opts)}


COMMANDS = commands()
OPTIONS = set().union(*map(options_of, COMMANDS.values()), {"--help", "--version"})


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a module with their lines, as far as they are constant; docstrings too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            words = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            yield node.lineno, "".join(map(str, words))
        elif isinstance(node, ast.Constant) and id(node) not in parts:
            yield node.lineno, node.value if isinstance(node.value, str) else ""


@pytest.mark.parametrize("package", ["cli", "mil", "features"])
def test_every_command_and_option_that_a_message_names_exists(package: str) -> None:
    wrong, n_commands, n_options = [], 0, 0
    for path in sorted((ROOT / package).rglob("*.py")):
        for line, text in texts(path):
            where = f"{path.relative_to(ROOT)}:{line}"
            for words, rest in COMMAND.findall(text):
                n_commands += 1
                name = words if words in COMMANDS else words.split()[0]
                if name not in COMMANDS:
                    wrong.append(f"{where}: no command 'mil {words}'")
                    continue
                unknown = set(OPTION.findall(rest)) - options_of(COMMANDS[name])
                wrong += [f"{where}: 'mil {name}' has no {option}" for option in unknown]
            mentioned = set(OPTION.findall(OTHER_PROGRAM.sub("", text)))
            n_options += len(mentioned)
            wrong += [f"{where}: no option {option}" for option in mentioned - OPTIONS]
    assert not wrong, "\n".join(wrong)
    assert n_commands > 5
    assert n_options > 5


@pytest.mark.parametrize("name", sorted({name.split()[0] for name in COMMANDS} - {"demo"}))
def test_options_that_a_command_names_are_its_own(name: str) -> None:
    """A message of a command that names an option means its own; the demo runs other commands."""
    path = ROOT / "cli" / "commands" / f"{name}.py"
    own = set().union(
        *(options_of(one) for other, one in COMMANDS.items() if other.split()[0] == name)
    )
    for line, text in texts(path):
        without = COMMAND.sub("", text)
        if "mil " in without:  # a docstring's example of another command
            continue
        strange = set(OPTION.findall(without)) - own - OF_OTHERS.get(name, set())
        assert not strange, f"{path.name}:{line}: {strange} in {text[:80]!r}"


def test_advice_on_a_single_column_and_on_a_part_leads_to_scores(tmp_path: Path) -> None:
    labels = [f"s{n},p{n},{'AB'[n % 2]}" for n in range(8)]
    rows = [f"p{n},0.{n + 1}" for n in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(["image_id,patient_id,label", *labels]))
    (tmp_path / "p.csv").write_text("\n".join(["patient_id,p", *rows]))
    command = ["score", tmp_path / "p.csv", "--cohort", tmp_path / "labels.csv"]
    for advised, value in (("--class", "B"), ("--patients", tmp_path / "p.csv")):
        failed = mil(*command)
        assert failed.exit_code == 1
        assert f"with {advised}." in failed.output
        command += [advised, value]
    mil_ok(*command, "--resamples", 100)


@pytest.mark.ci
def test_advice_on_centres_and_on_an_existing_run_leads_to_a_run(tmp_path: Path) -> None:
    table = write_cohort(tmp_path, n_patients=15, shift=0.8)
    command = ["train", "--cohort", table, "--bags", tmp_path / "bags", "--run", tmp_path / "run",
               "--by"]  # fmt: skip
    failed = mil(*command, "centre")
    assert failed.exit_code == 1
    assert "use --by patient" in failed.output
    mil_ok(*command, "patient")
    failed = mil(*command, "patient")
    assert failed.exit_code == 1
    assert "replace it with --overwrite" in failed.output
    mil_ok(*command, "patient", "--overwrite")
