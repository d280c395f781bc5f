"""Messages of the source that name options or commands, and advice, found by their syntax."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Message", "find_advice", "find_followed", "find_messages", "is_followed"]

ROOT = Path(__file__).parents[2]
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
_COMMAND = re.compile(r"\bmil (?=[a-z])[a-z]+")
_ADVICE = re.compile(r"(.*_)?(hint|advice)", re.IGNORECASE)
"""Names of what holds an advice: arguments, variables, constants and functions."""
_REFUSALS = {"BadParameter", "UsageError"}
_FOLLOWING = {"expect_advice", "follow_advice"}
_SHORTEST_SHARED = 20


@dataclass(frozen=True)
class Message:
    """A text of the program with an option or a command in it; ``…`` stands for its values."""

    path: str
    line: int
    text: str

    @property
    def options(self) -> list[str]:
        """Options that it names, such as ``--cohort``."""
        return _OPTION.findall(self.text)

    @property
    def commands(self) -> list[str]:
        """Commands that it names, such as ``mil train``."""
        return _COMMAND.findall(self.text)


def find_messages() -> Iterator[Message]:
    """Yield all texts but docstrings that name an option or a command."""
    for package in ("features", "mil", "cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in _texts(tree):
                message = Message(str(path.relative_to(ROOT)), node.lineno, _text(node))
                if message.options or message.commands:
                    yield message


def _texts(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the outermost string expressions below a node, without docstrings."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue  # a docstring
        if isinstance(node, ast.List | ast.Tuple | ast.Call) and _is_option(child):
            continue  # a word of a command line
        if isinstance(child, ast.JoinedStr) or (
            isinstance(child, ast.Constant) and isinstance(child.value, str)
        ):
            yield child
        else:
            yield from _texts(child)


def _is_option(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and bool(_OPTION.fullmatch(str(node.value)))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr)
    return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


@cache
def _trees() -> dict[Path, ast.Module]:
    paths = (path for name in ("features", "mil", "cli") for path in (ROOT / name).rglob("*.py"))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)}


def find_advice() -> Iterator[Message]:
    """Yield the texts that errors, findings and checks of the program give as advice, each once.

    Names and functions are followed to the texts that they stand for.
    """
    found = dict[tuple[str, int, str], Message]()
    for path, tree in _trees().items():
        sources = list(_advice_in(tree))
        seen = set[int]()
        while sources:
            node = sources.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            for text in _texts(ast.List(elts=[node], ctx=ast.Load())):
                message = Message(str(path.relative_to(ROOT)), text.lineno, _text(text))
                if " " in message.text.strip(" …"):
                    found[message.path, message.line, message.text] = message
            names = {_name(one) for one in ast.walk(node)} - {""}
            sources += [value for name in names for value in _values_of(name, tree)]
    yield from found.values()


def _advice_in(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield expressions that are given as advice."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg != "param_hint":
            if _ADVICE.fullmatch(node.arg or ""):
                yield node.value
        elif isinstance(node, ast.Call) and _name(node.func) in _REFUSALS:
            yield from node.args
        elif isinstance(node, ast.FunctionDef) and _ADVICE.fullmatch(node.name):
            yield from _returned(node)
        elif isinstance(node, ast.Assign) and _ADVICE.fullmatch(_name(node.targets[0])):
            yield node.value


def _values_of(name: str, tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what a constant of a file, or a function of it that returns a text, stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if name.isupper() and _name(target) == name:
                yield node.value
        elif isinstance(node, ast.FunctionDef) and (node.name, _name(node.returns)) == (
            name,
            "str",
        ):
            yield from _returned(node)


def _returned(function: ast.FunctionDef) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value is not None:
            yield node.value


def _name(node: ast.AST | None) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def find_followed() -> Sequence[str]:
    """Return the texts of the tests that follow advice, by the names of their files or by calls."""
    found = list[str]()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if "advice" in path.stem:
            found += [_text(one) for one in _texts(tree)]
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(one, ast.Call) and _name(one.func) in _FOLLOWING
                for one in ast.walk(node)
            ):
                found += [_text(one) for one in _texts(node)]
    return found


def is_followed(advice: str, followed: str) -> bool:
    """Return whether 20 successive characters of an advice, or all, are in the tests' texts."""
    parts = [part.strip(" .") for part in advice.split("…")]
    longest = max(len(part) for part in parts)
    for part in parts:
        n_shared = min(_SHORTEST_SHARED, len(part))
        if n_shared < min(_SHORTEST_SHARED, longest):
            continue
        if any(part[at : at + n_shared] in followed for at in range(len(part) - n_shared + 1)):
            return True
    return False
