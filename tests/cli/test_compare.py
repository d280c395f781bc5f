from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.bags.h5 import read_bag, write_bag
from tests.cli.running import mil, mil_ok
from tests.fakes import make_bag
from tests.studies import train_on, write_encoded_cohort, write_judged_run


def test_a_page_and_json_show_the_better_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.arange(60) % 2
    noise = np.random.default_rng(0).normal(size=60)
    for name, signal in (("good", 2.0), ("<b>bad</b>", 0.0)):
        write_judged_run(
            tmp_path / name.replace("/", "_"), (noise + signal * (2 * labels - 1))[None],
            [("CE", "LAA")[label] for label in labels],
        )  # fmt: skip
    runs = ["good", "<b>bad<_b>"]
    printed = mil_ok("compare", *runs)
    assert "good against <b>bad<_b>: " in printed.output
    data = json.loads(mil_ok("compare", *runs, "--json", "--out", "other.html").stdout)
    assert {one["verdict"] for one in data["differences"]} == {"better"}
    assert data["n_patients"] == 60
    page = (tmp_path / "compare.html").read_text()
    assert page == (tmp_path / "other.html").read_text()
    assert "good is better than" in page
    assert "<b>bad" not in page


@pytest.mark.parametrize("alike", [True, False])
def test_only_runs_of_the_same_folds_are_proposed_to_combine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = ["CE", "LAA"] * 30
    logits = np.random.default_rng(0).normal(size=(1, 60))
    fold = np.arange(60)[None] % 5
    write_judged_run(tmp_path / "a", logits, labels, fold=fold)
    write_judged_run(tmp_path / "b", logits, labels, fold=fold if alike else np.roll(fold, 1) // 2)
    printed = mil_ok("compare", "a", "b").output
    assert ("mil combine a b" in printed) == alike
    assert ("--folds-of" in printed) != alike


def test_a_missing_run_is_one_line(tmp_path: Path) -> None:
    result = mil("compare", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert len(result.output.strip().splitlines()) == 1


def test_runs_on_odd_bags_are_compared_on_the_patients_that_both_have(tmp_path: Path) -> None:
    encoders = {"one": 1.0, "other": 1.0}
    table = write_encoded_cohort(tmp_path, "train", n_patients=20, encoders=encoders)
    train_on(tmp_path, table, "one")
    bags = tmp_path / "bags" / "other"
    for slide_id in ("000_0", "001_0"):  # the first is empty, the second is lost
        meta = read_bag(bags / f"{slide_id}.h5").meta
        empty = make_bag(slide_id, n_tiles=0, dim=meta.fingerprint.dim)
        write_bag(bags / f"{slide_id}.h5", replace(empty, meta=replace(
            empty.meta, fingerprint=meta.fingerprint)))  # fmt: skip
    (bags / "001_0.h5").unlink()
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *reversed(rows)]) + "\n")
    train_on(tmp_path, table, "other")
    runs = [tmp_path / "runs" / name for name in encoders]
    out = ["--out", tmp_path / "compare.html"]
    data = json.loads(mil_ok("compare", *runs, *out, "--json").stdout)
    assert data["n_patients"] == 18
    assert [model["n_patients_not_shared"] for model in data["models"]] == [2, 0]
    assert "18 shared patients" in mil_ok("compare", *runs, *out).output
    for wrong in (bags, bags / "002_0.h5"):
        result = mil("compare", runs[0], wrong, *out)
        assert result.exit_code == 1
        assert len(result.output.strip().splitlines()) == 1
