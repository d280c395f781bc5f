from __future__ import annotations

import json

import pytest

from cli.doctor_checks import base
from cli.doctor_checks.base import CheckResult, Status
from tests.cli.running import mil, mil_ok


def finding(name: str, status: Status) -> CheckResult:
    return CheckResult(
        part="machine", name=name, status=status, found="[bold]0.1 GB", advice=f"Mend {name}."
    )


def test_a_failed_line_has_advice_and_makes_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        [finding("cores", "ok"), finding("shared memory", "note")],
        [finding("disk", "failed")],
    ]
    monkeypatch.setattr(base, "run_checks", lambda: iter(parts))
    result = mil("doctor")
    assert result.exit_code == 1
    assert "[bold]0.1 GB" in result.stdout
    assert "failed: disk: Mend disk." in result.stdout
    assert "note: shared memory: Mend shared memory." in result.stdout
    assert "Mend cores" not in result.stdout
    assert "1 ok, 1 note, 1 failed" in result.stdout
    data = json.loads(mil("doctor", "--json").stdout)
    assert data["ok"] is False
    assert data["findings"][2] == {
        "part": "machine", "name": "disk", "status": "failed", "found": "[bold]0.1 GB",
        "advice": "Mend disk.",
    }  # fmt: skip


def test_notes_alone_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "run_checks", lambda: iter([[finding("GPU", "note")]]))
    result = mil_ok("doctor", "--json")
    assert json.loads(result.stdout)["ok"] is True
