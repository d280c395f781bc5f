"""Settings of ``mil embed`` and ``mil train`` from a TOML file and from ``--set``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from typer.main import get_command

from cli.shared.executors import absolute_path, print_warning
from features.errors import CONTENT_ERRORS, MilError
from features.utils.text import nearest_names

__all__ = [
    "SETTINGS_FILE",
    "Assignments",
    "ConfigFile",
    "check_settings",
    "config_class",
    "config_fields",
    "settings_parameters",
    "settings_text",
]

SETTINGS_FILE = "settings.toml"
"""File of a run that holds its settings."""

_COMMANDS = ("embed", "train")
_META = "mil.settings"
_NO_SETTINGS = {"config", "set", "help"}
_NOT_RECORDED = {
    "train": {"run", "track", "overwrite", "json", "engine", "address"},
    "embed": {
        "paths", "series", "bags", "shard", "preview", "dry_run", "overwrite", "json", "device",
        "engine", "address", "workers", "profile",
    },
}  # fmt: skip
"""Options of each command that decide where and by which machine something is made, not what."""
_HOLDERS = {"train": "folder of a run", "embed": "bag"}


def settings_parameters(command: Any) -> dict[str, Any]:
    """Return the settings of a command by key: its options, and fields of its configuration.

    An option's key is its name with underscores. A field that an option states has the option's key
    alone.
    """
    owner, stated = config_class(command.name)
    of_fields = typer.Typer(add_completion=False)
    of_fields.command()(owner)  # typer reads the fields of a dataclass as it reads arguments
    parameters = {_key(own): own for own in get_command(of_fields).params if own.name not in stated}
    parameters |= {_key(own): own for own in command.params}
    return {key: own for key, own in parameters.items() if key not in _NO_SETTINGS}


def config_class(command: str) -> tuple[Any, set[str]]:
    """Return the class of a command's further settings, and its fields that options state."""
    if command == "train":
        from mil.training.config import TrainConfig

        return TrainConfig, {"head", "device"}
    from features.tiling.tissue import TissueSettings

    return TissueSettings, {"method"}


