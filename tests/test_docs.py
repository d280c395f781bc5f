"""Names, links and tests in the documentation exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

from cli.app import app
from tests.docs_blocks import PAGES, ROOT, name_of

MODULES = sorted(
    p for package in ("features", "mil", "cli") for p in ROOT.glob(f"{package}/**/*.py")
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_and_benchmarks_that_pages_name_exist(page: Path) -> None:
    named = re.findall(r"\btests[./][\w./]*\w", page.read_text(encoding="utf-8"))
    paths = [ROOT / name.removesuffix(".py").replace(".", "/") for name in named]
    assert not [p for p in paths if not (p.is_dir() or p.with_suffix(".py").is_file())]


def test_decisions_have_a_number_each() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("0*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for name in names:
        title = (ROOT / "docs" / "decisions" / name).read_text(encoding="utf-8").splitlines()[0]
        assert title.startswith(f"# {int(name[:4])}. "), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_that_pages_name_exist(page: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`(mil [^`]+)`", text)]
    for line in [*(line for line in lines if line.startswith("mil ")), *spans]:
        words = line.split("#")[0].split()
        if words[1].startswith("-") or not words[1].isalpha():
            continue
        assert words[1] in commands, line
        command = commands[words[1]]
        if hasattr(command, "commands") and len(words) > 2:
            command = command.commands.get(words[2], command)
        known = {name for option in command.params for name in option.opts} | {"--help"}
        for word in words:
            if re.fullmatch(r"--[a-z][a-z-]*", word):
                assert word in known, line


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_names_are_listed_in_order(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module has a docstring"
    names = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and getattr(node.targets[0] if isinstance(node, ast.Assign) else node.target, "id", "")
        == "__all__"
        and node.value is not None
    ]
    if path.name in {"__init__.py", "__main__.py"} and not names:  # nothing but a docstring
        return
    assert len(names) == 1
    isort_order = sorted(
        names[0], key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert sorted(names[0]) == sorted(set(names[0]))
    assert names[0] in (isort_order, sorted(names[0]))


def test_every_line_of_the_page_on_security_names_tests_that_exist() -> None:
    text = (ROOT / "docs/concepts/security.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)`", row.rsplit("|", maxsplit=2)[1])
        assert named, row
        assert all((ROOT / "tests" / name).is_file() for name in named), row


def test_modules_of_the_python_reference_exist() -> None:
    for page in (ROOT / "docs/reference/python").rglob("*.md"):
        for name in re.findall(r"automodule:: ([\w.]+)", page.read_text(encoding="utf-8")):
            path = ROOT / name.replace(".", "/")
            assert path.with_suffix(".py").is_file() or path.is_dir(), f"{page.name}: {name}"


def test_the_map_of_the_code_names_every_package_and_no_other() -> None:
    text = (ROOT / "docs/concepts/map.md").read_text(encoding="utf-8")
    packages = [path.parent for path in MODULES if path.name == "__init__.py"]
    names = [".".join(path.relative_to(ROOT).parts) for path in packages]
    assert not [name for name in names if name.count(".") == 1 and f"`{name}`" not in text]
    rows = re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE)
    assert rows
    assert set(rows) <= set(names)
