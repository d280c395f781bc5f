"""The benchmark on classic tables keeps its own rules."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.errors import MilError
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate
from tests.benchmarks import mil_tables
from tests.benchmarks.mil_tables import Table, main, read_table, score_tables


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {
        name: replace(settings, n_members=1, fixed_steps=15 + 15 * number, max_epochs=5)
        for number, (name, settings) in enumerate(mil_tables.CONFIGURATIONS.items())
    }
    monkeypatch.setattr(mil_tables, "CONFIGURATIONS", quick)
    monkeypatch.setattr(
        mil_tables, "TrainConfig", partial(TrainConfig, n_members=1, fixed_steps=15)
    )


def write_table(path: Path, *, seed: int = 0, dim: int = 4, scale: float = 1.0) -> Path:
    """40 bags; one instance of each of label 1 lies far out on the first axis."""
    rng = np.random.default_rng(seed)
    labels = np.arange(40) % 2
    bags = [rng.normal(size=(rng.integers(1, 8), dim)) for _ in labels]
    for features, label in zip(bags, labels, strict=True):
        features[0, 0] += 15 * label
    np.savez(
        path,
        features=np.concatenate(bags).astype(np.float32).astype(np.float64) * scale,
        bag=np.repeat(np.arange(40), [len(b) for b in bags]),
        label=labels,
    )
    return path


@pytest.mark.parametrize("head", ["logistic", "mean"])
@pytest.mark.parametrize("dim", [1, 30])
@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1e6, 1e250])
def test_the_scale_of_a_table_changes_nothing(
    tmp_path: Path, head: str, dim: int, scale: float
) -> None:
    result = []
    for factor in (1.0, scale):
        table = read_table(write_table(tmp_path / "a.npz", dim=dim, scale=factor))
        result += score_tables([table], [head], n_repeats=1, n_folds=4)
    assert result[0].auroc > 0.65
    assert result[1].auroc == pytest.approx(result[0].auroc, abs=0.02)


def test_the_default_learner_is_taken_where_no_head_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write_table(tmp_path / "a.npz"))
    assert main([file, "--repeats", "1", "--folds", "4", "--jobs", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["head"], row["settings"]) == ("default", "default")
    assert row["auroc"] > 0.65
    assert row["accuracy"] > 0.6


def test_a_fold_of_the_default_learner_sees_bags_standardised_by_its_training_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def keep(bags: Any, cohort: Any, folds: Any, **options: Any) -> Any:
        seen.append((np.concatenate([bags.features[n] for n in folds[0].train_ids]), len(folds)))
        return cross_validate(bags, cohort, folds, **options)

    monkeypatch.setattr(mil_tables, "cross_validate", keep)
    table = read_table(write_table(tmp_path / "a.npz"))
    score_tables([table], ["default"], n_repeats=1, n_folds=4)
    assert len(seen) == 4
    for learned, n_folds in seen:
        assert n_folds == 1
        np.testing.assert_allclose(learned.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(learned.std(axis=0), 1, atol=1e-5)


def test_the_standard_error_is_that_of_a_mean_over_bags() -> None:
    table = Table(name="a", bags=(), labels=np.array([0, 0, 1, 1]))
    scores = {
        ("a", "mean", "24 components", 0): np.array([-1.0, 1, 1, 1]),
        ("a", "mean", "24 components", 1): np.array([-1.0, -1, 2, -2]),
    }
    row = mil_tables._row(table, "mean", "24 components", scores, n_repeats=2)
    assert row.accuracy == pytest.approx(0.75)
    assert row.standard_error == pytest.approx(np.std([1, 0.5, 1, 0.5], ddof=1) / 2)
    assert row.auroc == pytest.approx((0.75 + 0.5) / 2)


def test_settings_of_a_table_do_not_depend_on_its_own_labels(tmp_path: Path) -> None:
    tables = [read_table(write_table(tmp_path / f"{n}.npz", seed=n)) for n in range(3)]
    rng = np.random.default_rng(0)
    spoilt = replace(tables[0], labels=rng.permutation(tables[0].labels))
    result = [
        score_tables([first, *tables[1:]], ["logistic"], n_repeats=1, n_folds=4)
        for first in (tables[0], spoilt)
    ]
    assert result[0][0].settings == result[1][0].settings
    assert result[0][0].auroc > result[1][0].auroc


def test_the_best_settings_on_the_other_tables_are_taken() -> None:
    labels = np.array([0, 0, 1, 1])
    tables = [Table(name=name, bags=(), labels=labels) for name in "abc"]
    good, bad = np.array([-2.0, -1, 1, 2]), np.array([2.0, 1, -1, -2])
    scores = {
        (name, "gated", settings, 0): good if settings == best else bad
        for name, best in [("a", "24 components"), ("b", "64 components"), ("c", "64 components")]
        for settings in mil_tables.CONFIGURATIONS
    }
    assert mil_tables._choose(tables[0], "gated", tables, scores, n_repeats=1) == "64 components"
    alone = mil_tables._choose(tables[0], "gated", tables[:1], scores, n_repeats=1)
    assert alone == "24 components"


def test_both_settings_are_averaged_where_that_ranks_the_other_tables_best() -> None:
    table, other = (Table(name=n, bags=(), labels=np.array([0, 0, 1, 1])) for n in "ab")
    scores = {
        ("b", "gated", "24 components", 0): np.array([-3, 1.5, 1, 3]),
        ("b", "gated", "64 components", 0): np.array([0.0, -4, -1, 3]),
    }
    both = mil_tables._choose(table, "gated", [table, other], scores, n_repeats=1)
    assert both == "24 components and 64 components"
    row = mil_tables._row(other, "gated", both, scores, n_repeats=1)
    assert (row.accuracy, row.auroc) == (0.75, 1.0)


def test_standardising_sees_the_training_part_only(tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path / "a.npz"))
    train, test = np.arange(30), np.arange(30, 40)
    poisoned = replace(
        table, bags=(*table.bags[:30], *(bag * np.float32(1e9) for bag in table.bags[30:]))
    )
    clean, poison = (mil_tables._standardised(t, train, test)[0] for t in (table, poisoned))
    for one, other in zip(clean, poison, strict=True):
        np.testing.assert_array_equal(one, other)
    together = np.concatenate(clean)
    np.testing.assert_allclose(together.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(together.std(axis=0), 1, atol=1e-5)


def test_an_outlier_does_not_hide_the_rest_of_its_feature() -> None:
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(10, 2)).astype(np.float32) for _ in range(40)]
    bags[0][0, 0] = 1e4
    bags[39][0, 1] = 1e4  # in a judged bag: cut, too
    table = Table(name="a", bags=tuple(bags), labels=np.arange(40) % 2)
    learned, judged = mil_tables._standardised(table, np.arange(30), np.arange(30, 40))
    assert np.concatenate(learned)[1:, 0].std() > 0.9
    assert np.abs(np.concatenate([*learned, *judged])).max() < 4


def test_a_feature_that_does_not_vary_in_the_training_part_is_left_out() -> None:
    bags = tuple(np.array([[0.1, n], [0.1, -n]], np.float32) for n in (1, 2, 3))
    strange = np.array([[7.0, 1.0]], np.float32)
    table = Table(name="a", bags=(*bags, strange), labels=np.array([0, 1, 0, 1]))
    _, (judged,) = mil_tables._standardised(table, np.arange(3), np.array([3]))
    assert judged[0, 0] == 0
    assert judged[0, 1] > 0


def test_too_few_bags_to_stop_on_are_trained_for_fixed_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = replace(mil_tables.CONFIGURATIONS["24 components"], n_members=5, early_stopping=True)
    monkeypatch.setattr(mil_tables, "CONFIGURATIONS", {"stopped": stopped})
    table = read_table(write_table(tmp_path / "a.npz"))
    (row,) = score_tables([table], ["mean"], n_repeats=1, n_folds=2)
    assert np.isfinite(row.auroc)


def test_json_is_a_list_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write_table(tmp_path / f"{name}.npz")) for name in ("musk1", "other")]
    options = ["--head", "logistic", "--repeats", "1", "--folds", "4", "--jobs", "1"]
    assert main([*files, *options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["table"], row["head"]) for row in rows] == [
        ("musk1", "logistic"),
        ("other", "logistic"),
    ]
    assert set(rows[0]) == {
        "table", "head", "accuracy", "standard_error", "auroc", "settings",
    }  # fmt: skip
    assert main([*files, *options]) == 0
    assert "gated attention  0.900 ± 0.050   published" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.zeros(3)}, "40 bags and 3 labels"),
        ({"label": np.full(40, 2)}, r"40 labels: \[2\]"),
        ({"label": np.zeros((40, 1))}, r"label float64 \(40, 1\)"),
        ({"bag": np.zeros(3, int)}, r"bag int64 \(3,\)"),
        ({"bag": np.array(["a", "b"])}, r"bag <U1 \(2,\)"),
        ({"features": None}, r"KeyError.*of features, bag and label"),
    ],
    ids=["labels", "values", "columns", "bags", "names", "keys"],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, change: dict[str, np.ndarray | None], message: str
) -> None:
    with np.load(write_table(tmp_path / "a.npz")) as file:
        content = {**file, **change}
    np.savez(tmp_path / "b.npz", **{k: v for k, v in content.items() if v is not None})
    with pytest.raises(MilError, match=message):
        read_table(tmp_path / "b.npz")
    assert main([str(tmp_path / "b.npz"), "--head", "mean"]) == 1
