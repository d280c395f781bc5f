from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.errors import MilError
from mil.combination import fit
from mil.combination.fit import combine_runs
from tests.studies import write_judged_run

LABELS = ["CE", "LAA"] * 12
IDS = [f"p{number}" for number in range(24)]
LOGITS = np.random.default_rng(0).normal(size=(1, 24))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fold": np.arange(24)[None] % 3}, "other folds than those of .*--folds-of"),
        ({"content": "rescan"}, "other slides of 24 patients"),
        ({"labels": ["LAA", "CE"] * 12}, "'p0' is 'LAA'"),
        ({"patient_ids": [*IDS[:-1], "stranger"]}, "1 patient that another run lacks"),
        ({"patient_ids": [f"q{n}" for n in range(24)]}, "none of the patients"),
        ({"labels": ["CE", "other"] * 12, "classes": ("CE", "other")}, "classes CE, other"),
    ],
)
def test_a_run_that_saw_a_patient_differently_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, words: str
) -> None:
    monkeypatch.setattr(fit, "load_bundle", lambda path: None)
    labels = changes.pop("labels", LABELS)
    first = write_judged_run(tmp_path / "first", LOGITS, LABELS)
    other = write_judged_run(tmp_path / "other", LOGITS, labels, **changes)
    with pytest.raises(MilError, match=words) as caught:
        combine_runs([first, other], tmp_path / "all")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "all").exists()


def test_one_run_and_a_combination_of_combinations_are_refused(tmp_path: Path) -> None:
    first = write_judged_run(tmp_path / "first", LOGITS, LABELS)
    other = write_judged_run(tmp_path / "other", LOGITS, LABELS)
    with pytest.raises(MilError, match="two or more different ones"):
        combine_runs([first, first], tmp_path / "all")
    (other / "combination.json").write_text("{}")
    with pytest.raises(MilError, match="Name the runs that it combines"):
        combine_runs([first, other], tmp_path / "all")


@pytest.mark.parametrize("where", ["first", "first/all", "first/../first/all"])
def test_a_combination_in_the_folder_of_a_run_is_refused(tmp_path: Path, where: str) -> None:
    runs = [write_judged_run(tmp_path / name, LOGITS, LABELS) for name in ("first", "other")]
    with pytest.raises(MilError, match="a folder of its own"):
        combine_runs(runs, tmp_path / where)
    assert (runs[0] / "judged.csv").is_file()
