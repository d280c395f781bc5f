from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.errors import MilError
from mil.comparison.models import read_models
from mil.data.cohort import read_cohort
from mil.errors import InputError
from tests.studies import write_judged_run

LABELS = ["CE", "LAA"] * 12
IDS = [f"p{number}" for number in range(24)]
LOGITS = np.random.default_rng(0).normal(size=(2, 24))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_judged_run(tmp_path / "first", LOGITS[:1], LABELS)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"patient_ids": [f"q{n}" for n in range(24)]}, "none of the patients of"),
        ({"labels": ["CE", "LAA"] * 11 + ["LAA", "CE"]}, "patient 'p22' is 'LAA', and 2 patients"),
        ({"classes": ("CE", "other"), "labels": ["CE", "other"] * 12}, "classes CE, other"),
        ({"patient_ids": IDS[:8] + [f"q{n}" for n in range(16)]}, "4 patients of class 'CE'"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    first: Path, tmp_path: Path, other: dict, words: str
) -> None:
    labels = other.pop("labels", LABELS)
    run = write_judged_run(tmp_path / "other", LOGITS[:1], labels, **other)
    with pytest.raises(MilError, match=words) as caught:
        read_models([first, run])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", ["no folder", "no model", "no table", "several labels"])
def test_a_folder_that_is_no_run_is_named(first: Path, tmp_path: Path, broken: str) -> None:
    other = tmp_path / "other"
    if broken != "no folder":
        write_judged_run(other, LOGITS[:1], LABELS)
    if broken == "no model":
        (other / "model.json").unlink()
    if broken == "no table":
        (other / "judged.csv").unlink()
    if broken == "several labels":
        (other / "labels.json").write_text("{}")
    with pytest.raises(MilError, match="other"):
        read_models([first, other])


def test_a_model_named_twice_and_a_single_one_are_refused(first: Path) -> None:
    for runs, words in (([first], "1 model"), ([first, first.parent / "first"], "named twice")):
        with pytest.raises(InputError, match=words):
            read_models(runs)


def test_runs_are_aligned_by_patient_and_by_class(first: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(24)[:-2]
    run = write_judged_run(
        tmp_path / "other", -LOGITS[:1, order], [LABELS[row] for row in order],
        classes=("LAA", "CE"), patient_ids=[IDS[row] for row in order],
    )  # fmt: skip
    models = read_models([first, run])
    one, other = models.models
    assert np.allclose(one.proba, other.proba, atol=1e-6)
    assert models.n_left_out == (2, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fold": np.arange(24)[None] % 3}, "folds of other differ from those of first"),
        ({"content": "rescan"}, "slides of 24 patients differ between runs"),
        ({"logits": LOGITS}, "other numbers of repeats (first 1, other 2)"),
    ],
)
def test_what_limits_the_comparison_is_said(
    first: Path, tmp_path: Path, changes: dict, words: str
) -> None:
    logits = changes.pop("logits", LOGITS[:1])
    run = write_judged_run(tmp_path / "other", logits, LABELS, **changes)
    assert any(words in note for note in read_models([first, run]).notes)


def test_files_stand_beside_runs_and_need_labels_without_them(first: Path, tmp_path: Path) -> None:
    file, table = tmp_path / "p.csv", tmp_path / "labels.csv"
    rows = [f"{name}_0,{1 / (1 + np.exp(-x))}" for name, x in zip(IDS, LOGITS[0], strict=True)]
    file.write_text("\n".join(["image_id,LAA", *rows[:-2], "stranger_0,0.5"]) + "\n")
    models = read_models([first], [file], class_name="LAA")
    assert np.allclose(models.models[0].proba, models.models[1].proba, atol=1e-6)
    assert models.models[1].fold is None
    calibrated = read_models([first], [file], class_name="LAA", calibrator="platt").models[1]
    assert calibrated.proba.shape == (20, 22, 2)
    second = tmp_path / "q.csv"
    second.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="--cohort"):
        read_models([], [file, second], class_name="LAA")
    table.write_text(
        "image_id,patient_id,label\n"
        + "".join(f"{name}_0,{name},{label}\n" for name, label in zip(IDS, LABELS, strict=True))
    )
    cohort = read_cohort(table, labelled=True)
    assert len(read_models([], [file, second], class_name="LAA", cohort=cohort).labels) == 22
