"""Cohorts too small, alike or wide for a whole stack: a clear error, or a smaller one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.bags.h5 import write_bag
from features.errors import MilError
from mil.data.cohort import read_cohort
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import TrainingSummary, train_run
from tests.fakes import make_bag

pytestmark = pytest.mark.ci


def train(
    folder: Path,
    *,
    labels: list[int],
    dim: int = 8,
    n_tiles: int = 6,
    alike: str = "",
    centres: str = "",
) -> TrainingSummary:
    """Train on one slide per patient; ``alike`` makes ``tiles`` or ``patients`` the same."""
    (folder / "bags").mkdir()
    rows = ["image_id,patient_id,label,center_id"]
    for number, label in enumerate(labels):
        more = 2 * number if alike == "patients" else 0  # the same bag twice is one patient
        bag = make_bag(f"s{number}", n_tiles=n_tiles + more, dim=dim)
        bag.features[:, 0] += np.float16(label)
        if alike == "tiles":
            bag.features[:] = np.float16(0.5)
        if alike == "patients":
            bag.features[:] = np.resize(make_bag("s", dim=dim).features[:2], bag.features.shape)
        write_bag(folder / "bags" / f"s{number}.h5", replace(bag))
        centre = centres[number % len(centres)] if centres else "x"
        rows.append(f"s{number},p{number},{'ab'[label]},{centre}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    return train_run(
        folder / "t.csv", folder / "bags", folder / "run", n_folds=2, n_resamples=20, report=False,
        config=TrainConfig(n_members=2, fixed_steps=8), by="centre" if centres else "patient",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1] + [0] * 9, {}, "1 patient of class 'b'; expected at least 4"),
        ([1, 1, 1] + [0] * 9, {}, "3 patients of class 'b'; expected at least 4"),
        ([0] * 10, {}, "one class only, 'a'"),
        ([0, 1] * 6, {"alike": "tiles"}, "embeddings that differ from tile to tile"),
        ([0, 1] * 6, {"alike": "tiles", "n_tiles": 1}, "embeddings that differ from tile"),
        ([0, 1] * 6, {"centres": "xy"}, "expected each class at two centres or more"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(
    tmp_path: Path, labels: list[int], options: dict[str, object], message: str
) -> None:
    with pytest.raises(MilError, match=message):
        train(tmp_path, labels=labels, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "smaller"),
    [
        ({"n_tiles": 1}, ("'projections'", "learned nothing")),
        ({"n_tiles": 2}, ()),
        ({"alike": "patients"}, ("'mean'", "'rank kernel'", "learned nothing")),
        ({"dim": 1}, ()),
        ({"dim": 4}, ()),
        ({"dim": 4096, "n_tiles": 2}, ()),
        ({"centres": "xxyy"}, ()),
    ],
)
def test_a_smaller_stack_says_so(
    tmp_path: Path, options: dict[str, int | str], smaller: tuple[str, ...]
) -> None:
    summary = train(tmp_path, labels=[0, 1] * 6, **options)  # type: ignore[arg-type]
    notes = " ".join(summary.notes)
    assert all(words in notes for words in smaller), notes
    assert ("the stack is smaller" in notes) == ("learned nothing" in smaller)
    run = load_bundle(tmp_path / "run")
    cohort = read_cohort(tmp_path / "t.csv", labelled=False)
    for one in predict(run, cohort, tmp_path / "bags"):
        assert one.status == "ok"
        assert one.probabilities.sum() == pytest.approx(1)
