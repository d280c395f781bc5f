from __future__ import annotations

import json

import numpy as np
import pytest

from tests.benchmarks import calibrators
from tests.benchmarks.calibrators import Distortion


def test_calibrators_are_compared_with_what_nobody_can_beat(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert calibrators.main(["--cohorts", "40"]) == 0
    result = {each["calibrator"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(result) == {"platt", "beta", "auto", "temperature", "none"}
    assert result["platt"]["difference"] == {"mean": 0.0, "standard_error": 0.0}
    assert 0 < result["platt"]["excess"] < result["none"]["excess"]
    assert sum(result["auto"]["picks"].values()) == 40


def test_logits_are_the_evidence_stretched_bent_and_moved() -> None:
    drawn = Distortion(strength=2.0, scale=2.0, lean=0.5, bend=3.0)
    labels = np.arange(4000) % 2
    evidence, logits = drawn.patients(labels, np.random.default_rng(0))
    plain, moved = (each[:, 1] - each[:, 0] for each in (evidence, logits))
    np.testing.assert_allclose(moved, np.where(plain > 0, 6 * plain, 2 * plain) + 0.5)
    assert plain[labels == 1].mean() == pytest.approx(2.0, abs=0.2)
    assert plain[labels == 0].mean() == pytest.approx(-2.0, abs=0.2)
