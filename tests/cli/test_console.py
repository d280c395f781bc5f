from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from cli.console import (
    ErrorHandlingGroup,
    PlainCommand,
    let_waiting_threads_sleep,
    print_next,
    progress_bar,
)
from cli.shared.output import _TITLES, print_caveats, print_findings, print_scores
from features.errors import MilError
from mil.audit.findings import Finding, Severity
from mil.evaluation.metrics import Interval
from tests.cli.running import mil_ok
from tests.fakes import write_cohort


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("OMP_WAIT_POLICY", "", "PASSIVE"),
        ("OMP_WAIT_POLICY", "ACTIVE", "ACTIVE"),
        ("OPENBLAS_THREAD_TIMEOUT", "", "4"),
        ("OPENBLAS_THREAD_TIMEOUT", "20", "20"),
    ],
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, name: str, own: str, expected: str
) -> None:
    monkeypatch.setenv(name, own)
    if not own:
        monkeypatch.delenv(name)
    let_waiting_threads_sleep()
    assert os.environ[name] == expected


def test_paths_of_next_commands_are_quoted_for_the_shell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_next("mil view {run}", "open {page}", run=Path("my runs/a"), page="b's.html")
    assert capsys.readouterr().err.splitlines() == [
        "Next: mil view 'my runs/a'", """or:   open 'b'"'"'s.html'"""
    ]  # fmt: skip
    print_next()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("done", "total", "left", "expected"),
    [
        (0, None, None, ""),
        (3, None, None, "3 heads"),
        (0, 60, None, "0/60 heads"),
        (30, 60, 4000, "30/60 heads 1:06:40 left"),
        (60, 60, 0, "60/60 heads"),
    ],
)
def test_progress_says_nothing_that_is_not_known(
    done: int, total: int | None, left: float | None, expected: str
) -> None:
    with progress_bar("heads") as bars:
        task = SimpleNamespace(
            completed=done, total=total, time_remaining=left, finished=done == total
        )
        columns = [each for each in bars.columns if type(each).__module__ == "cli.console"]
        texts = [str(each.render(task)) for each in columns]  # type: ignore[union-attr,arg-type]
    assert " ".join(filter(None, texts)) == expected


def test_a_score_without_an_interval_is_printed_without_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nan = float("nan")
    scores = {key: Interval(value=0.5, low=nan, high=nan) for key in _TITLES}
    print_scores("a.csv", {"raw": scores}, n_patients=3)
    shown = capsys.readouterr().out
    assert "not estimable" in shown
    assert "nan" not in shown


def test_an_audit_with_warnings_does_not_say_that_all_is_well(tmp_path: Path) -> None:
    table = write_cohort(tmp_path, n_patients=45, shift=0.0, n_tiles=20)
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows, rows[-1]]) + "\n")  # which training refuses
    shown = mil_ok("audit", table).stdout
    assert "No leak found" not in shown
    assert "2 warnings above before training" in shown


def test_an_option_of_another_command_in_an_advice_is_said_to_be_its_own() -> None:
    app = typer.Typer(cls=ErrorHandlingGroup)

    def one(*, depth: int = 1) -> None:
        raise MilError(
            "x.tif", actual=f"depth {depth}", hint="Give --depth or --width; vips --tile."
        )

    def two(*, width: int = 1) -> None:
        raise MilError("x.tif", actual=f"width {width}", hint="Give 'mil one' another --depth.")

    for command in (one, two):
        app.command(cls=PlainCommand)(command)
    errors = [CliRunner().invoke(app, [name]).stderr for name in ("one", "two")]
    assert errors[0].endswith(" vips --tile. --width is an option of 'mil two'.\n")
    assert errors[1].endswith(" Give 'mil one' another --depth.\n")


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "\x1b]0;title\x07", "a\x9b2Jb"])
def test_a_name_from_a_table_breaks_no_line_and_steers_no_terminal(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_findings([Finding(Severity.warning, "kind", f"one centre: {name}", "Rename it.")])
    print_caveats([f"warning: not used: {name}, see the details"])
    finding, caveat = (text.removesuffix("\n") for text in capsys.readouterr())
    assert finding.startswith("warning: one centre: ")
    assert caveat.endswith(", see the details")
    assert finding.isprintable()
    assert caveat.isprintable()
