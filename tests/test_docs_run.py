"""Every code block of the documentation runs on generated data, or gives a reason why not."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.app import app
from tests.docs_blocks import PAGES, Block, blocks_of, name_of
from tests.docs_world import PREPARATIONS, build_world, copy_world

COMMANDS: Any = get_command(app).commands  # type: ignore[attr-defined]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
QUICK = {"README.md", "docs/how-to/audit.md"}
"""Pages of make test-ci; the others take longer and belong to make test-slow."""


def location_of(block: Block) -> str:
    return f"{name_of(block.page)}:{block.line}"


def pages_that_run() -> list[Any]:
    """Return the pages with a block to run."""
    pages = [
        page
        for page in PAGES
        if any(block.language in {"sh", "python"} and not block.reason for block in blocks_of(page))
    ]
    return [
        pytest.param(
            page,
            id=name_of(page),
            marks=pytest.mark.ci if name_of(page) in QUICK else pytest.mark.slow,
        )
        for page in pages
    ]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents") / "world"
    folder.mkdir()
    build_world(folder)
    return folder


@pytest.mark.parametrize("page", pages_that_run())
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    copy_world(world, folder)
    PREPARATIONS.get(name_of(page), lambda folder: None)(folder)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "page"} | patients()
    for block in blocks_of(page):
        if block.reason:
            continue
        if block.language == "python":
            exec(compile(block.text, location_of(block), "exec"), names)  # noqa: S102 - our own pages
        if block.language == "toml":
            (folder / "study.toml").write_text(block.text)
        if block.language == "sh":
            for words in block.commands:
                run(words, location_of(block))


def patients() -> dict[str, object]:
    """Return bags, labels and ids of thirty patients, by the variable names of the pages."""
    import numpy as np

    rng = np.random.default_rng(0)
    y = ["CE", "LAA"] * 15
    bags = [rng.normal(size=(12, 16)) + (label == "LAA") for label in y]
    return {"bags": bags, "y": y, "patients": [str(number) for number in range(30)]}


def run(words: list[str], where: str) -> None:
    assert words[0] == "mil", f"{where}: {words[0]} cannot be run here; say so above the block"
    if "--run" in words:
        chosen = Path(words[words.index("--run") + 1])
        if words[1] in {"train", "combine", "recalibrate"}:
            shutil.rmtree(chosen, ignore_errors=True)
        elif not chosen.exists():
            shutil.copytree("runs/first", chosen)
    # To time every way a backbone may run takes a minute, compilers included.
    quick = ["--execution", "eager"] if "--dry-run" in words else []
    result = CliRunner().invoke(app, [*words[1:], *quick])
    assert result.exit_code == 0, f"{where}: {' '.join(words)}\n{result.output}"


@pytest.mark.parametrize("block", BLOCKS, ids=location_of)
def test_a_block_is_of_a_kind_that_something_checks(block: Block) -> None:
    assert block.language in {"sh", "python", "csv", "text", "toml"}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "csv"], ids=location_of)
def test_a_table_has_a_cell_for_every_column(block: Block) -> None:
    rows = list(csv.reader(block.text.splitlines()))
    assert len(rows) > 1
    assert {len(row) for row in rows} == {len(rows[0])}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=location_of)
def test_a_python_block_is_python(block: Block) -> None:
    compile(block.text, location_of(block), "exec")


def commands_not_run() -> list[Any]:
    """Return the words after ``mil`` of each command in a block that is not run."""
    result = []
    for block in BLOCKS:
        for words in block.commands if block.language == "sh" and block.reason else []:
            positions = [index for index, word in enumerate(words[:-1]) if word == "mil"]
            known = [index for index in positions if words[index + 1] in {*COMMANDS, "--version"}]
            result += [
                pytest.param(words[index + 1 :], id=f"{location_of(block)} {' '.join(words)}")
                for index in known
            ]
    return result


@pytest.mark.parametrize("words", commands_not_run())
def test_a_command_that_is_not_run_is_understood_by_the_program(words: list[str]) -> None:
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]
        words = words[1:]
    context = command.make_context(command.name, [], resilient_parsing=True)
    options, rest, _ = command.make_parser(context).parse_args(args=list(words))
    assert options
    assert not rest
