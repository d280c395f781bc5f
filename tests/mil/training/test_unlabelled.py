"""Unlabelled slides fit the whitening; copies of test patients never do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.bags.h5 import find_bags, write_bag
from features.errors import BagError
from mil import MILClassifier
from mil.calibration.priors import balanced
from mil.data.bags import PatientBags, SlideRecord, load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from mil.data.splits import patient_folds
from mil.inference.bundle import load_bundle
from mil.inference.output import write_details
from mil.inference.predict import predict
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.cross_validation import OutOfFoldPredictions, cross_validate
from mil.training.fold_jobs import FoldJob
from mil.training_run import TrainingSummary, train_run
from tests.fakes import make_bag, write_cohort
from tests.mil.training.test_ensemble import noise_cohort, states

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=20, max_epochs=6)
LOUD = 300.0


def noted(bags: PatientBags) -> PatientBags:
    """Return the store with slides that are identified by content."""
    notes = tuple(
        SlideRecord(
            slide_id=name, patient_id=name, n_tiles=len(tiles), content_id=f"file of {name}",
            features_sha256=f"tiles of {name}",
        )
        for name, tiles in bags.features.items()
    )  # fmt: skip
    return replace(bags, slides=notes)


def new_patients(bags: PatientBags, *, n: int = 6) -> PatientBags:
    """Unlabelled patients made like those of ``bags``."""
    others, _ = noise_cohort(n, 99)
    renamed = {f"other {name}": tiles for name, tiles in others.features.items()}
    return noted(replace(others, features=renamed, fingerprint=bags.fingerprint))


def poisoned(others: PatientBags, copies: dict[str, str], *, mark: str) -> PatientBags:
    """Return ``others`` and noisy copies of slides under new names, identified by ``mark``."""
    rng = np.random.default_rng(0)
    features, notes = dict(others.features), list(others.slides)
    for name, original in copies.items():
        features[name] = rng.normal(0, LOUD, size=(7, 16)).astype(np.float16)
        note = SlideRecord(
            slide_id=name, patient_id=name, n_tiles=7, content_id=f"file of {name}",
            features_sha256=f"tiles of {name}",
        )  # fmt: skip
        notes.append(replace(note, **{mark: original}))
    return replace(others, features=features, slides=tuple(notes))


def validate(bags: PatientBags, cohort: Cohort) -> OutOfFoldPredictions:
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    return cross_validate(bags, cohort, folds, config=FAST, seed=0)


@pytest.mark.parametrize("mark", ["content_id", "features_sha256"])
def test_poisoned_copies_of_judged_patients_reach_no_fold(mark: str) -> None:
    bags, cohort = noise_cohort(30, 2, shift=0.6)
    bags = noted(bags)
    others = new_patients(bags)
    word = {"content_id": "file", "features_sha256": "tiles"}[mark]
    copies = {f"copy of {name}": f"{word} of {name}" for name in cohort.patient_ids}
    clean = validate(bags.with_unlabelled(others), cohort)
    same = validate(bags.with_unlabelled(poisoned(others, copies, mark=mark)), cohort)
    assert same.logits.tobytes() == clean.logits.tobytes()
    for place, heads in clean.heads.items():
        assert states(heads) == states(same.heads[place])
    # The noise has an effect: under the names and contents of new patients all logits change.
    unlike = {name: f"{word} of a stranger {name}" for name in copies}
    spoilt = validate(bags.with_unlabelled(poisoned(others, unlike, mark=mark)), cohort)
    for place, heads in clean.heads.items():
        assert states(heads) != states(spoilt.heads[place])


def test_a_patient_of_the_same_name_is_left_out() -> None:
    bags, _ = noise_cohort(6, 0)
    others = new_patients(bags, n=3)
    named = replace(others, features={**others.features, "p002": others.features["other p000"]})
    assert bags.find_duplicates(named) == {"p002": "p002"}
    found = bags.with_unlabelled(named).unlabelled
    assert found is not None
    assert found.patient_ids == ("other p000", "other p001", "other p002")


def test_whitening_is_fitted_on_unlabelled_patients_and_no_class_is() -> None:
    bags, cohort = noise_cohort(30, 2, shift=0.6)
    bags = noted(bags)
    without = validate(bags, cohort)
    with_them = validate(bags.with_unlabelled(new_patients(bags)), cohort)
    assert with_them.patient_ids == without.patient_ids
    for place, heads in with_them.heads.items():
        assert states((heads[0].whitening,)) != states((without.heads[place][0].whitening,))


def test_a_restricted_store_keeps_the_unlabelled() -> None:
    bags, _ = noise_cohort(9, 0)
    joined = bags.with_unlabelled(new_patients(bags))
    part = joined.subset(["p001"])
    features, names = part.unsupervised_features()
    assert names == ("p001", *(f"other p{number:03d}" for number in range(6)))
    assert len(features[names[-1]])
    with pytest.raises(KeyError):
        features["p002"]


def test_bags_made_otherwise_are_refused() -> None:
    bags, _ = noise_cohort(6, 0)
    others = new_patients(bags)
    with pytest.raises(
        BagError, match="made with --backbone another; expected --backbone fake as in the labelled"
    ):
        bags.with_unlabelled(
            replace(others, fingerprint=replace(others.fingerprint, encoder="another"))
        )


def test_a_result_with_other_unlabelled_patients_has_another_key(tmp_path: Path) -> None:
    bags, cohort = noise_cohort(12, 0)
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    fold = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)[0]
    job = FoldJob(folds=[fold], labels=labels, n_classes=2, config=FAST, seeds=[(0,)])
    stores = [bags, *(bags.with_unlabelled(new_patients(bags, n=n)) for n in (3, 4))]
    names = {Checkpoints(tmp_path, store).keys(job)[0] for store in stores}
    assert len(names) == 3


def fit(folder: Path) -> TrainingSummary:
    """Train with unlabelled slides: a new one, a copy of 001_0, and one without a bag."""
    cohort = read_cohort(write_cohort(folder, n_patients=30, shift=0.7), labelled=True)
    for name, content in (("new_0", ""), ("copy_0", "content of 001_0")):
        bag = make_bag(name, dim=16, seed=5, content_id=content)
        write_bag(folder / "bags" / f"{name}.h5", bag)
    table = folder / "other.csv"
    table.write_text("image_id,patient_id,label\nnew_0,new,Other\ncopy_0,copy,\ngone_0,gone,\n")
    paths = find_bags(folder / "bags")
    return train_run(
        cohort, load_patient_bags(cohort, paths), folder / "run", n_folds=3, n_repeats=1, seed=0,
        config=FAST, on_head=lambda done, total: None,
        unlabelled=load_patient_bags(read_cohort(table, labelled=False), paths),
    )  # fmt: skip


def test_a_run_says_which_unlabelled_slides_it_used_and_which_not(tmp_path: Path) -> None:
    summary = fit(tmp_path)
    notes = "\n".join(summary.notes)
    assert "whitening was also fitted on 1 patients without using their labels" in notes
    assert "left out as patients of the cohort" in notes
    assert "1 (copy is 001)" in notes
    assert "unlabelled slides without a bag: 1, gone_0" in notes
    run = load_bundle(tmp_path / "run")
    assert [slide.slide_id for slide in run.unlabelled_slides] == ["new_0"]
    assert "new_0" not in {slide.slide_id for slide in run.training_slides}


def test_inference_tells_patients_that_the_whitening_has_seen(tmp_path: Path) -> None:
    fit(tmp_path)
    run = load_bundle(tmp_path / "run")
    write_bag(tmp_path / "bags" / "unseen_0.h5", make_bag("unseen_0", dim=16, seed=6))
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\nnew_0,new\ncopy_0,copy\nunseen_0,unseen\n")
    found = predict(
        run, read_cohort(table, labelled=False), tmp_path / "bags", prior=balanced(run.classes)
    )
    assert [p.used_for_whitening for p in found] == [True, False, False]
    assert [p.matched_training_patient for p in found] == ["", "001", ""]
    assert found[0].prediction_set == ("CE", "LAA")
    write_details(tmp_path / "d.csv", found, classes=run.classes)
    assert pd.read_csv(tmp_path / "d.csv")["seen_unlabelled"].tolist() == [True, False, False]


def test_the_classifier_takes_unlabelled_bags_and_leaves_copies_out() -> None:
    bags, cohort = noise_cohort(24, 3, shift=0.6)
    arrays, labels = list(bags.features.values()), cohort.labels
    rng = np.random.default_rng(0)
    new = [rng.normal(size=(6, 16)).astype(np.float32) for _ in range(4)]

    def fitted(unlabelled: list[np.ndarray] | None) -> list[bytes]:
        classifier = MILClassifier(
            head="gated", n_members=1, n_components=8, fixed_steps=5, calibrator=None
        )  # fmt: skip
        return states(classifier.fit(arrays, labels, unlabelled=unlabelled).heads_)

    plain, helped = fitted(None), fitted(new)
    assert helped != plain
    assert fitted([*new, arrays[3], arrays[7]]) == helped
    assert fitted([]) == plain
