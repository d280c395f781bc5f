from __future__ import annotations

import json

import pytest

from cli.doctor_checks import run
from cli.doctor_checks.base import CheckResult, Status
from tests.cli.running import mil


def finding(name: str, status: Status) -> CheckResult:
    return CheckResult(
        part="machine", name=name, status=status, found="[bold]0.1 GB", advice=f"Mend {name}."
    )


def test_a_failed_line_has_advice_and_makes_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        [finding("cores", "ok"), finding("shared memory", "note")],
        [finding("disk", "failed")],
    ]
    monkeypatch.setattr(run, "run_checks", lambda: iter(parts))
    found = mil("doctor")
    assert found.exit_code == 1
    assert "[bold]0.1 GB" in found.stdout
    assert "failed: disk: Mend disk." in found.stdout
    assert "note: shared memory: Mend shared memory." in found.stdout
    assert "Mend cores" not in found.stdout
    assert "1 ok, 1 note, 1 failed" in found.stdout
    told = json.loads(mil("doctor", "--json").stdout)
    assert told["ok"] is False
    assert told["findings"][2] == {
        "part": "machine", "name": "disk", "status": "failed", "found": "[bold]0.1 GB",
        "advice": "Mend disk.",
    }  # fmt: skip


def test_notes_alone_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_checks", lambda: iter([[finding("GPU", "note")]]))
    found = mil("doctor", "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["ok"] is True
