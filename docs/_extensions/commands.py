"""Directive ``commands``: every command of ``mil`` with its options, from the program itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

from cli.app import app as mil

__all__ = ["setup"]


class Commands(SphinxDirective):
    """One section per command: help, arguments and options."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        group: Any = get_command(mil)
        lines = [line for name in group.commands for line in _section(group.commands[name], "mil")]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _section(command: Any, parent: str) -> Iterator[str]:
    """Yield the Markdown of a command; a group is followed by its own commands."""
    name = f"{parent} {command.name}"
    yield from (f"## {name}", "", inspect.cleandoc(command.help or "").replace("\f", ""), "")
    if commands := getattr(command, "commands", None):
        for part in commands.values():
            yield from _section(part, name)
        return
    context = command.make_context(name, [], resilient_parsing=True)
    yield from ("```text", " ".join([name, *command.collect_usage_pieces(context)]), "```", "")
    for parameter in command.params:
        yield from _entry(parameter, context)


def _entry(parameter: Any, context: Any) -> Iterator[str]:
    """Yield an argument or option as an entry of a definition list."""
    record = parameter.get_help_record(context)
    if record is None:  # hidden
        return
    term, meaning = record
    yield from (f"`{term}`", f": {meaning or 'See above.'}", "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive with Sphinx."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
