"""Bags that stay in their files; :mod:`tests.mil.training.test_ensemble` has those in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.bags.h5 import find_bags, read_features, write_bag
from features.errors import BagError
from features.utils.hardware import available_memory
from mil.data import features
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from mil.data.features import OnDiskFeatures
from mil.data.splits import patient_folds
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate
from tests.fakes import make_bag, write_cohort

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=20)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return read_cohort(write_cohort(tmp_path, n_patients=24, shift=0.7), labelled=True)


def load(cohort: Cohort, *, most_bytes: int | None = None) -> PatientBags:
    return load_patient_bags(cohort, find_bags(cohort.path.parent / "bags"), most_bytes=most_bytes)


def test_a_cohort_that_does_not_fit_into_memory_is_read_from_its_files(cohort: Cohort) -> None:
    (cohort.path.parent / "bags" / "001_0.h5").unlink()
    held, stored = load(cohort), load(cohort, most_bytes=5000)
    assert isinstance(held.features, dict)
    assert isinstance(stored.features, OnDiskFeatures)
    assert stored.slides == held.slides
    assert stored.missing_slides == held.missing_slides == ("001_0",)
    assert dict(stored.n_tiles) == held.n_tiles
    assert stored.nonempty() == held.nonempty()
    assert stored.patient_ids == held.patient_ids
    assert len(stored.features) == 24
    for name, tiles in held.features.items():
        np.testing.assert_array_equal(stored.features[name], tiles)


def test_what_is_learned_from_files_is_what_is_learned_from_memory(cohort: Cohort) -> None:
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    held, stored = (
        cross_validate(bags, cohort, folds, config=FAST, seed=0)
        for bags in (load(cohort), load(cohort, most_bytes=0))
    )
    assert held.logits.tobytes() == stored.logits.tobytes()


def test_a_restricted_store_of_files_does_not_know_those_of_others(cohort: Cohort) -> None:
    part = load(cohort, most_bytes=0).subset(["003", "002"])
    assert part.patient_ids == ("003", "002")
    assert list(part.n_tiles) == ["003", "002"]
    with pytest.raises(KeyError):
        part.features["004"]


def test_a_bag_that_changes_while_it_is_trained_on_is_refused(cohort: Cohort) -> None:
    stored = load(cohort, most_bytes=0)
    write_bag(cohort.path.parent / "bags" / "003_0.h5", make_bag("003_0", n_tiles=5, dim=16))
    with pytest.raises(BagError, match=r"003_0\.h5: embeddings of patient '003' have shape \(5,"):
        stored.features["003"]


def test_a_fold_reads_what_it_learns_from_twice_and_what_it_judges_once(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = load(cohort, most_bytes=0)
    fold = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)[0]
    read: list[str] = []

    def watch(path: Path) -> np.ndarray:
        read.append(path.stem)
        return read_features(path)

    monkeypatch.setattr(features, "read_features", watch)
    cross_validate(stored, cohort, [fold], config=FAST, seed=0)
    times = {p: [read.count(s) for s in p.slide_ids] for p in cohort.patients}
    first = fold.train_ids[0]  # says where about the embeddings lie
    for patient, counts in times.items():
        name = patient.patient_id
        assert set(counts) == {1 if name in fold.test_ids else 2 + (name == first)}


def test_a_class_whose_slides_have_other_names_than_bags_is_said(cohort: Cohort) -> None:
    text = cohort.path.read_text().splitlines()
    name = cohort.classes[1]
    renamed = [line.replace(",", "_HE,", 1) if f",{name}" in line else line for line in text]
    cohort.path.write_text("\n".join(renamed))
    with pytest.raises(
        BagError,
        match=rf"slides of class '{name}' has a bag \(first: '(\d+)_0_HE'\); "
        r"the nearest of the 10 bags of other names are '\1_0'.*equal file names without suffix\.$",
    ):
        load(read_cohort(cohort.path, labelled=True))


def test_a_class_whose_slides_all_failed_is_said_with_what_to_do(cohort: Cohort) -> None:
    name = cohort.classes[1]
    for patient in cohort.patients:
        if patient.label == name:
            for slide_id in patient.slide_ids:
                (cohort.path.parent / "bags" / f"{slide_id}.h5").unlink(missing_ok=True)
    with pytest.raises(
        BagError, match=rf"no bag of class '{name}', which.*leave the class out"
    ) as of:
        load(cohort)
    assert "nearest" not in str(of.value)


def test_memory_is_asked_of_the_machine() -> None:
    assert 0 < available_memory() < 2**50
