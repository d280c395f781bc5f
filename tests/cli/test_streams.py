"""Commands whose output goes to a full disk, to nobody, or to a stream that is closed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs the device that is always full"
)


def run_shell(
    arguments: str, folder: Path, *, unbuffered: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with the redirections of a shell, in a folder with a table of a cohort."""
    rows = [f"s{number},p{number},{'AB'[number % 2]}" for number in range(12)]
    (folder / "train.csv").write_text("\n".join(["slide_id,patient_id,label", *rows]))
    return subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m cli {arguments}'],
        capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]),
             "PYTHONUNBUFFERED": "1" if unbuffered else "", **variables},
    )  # fmt: skip


@needs_full
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    "command", ["audit train.csv --json", "audit train.csv", "--version", "--show-completion bash"]
)
def test_results_that_do_not_fit_are_one_clear_error(
    tmp_path: Path, command: str, encoding: str, unbuffered: bool
) -> None:
    done = run_shell(
        f"{command} >/dev/full", tmp_path, unbuffered=unbuffered, PYTHONIOENCODING=encoding
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: standard output: cannot be written (No space left on device). Free some space, or "
        "send it elsewhere."
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", [pytest.param("2>/dev/full", marks=needs_full), "2>&-"])
def test_messages_that_cannot_be_written_stop_no_work(tmp_path: Path, redirection: str) -> None:
    done = run_shell(f"describe train.csv --out page.html --json {redirection}", tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["page"] == "page.html"
    assert (tmp_path / "page.html").read_text().endswith("</html>")


@pytest.mark.parametrize("columns", ["0", "3"])
def test_a_terminal_without_columns_loses_no_text(tmp_path: Path, columns: str) -> None:
    done = run_shell("audit nothing.csv", tmp_path, COLUMNS=columns)
    assert done.stderr == "error: nothing.csv: there is no such file; expected a CSV table\n"
    done = run_shell("--help", tmp_path, COLUMNS=columns)
    assert "Calibrated patient probabilities" in done.stdout


def test_a_home_that_cannot_be_written_is_not_spoken_of(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    done = run_shell(
        "describe train.csv", tmp_path, HOME="home", MPLCONFIGDIR="home",
        XDG_CACHE_HOME="home", XDG_CONFIG_HOME="home",
    )  # fmt: skip
    assert done.returncode == 0
    assert {line.split(" ")[0] for line in done.stderr.splitlines()} == {"Next:", "or:"}


def test_a_closed_output_leads_to_nothing_and_no_file_takes_its_place(tmp_path: Path) -> None:
    done = run_shell("describe train.csv --out page.html --json >&-", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().endswith("</html>")


def test_a_demo_whose_output_nobody_reads_ends_without_a_word() -> None:
    # The first line is of the demo itself, all others of the command that it runs.
    code = "import typer; from cli.commands.demo import _run; typer.run(lambda: _run('-h'))"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" | head -1; exit ${{PIPESTATUS[0]}}'],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_reader_that_has_enough_gets_its_line_without_an_error(
    tmp_path: Path, unbuffered: bool
) -> None:
    done = run_shell("audit train.csv | head -1", tmp_path, unbuffered=unbuffered)
    # The command may have written everything before the reader ends, and then says what is next.
    assert done.stderr in ("", "Next: mil train --cohort train.csv --bags bags\n")
    assert done.stdout.startswith("note: class 'A' has 6 patients")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_reader_that_is_gone_is_an_exit_code_of_its_own_without_an_error(
    tmp_path: Path, unbuffered: bool
) -> None:
    done = run_shell("train --help | true; echo ${PIPESTATUS[0]}", tmp_path, unbuffered=unbuffered)
    assert (done.stdout, done.stderr) == ("141\n", "")
