"""Options and commands in messages: each exists, in a command that can print the message."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.cli.advice import ROOT, Message, find_messages
from tests.cli.running import COMMANDS

MESSAGES = list(find_messages())
OPTIONS = {
    name: {text for one in command.params for text in (*one.opts, *one.secondary_opts)}
    for name, command in COMMANDS.items()
}
GROUPS = {name.rsplit(" ", 1)[0] for name in COMMANDS} | {"mil"}
QUOTED = re.compile(r"'(mil [^']*)'|`(mil [^`]*)`|(?:^|: )(mil (?!…).*)$")
OTHER_PROGRAMS = re.compile(r"\b(vips|pip|docker) .*")
OWN = {"--help", "--version"}


@cache
def imported_by(path: Path) -> list[Path]:
    """Return the files that a file imports, anywhere in its code."""
    files = list[Path]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            base = ROOT / node.module.replace(".", "/")
            files += [base.with_suffix(".py"), base / "__init__.py"]
            files += [(base / alias.name).with_suffix(".py") for alias in node.names]
    return [file for file in dict.fromkeys(files) if file.is_file()]


@cache
def modules_below(path: Path) -> frozenset[str]:
    """Return the files that a file imports, directly or by others."""
    seen, waiting = set[Path](), [path]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += imported_by(one)
    return frozenset(str(one.relative_to(ROOT)) for one in seen)


def file_of(command: str) -> Path:
    word = command.split()[1]
    return ROOT / "cli" / "commands" / f"{word}.py"


def printing(path: str) -> list[str]:
    """Return the commands that can print a message of a file; the doctor advises on others."""
    if path.startswith("cli/doctor_checks/"):
        return [*COMMANDS]
    if own := [name for name in COMMANDS if file_of(name) == ROOT / path]:
        return own
    return [name for name in COMMANDS if path in modules_below(file_of(name))]


def wrong_names(message: Message) -> list[str]:
    """Return what a message names and no command that can print it has."""
    text, wrong = OTHER_PROGRAMS.sub("", message.text), list[str]()
    quoted = [next(filter(None, found)) for found in QUOTED.findall(text)]
    for command in quoted:
        words = command.split()
        name = " ".join(words[:3]) if " ".join(words[:2]) in GROUPS else " ".join(words[:2])
        options = OPTIONS.get(name, set())
        if name not in OPTIONS and " ".join(words) not in GROUPS:
            wrong.append(name)
        wrong += [f"{name} {one}" for one in Message("", 0, command).options if one not in options]
        text = text.replace(command, "")
    bare = Message(message.path, message.line, text)
    wrong += [one for one in bare.commands if one not in GROUPS and one not in OPTIONS]
    # An option in the same sentence as a command may be that command's.
    names = [*printing(message.path), *bare.commands, *(" ".join(q.split()[:2]) for q in quoted)]
    known = set[str]().union(OWN, *(OPTIONS.get(name, set()) for name in names))
    return wrong + [one for one in bare.options if one not in known]


def test_advice_names_only_options_and_commands_that_exist() -> None:
    assert len(MESSAGES) > 200
    wrong = {f"{one.path}:{one.line}": found for one in MESSAGES if (found := wrong_names(one))}
    assert not wrong


@pytest.mark.parametrize(
    ("path", "text", "named"),
    [
        ("cli/commands/score.py", "Give --labels or --cohortt.", "--cohortt"),
        ("cli/commands/score.py", "Give --tile-px.", "--tile-px"),  # of other commands only
        ("cli/commands/demo.py", "Give --folds.", "--folds"),  # of the commands that it runs
        ("cli/commands/train.py", "Run 'mil embedx slides/' first.", "mil embedx"),
        (
            "cli/commands/train.py",
            "Run 'mil score x.csv --tile-px 3' first.",
            "mil score --tile-px",
        ),
        ("features/bags/h5.py", "Embed with --tile-size 224.", "--tile-size"),
        ("mil/data/cohort.py", "See mil inspectt.", "mil inspectt"),
    ],
)
def test_a_name_that_does_not_exist_is_found(path: str, text: str, named: str) -> None:
    assert named in wrong_names(Message(path, 1, text))


def test_extras_that_a_message_installs_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = [path for name in ("features", "mil", "cli") for path in (ROOT / name).rglob("*.py")]
    named = [re.findall(r"mil-slides\[(\w+)\]", path.read_text("utf-8")) for path in sources]
    extras = {extra for of_file in named for extra in of_file}
    assert extras
    assert extras <= project["optional-dependencies"].keys()
