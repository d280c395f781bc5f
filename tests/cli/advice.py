"""Messages of the source that name options or commands, found by their syntax."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Message", "find_messages"]

ROOT = Path(__file__).parents[2]
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
_COMMAND = re.compile(r"\bmil (?=[a-z])[a-z]+")


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
