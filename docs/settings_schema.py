"""Write the JSON schema of the settings of ``mil embed`` and ``mil train``.

``python docs/settings_schema.py`` writes ``docs/reference/settings.schema.json`` from the options
of the commands and the configuration classes; a test keeps it equal.
"""

from __future__ import annotations

import inspect
import json
import re
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from typer.main import get_command

from cli.app import app
from cli.shared.settings import config_class, settings_parameters

__all__ = ["SCHEMA_PATH", "settings_schema"]

SCHEMA_PATH = Path(__file__).parent / "reference" / "settings.schema.json"

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def settings_schema() -> dict[str, Any]:
    """Return the schema of a settings file: one table per command."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of mil embed and mil train",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _table(commands[name]) for name in ("embed", "train")},
    }


def _table(command: Any) -> dict[str, Any]:
    owner, _ = config_class(command.name)
    meanings = _attributes(inspect.getdoc(owner) or "")
    options = {own.name for own in command.params}
    hints = get_type_hints(owner) | get_type_hints(command.callback, include_extras=True)
    properties = {}
    for key, parameter in sorted(settings_parameters(command).items()):
        of_option = parameter.name in options
        meaning = parameter.help if of_option else meanings[key]
        properties[key] = {"description": meaning, **_kind(hints[parameter.name])}
        default = getattr(parameter.default, "value", parameter.default)
        if default is not None and not callable(default):
            properties[key]["default"] = (
                default if isinstance(default, (bool, int, float)) else str(default)
            )
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _kind(hint: Any) -> dict[str, Any]:
    """Return the type and range of a value by its annotation."""
    limits: dict[str, Any] = {}
    if get_origin(hint) is Annotated:
        hint, info = get_args(hint)[:2]
        limits = {
            name: value
            for name, value in (("minimum", info.min), ("maximum", info.max))
            if value is not None
        }
    if get_origin(hint) is UnionType:
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is list:
        return {"type": "array", "items": _kind(get_args(hint)[0])}
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    return {"type": _TYPES[hint], **limits}


def _attributes(docstring: str) -> dict[str, str]:
    """Return the descriptions below ``Attributes`` of a numpy docstring, by name."""
    section = docstring.partition("Attributes\n----------\n")[2]
    parts = re.split(r"^(\w[\w, ]*)\n(?=    )", section, flags=re.MULTILINE)[1:]
    return {
        name: re.sub(r":\w+:`([^`]+)`|``([^`]+)``", r"\1\2", " ".join(text.split()))
        for names, text in zip(parts[::2], parts[1::2], strict=True)
        for name in names.split(", ")
    }


if __name__ == "__main__":
    SCHEMA_PATH.write_text(json.dumps(settings_schema(), indent=2, ensure_ascii=False) + "\n")
