"""What a stranger installs: wheel, source distribution, and the command that comes with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cli", "features", "mil")
TYPED = {
    "bash": {"COMP_WORDS": "mil tr", "COMP_CWORD": "1"},
    "zsh": {"_TYPER_COMPLETE_ARGS": "mil tr"},
    "fish": {"_TYPER_COMPLETE_ARGS": "mil tr", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


def run(words: Sequence[object], **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def build(source: Path, out: Path, *what: str) -> None:
    """Build without the network: by the backend that is installed."""
    run([sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", out, source])


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    build(ROOT, out)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the commands of an environment into which the wheel was installed.

    Only the wheel is installed; its dependencies are those of the environment the tests run in, of
    which a line in a .pth file tells. The package found is the wheel's, never the checkout's.
    """
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel])
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "HOME": str(home), **more}


def test_no_other_installed_package_brings_modules_named_as_ours() -> None:
    owners = metadata.packages_distributions()
    assert {owner for name in PACKAGES for owner in owners.get(name, [])} <= {"mil-slides"}


@pytest.mark.slow
def test_the_wheel_holds_the_three_packages_whole_and_nothing_else(wheel: Path) -> None:
    held = {name for name in contents(wheel) if ".dist-info/" not in name}
    there = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == there
    assert held >= {f"{package}/py.typed" for package in PACKAGES}
    assert held >= {
        "mil/templates/report.html",
        "features/templates/fonts/mil-sans-regular.woff2",
        "features/templates/preview.html",
        "cli/viewer/static/viewer.js",
        "cli/viewer/static/openseadragon/openseadragon.min.js",
        "cli/viewer/static/openseadragon/LICENSE.txt",
    }


@pytest.mark.slow
def test_the_metadata_name_all_licences_and_the_command(wheel: Path) -> None:
    held = contents(wheel)
    info = next(name.split("/")[0] for name in held if ".dist-info/" in name)
    about = message_from_bytes(held[f"{info}/METADATA"])
    assert about["License-Expression"] == "MIT AND BSD-3-Clause AND OFL-1.1"
    for file in about.get_all("License-File", []):
        assert held[f"{info}/licenses/{file}"] == (ROOT / file).read_bytes()
    assert set(about.get_all("License-File", [])) > {
        "cli/viewer/static/openseadragon/LICENSE.txt",
        "features/templates/fonts/LICENSE.txt",
    }
    assert held[f"{info}/entry_points.txt"].decode().split() == [
        "[console_scripts]", "mil", "=", "cli.__main__:main",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_source_distribution_builds_the_wheel_that_the_checkout_builds(
    wheel: Path, tmp_path: Path
) -> None:
    build(ROOT, tmp_path, "--wheel")
    assert contents(tmp_path / wheel.name) == contents(wheel)


@pytest.mark.slow
def test_the_source_distribution_brings_tests_documents_and_how_to_run_them(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held >= {"Makefile", ".importlinter", "CONTRIBUTING.md", "tests/test_distribution.py"}
    assert "docs/how-to/install.md" in held
    assert not {name for name in held if name.startswith(("docs/_build", "demo/", "bags/"))}


@pytest.mark.slow
def test_pypi_would_take_both_files_without_a_warning(dist: Path) -> None:
    run([sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()])


@pytest.mark.slow
def test_the_installed_command_runs_the_demo_by_the_wheels_own_modules(
    installed: Path, tmp_path: Path
) -> None:
    where = {"cwd": tmp_path, "env": environment(tmp_path)}
    assert run([installed / "mil", "--version"], **where) == "mil 0.1.0\n"
    code = "import cli, features, mil; print(cli.__file__, features.__file__, mil.__file__)"
    for file in run([installed / "python", "-c", code], **where).split():
        assert installed.parent in Path(file).parents
    run([installed / "mil", "demo", "--train-patients", 24, "--test-patients", 8], **where)
    assert (tmp_path / "demo" / "submission.csv").is_file()
    assert (tmp_path / "demo" / "runs" / "demo" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("shell", TYPED)
def test_the_completion_of_each_shell_finds_a_command(
    installed: Path, tmp_path: Path, shell: str
) -> None:
    answer = run(
        [installed / "mil"], cwd=tmp_path,
        env=environment(tmp_path, _MIL_COMPLETE=f"complete_{shell}", **TYPED[shell]),
    )  # fmt: skip
    assert "train" in answer
    assert "embed" not in answer


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_a_command_once_completion_was_installed(
    installed: Path, tmp_path: Path
) -> None:
    where = {
        "cwd": tmp_path,
        "env": environment(tmp_path, PATH=f"{installed}:{os.environ['PATH']}"),
    }
    # A command behind it keeps bash from putting itself out of the way of the shell's finder.
    run(["bash", "-c", "mil --install-completion; true"], **where)
    assert "mil" in (tmp_path / ".bashrc").read_text()
    line = "COMP_WORDS=(mil tr); COMP_CWORD=1; _mil_completion mil; echo ${COMPREPLY[@]}"
    assert (
        run(["bash", "-c", f". {tmp_path}/.bash_completions/mil.sh; {line}"], **where) == "train\n"
    )
