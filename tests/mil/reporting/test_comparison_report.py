from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mil.comparison.differences import compare_models
from mil.reporting.comparison_report import write_comparison
from mil.reporting.html import Table
from tests.mil.comparison.test_differences import draw


@pytest.mark.parametrize(
    ("signals", "page", "level"),
    [
        ((2.0, 0.2), "compared", "good"),
        ((0.2, 2.0), "compared", "good"),
        ((2.0, 0.2), "combined", "good"),
        ((0.2, 2.0), "combined", "warning"),
        ((0.2, 2.0), "recalibrated", "good"),
        ((2.0, 0.2), "recalibrated", "warning"),
        ((1.0, 1.0), "combined", "note"),
    ],
)
def test_the_first_sentence_warns_where_the_run_of_the_page_is_worse(
    tmp_path: Path, signals: tuple[float, float], page: str, level: str
) -> None:
    compared = compare_models(draw(np.random.default_rng(0), 200, *signals), n_resamples=400)
    write_comparison(
        tmp_path / "page.html", compared,
        weights={"b": 1.0} if page == "combined" else None,
        recalibration=Table("Fitted", ["what"], []) if page == "recalibrated" else None,
    )  # fmt: skip
    found = re.search(r'<p class="verdict (\w+)">', (tmp_path / "page.html").read_text())
    assert found is not None
    assert found[1] == level
