"""Everything a training can be asked for, several at a time, with the default learner."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.bags.h5 import write_bag
from features.filters.classifier import write_filter
from mil.base_learners import learner_names
from mil.calibration import StackedPlattScaling
from mil.data.cohort import read_cohort
from mil.data.covariates import with_covariates
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.fakes import make_bag, make_filter, make_series

pytestmark = pytest.mark.ci

N_PATIENTS, N_NEW, DIM = 27, 3, 10


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is trained on: kinds of bags, tables beside the cohort, and options of the training."""

    n_classes: int = 3
    n_views: int = 0
    is_series: bool = False
    uses: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


STUDIES = {
    "repeats, nested, views, unlabelled": Study(
        n_views=2, uses=("unlabelled",), options={"n_repeats": 2, "nested": True}
    ),
    "by centre, filter": Study(uses=("filter",), options={"by": "centre"}),
    "series, labels of images, repeats, unlabelled": Study(
        n_classes=2, is_series=True, uses=("image_labels", "unlabelled"), options={"n_repeats": 2}
    ),
    "by centre, nested, views, covariates": Study(
        n_views=1, options={"by": "centre", "nested": True, "covariates": ("age",)}
    ),
    "filter, unlabelled, nested": Study(
        n_classes=2, uses=("filter", "unlabelled"), options={"nested": True}
    ),
}


def write_study(folder: Path, study: Study) -> dict[str, Any]:
    """Write bags and tables; return the options of the training."""
    (folder / "bags").mkdir()
    head, rows = "image_id,patient_id,label,center_id,age", []
    images = ["slide_id,source,label"]
    for number in range(N_PATIENTS + 2 * N_NEW):
        name, label = f"{number:02d}", number % study.n_classes
        if study.is_series:
            bag = make_series(name, n_images=6, dim=DIM)
            images += [
                f"{name},{source},{int(label == 1 and place < 2)}"
                for place, source in enumerate(bag.source or ())
            ]
        else:
            bag = make_bag(name, n_tiles=6, dim=DIM, n_views=study.n_views)
        bag.features[:, label] += np.float16(1.5)
        if "filter" in study.uses:
            bag.features[:2] += np.float16(3)
        write_bag(folder / "bags" / f"{name}.h5", replace(bag))
        rows.append(f"{name},p{name},{'abc'[label]},c{number // study.n_classes % 3},{40 + number}")
    parts = {
        "train": rows[:N_PATIENTS],
        "new": rows[N_PATIENTS : N_PATIENTS + N_NEW],
        "unlabelled": rows[N_PATIENTS + N_NEW :],
    }
    for part, own in parts.items():
        (folder / f"{part}.csv").write_text("\n".join([head, *own]) + "\n")
    (folder / "images.csv").write_text("\n".join(images) + "\n")
    given = {
        "unlabelled": {"unlabelled": folder / "unlabelled.csv"},
        "image_labels": {"image_labels": folder / "images.csv"},
        "filter": {"tile_filter": folder / "filter.safetensors"},
    }
    if "filter" in study.uses:
        write_filter(folder / "filter.safetensors", make_filter(n_slides=4, dim=DIM))
    return study.options | {name: value for use in study.uses for name, value in given[use].items()}


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("words", STUDIES)
def test_the_stack_is_trained_killed_resumed_and_deployed(words: str, tmp_path: Path) -> None:
    study = STUDIES[words]
    options = write_study(tmp_path, study)
    covariates = options.get("covariates", ())

    def train(name: str, *, kill_at: int = 0) -> int:
        def on_head(done: int, total: int) -> None:
            counted.append(total)
            if done == kill_at:
                raise KilledError

        counted: list[int] = []
        train_run(
            tmp_path / "train.csv", tmp_path / "bags", tmp_path / name / "run", n_folds=3,
            config=TrainConfig(n_members=2, fixed_steps=6), n_resamples=5, report=False,
            on_head=on_head, **options,
        )  # fmt: skip
        assert len(counted) == counted[-1]
        return len(counted)

    n_heads = train("whole")
    with pytest.raises(KilledError):
        train("killed", kill_at=n_heads)
    assert train("killed") == n_heads
    for path in (tmp_path / "whole" / "run").iterdir():
        assert (tmp_path / "killed" / "run" / path.name).read_bytes() == path.read_bytes(), path

    run = load_bundle(tmp_path / "killed" / "run")
    assert isinstance(run.calibrator, StackedPlattScaling)
    names = (*learner_names("stack"), *(["covariates"] if covariates else []))
    assert run.learner_names == names
    assert run.calibrator.slopes_.shape == (len(names),)
    assert run.calibrator.bias_.shape == (study.n_classes,)
    by_patient = options.get("by") != "centre" and "filter" not in study.uses
    assert (run.guaranteed_coverage(0.9) is not None) == by_patient
    new = read_cohort(tmp_path / "new.csv", labelled=False)
    new = with_covariates(new, () if run.covariates is None else run.covariates.covariates)
    for tta in (False, True)[: 1 + bool(study.n_views)]:
        of_new = predict(run, new, tmp_path / "bags", tta=tta)
        for one in of_new:
            assert one.status == "ok"
            assert one.probabilities.sum() == pytest.approx(1)
            assert set(one.prediction_set) <= set(run.classes)
            parts = np.stack(list(one.learner_parts.values()))
            assert parts.shape == (len(names), study.n_classes)