def _key(parameter: Any) -> str:
    return str(parameter.opts[0].lstrip("-").replace("-", "_"))


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Apply the settings of a file to a command: they become the defaults of its options."""
    if path is None or context.resilient_parsing:
        return path
    given = _read_tables(path)
    wrong = next((name for name in given if name not in _COMMANDS), None)
    if wrong is not None:
        near = nearest_names(wrong, _COMMANDS)
        raise MilError(
            f"{path}, {wrong}",
            actual="not below the name of a command",
            expected="the tables " + " and ".join(f"[{name}]" for name in _COMMANDS),
            hint=f"Did you mean [{near[0]}]?" if near else f"Put [{context.command.name}] above.",
        )
    name = str(context.command.name)
    if name not in given and (path.is_dir() or path.suffix == ".h5"):
        raise MilError(
            path, actual=f"no settings of 'mil {name}'", expected=f"a {_HOLDERS[name]}",
            hint="A run states the settings of 'mil train', each of its bags those of 'mil embed'.",
        )  # fmt: skip
    table = given.get(name, {})
    if not isinstance(table, dict):
        raise MilError(path, actual=f"{name} = {table!r}", expected="a table")
    _apply(context, "file", {key: (f"{path}, {key}", value) for key, value in table.items()})
    return path


def _read_tables(path: Path) -> dict[str, Any]:
    """Read a TOML file, the settings of a run, or those that a bag states."""
    if path.suffix == ".h5":
        from features.bags.h5 import read_bag_info

        text = read_bag_info(path).meta.settings
        if not text:
            raise MilError(
                path, actual="a bag without settings", expected="a bag that 'mil embed' made",
                hint="Bags of earlier versions and imported ones state none: give the options "
                "themselves.",
            )  # fmt: skip
        return tomllib.loads(text)
    if path.is_dir():
        if not (path / SETTINGS_FILE).is_file():
            raise MilError(
                path, actual=f"a folder without {SETTINGS_FILE}",
                expected="a run that 'mil train' made",
                hint="Runs of Python and of earlier versions state none: give the options "
                "themselves, by --set where there is none, as 'settings' in model.json has them.",
            )  # fmt: skip
        path /= SETTINGS_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except CONTENT_ERRORS as error:  # TOMLDecodeError is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MilError(
            path, actual=reason or "not readable", expected="settings in TOML",
            hint='Lines such as folds = 5 stand below [train]; text is in "quotes".',
        ) from error  # fmt: skip


def _read_assignments(context: typer.Context, texts: list[str] | None) -> list[str] | None:
    """Apply ``key=value`` to a command, as the settings of a file but stronger."""
    if not texts or context.resilient_parsing:
        return texts
    assigned: dict[str, tuple[str, object]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
        if key in assigned:
            raise typer.BadParameter(f"two values of {key}")
        assigned[key] = f"--set {key}", value.strip()
    _apply(context, "set", assigned)
    return texts


def _apply(context: typer.Context, source: str, settings: Mapping[str, tuple[str, object]]) -> None:
    """Check settings of a source, ``file`` or ``set``, and store them, with those of both."""
    known = settings_parameters(context.command)
    given: dict[str, dict[str, Any]] = context.meta.setdefault(_META, {"file": {}, "set": {}})
    for key, (where, value) in settings.items():
        if key not in known:
            near = nearest_names(key, known)
            raise MilError(
                where,
                actual="unknown",
                expected=f"a setting of 'mil {context.command.name}'",
                hint=f"Did you mean {near[0]!r}?" if near else "The reference lists all settings.",
            )
        given[source][key] = _as_typed(where, value, known[key])
        try:
            known[key].process_value(context, given[source][key])
        except typer.BadParameter as error:
            raise _wrong_value(where, given[source][key], error.message) from error
    merged = given["file"] | given["set"]
    options = {_key(own): str(own.name) for own in context.command.params}
    context.default_map = {options[key]: value for key, value in merged.items() if key in options}


def _wrong_value(where: str, found: object, message: str) -> MilError:
    """Return the error on a value that its option refuses, from the message of the option."""
    expected = message.rstrip(".").partition(", unable to")[0].removeprefix("Input should be ")
    if expected.startswith(("greater", "less")):
        expected = f"a value {expected}"
    if expected.startswith("a "):
        return MilError(where, actual=repr(found), expected=expected)
    return MilError(where, actual=f"{found!r} ({expected})")


def _as_typed(where: str, value: object, parameter: Any) -> str | list[str]:
    """Return a value as it would be typed, so that the command line checks it.

    A list for an option that is given once is joined by commas.
    """
    if isinstance(value, dict):
        raise MilError(where, actual="a table", expected="a value")
    values = value if isinstance(value, list) else [value]
    if any(isinstance(one, (dict, list)) for one in values):
        raise MilError(where, actual="a list of lists or tables", expected="a list of values")
    several = getattr(parameter, "multiple", False) or parameter.nargs == -1
    return list(map(str, values)) if several else ",".join(map(str, values))


def check_settings(context: typer.Context, config: Path | None, assigned: list[str] | None) -> None:
    """Raise for a setting given twice, or a path of the file that is not there any more.

    Say which settings of the file are replaced.
    """
    if config is None and not assigned:
        return
    given = context.meta[_META]
    explicit = {
        _key(own): f"--{_key(own).replace('_', '-')}"
        for own in context.command.params
        if getattr(context.get_parameter_source(str(own.name)), "name", "") == "COMMANDLINE"
    }
    twice = next((key for key in given["set"] if key in explicit), None)
    if twice is not None:
        raise typer.BadParameter(
            f"{twice} is given by {explicit[twice]} as well", param_hint=f"--set {twice}"
        )
    replaced = [key for key in given["file"] if key in explicit or key in given["set"]]
    if replaced:
        print_warning(f"the command line replaces {', '.join(replaced)} of {config}")
    _check_paths(context, config, {k: v for k, v in given["file"].items() if k not in replaced})


def _check_paths(context: typer.Context, config: Path | None, settings: Mapping[str, Any]) -> None:
    """Raise if what a file of settings names is not there, as after a study was moved."""
    from features.utils.paths import parse_url

    known = settings_parameters(context.command)
    missing = {
        key: value
        for key, value in settings.items()
        if key not in _NOT_RECORDED[str(context.command.name)]
        and isinstance(path := known[key].process_value(context, value), Path)
        and not (parse_url(path) or path.exists())
    }
    for key, value in missing.items():
        options = " ".join(f"--{name.replace('_', '-')} PATH" for name in missing)
        raise MilError(
            f"{config}, {key}", actual=f"there is no {str(value)!r}",
            expected="a file or folder of this machine",
            hint=f"State where it is now: {options}.",
        )  # fmt: skip


def config_fields(context: typer.Context) -> dict[str, Any]:
    """Return the fields of the command's configuration that a file or ``--set`` states."""
    given = context.meta.get(_META, {"file": {}, "set": {}})
    merged = given["file"] | given["set"]
    options = {_key(own) for own in context.command.params}
    known = settings_parameters(context.command)
    return {
        key: known[key].process_value(context, value)
        for key, value in merged.items()
        if key not in options
    }


def settings_text(context: typer.Context, config: Any, **resolved: object) -> str:
    """Return the settings of a command as TOML that ``--config`` takes and makes the same.

    ``config`` holds the command's further settings, ``resolved`` defaults that options leave open.
    Settings that are None are left out: TOML has no null. The paths of a run are absolute, as it is
    trained again from any folder; a bag has the same bytes wherever it is made.
    """
    command = str(context.command.name)
    own_path = absolute_path if command == "train" else Path
    further = asdict(config)
    stated = {_key(own): context.params.get(str(own.name)) for own in context.command.params}
    stated |= resolved
    table = {}
    for key in settings_parameters(context.command):
        value = stated.get(key, further.get(key))
        if key not in _NOT_RECORDED[command] and value not in (None, (), []):
            table[key] = _plain(own_path(value) if isinstance(value, Path) else value)
    return tomli_w.dumps({command: table})


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (bool, int, float)):
        return value
    return str(getattr(value, "value", value))  # choices and paths


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="TOML", is_eager=True, callback=_read_config, show_default=False,
        help="File of settings, under `[embed]` and `[train]`; or a run or bag whose settings are "
        "used again. Options and `--set` override them.",
    ),
]  # fmt: skip
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", is_eager=True, callback=_read_assignments,
        show_default=False,
        help="One setting by its key in such a file, such as `seed=3`, also where there "
        "is no option for it; can be repeated.",
    ),
]  # fmt: skip
