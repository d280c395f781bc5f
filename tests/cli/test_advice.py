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

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"[`'\"]mil ([a-z]+(?: [a-z]+)?)((?: [^`'\"]*)?)[`'\"]")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OF_OTHERS = {"backbones": {"--weights"}}
"""Options of other commands that a docstring explains."""
OTHER_PROGRAM = re.compile(r"\b(?:docker|pip|vips) .*")


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
