"""Patients who share a slide are never on two sides, whatever is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mil import MILClassifier
from mil.data.bags import PatientBags, SlideRecord
from mil.data.cohort import Cohort, Patient
from mil.data.patient_groups import LinkedPairs, assign_groups, group_ids
from mil.data.splits import Fold, SplitBy, make_folds, patient_folds
from mil.errors import SplitError
from mil.evaluation.baselines import embedding_baselines
from mil.multilabel.splits import label_folds
from mil.multilabel.table import LabelTable
from mil.training import ensemble
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_fitted_probabilities, cross_validate
from mil.training.cv_plan import CrossValidationPlan
from mil.training.ensemble import train_ensemble
from tests.mil.training.test_ensemble import labels_of, noise_cohort, states

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=20, max_epochs=6)


def pairs(n_patients: int) -> st.SearchStrategy[list[tuple[str, str]]]:
    names = st.integers(0, n_patients - 1).map(lambda n: f"p{n:03d}")
    return st.lists(st.tuples(names, names), max_size=6)


def with_copies(bags: PatientBags, copies: dict[str, str]) -> PatientBags:
    """A slide a patient; those named have the slide file of another under their own name."""
    notes = tuple(
        SlideRecord(
            slide_id=f"{name}_0", patient_id=name, n_tiles=len(tiles),
            content_id=f"file of {copies.get(name, name)}", features_sha256=f"tiles of {name}",
        )
        for name, tiles in bags.features.items()
    )  # fmt: skip
    return replace(bags, slides=notes)


def at_centres(cohort: Cohort, n_centres: int) -> Cohort:
    """Patients assigned to centres one by one."""
    patients = (
        replace(patient, center_id=f"{number % n_centres}")
        for number, patient in enumerate(cohort.patients)
    )
    return replace(cohort, patients=tuple(patients))


def require_apart(folds: Sequence[Fold], group_of: dict[str, int]) -> None:
    for fold in folds:
        tested = {group_of[name] for name in fold.test_ids}
        assert not tested & {group_of[name] for name in fold.train_ids}


@given(pairs(12))
def test_who_shares_slides_has_one_leader_and_who_shares_none_is_its_own(
    sharing: list[tuple[str, str]],
) -> None:
    names = [f"p{n:03d}" for n in range(12)]
    group_of = group_ids(names, [*sharing, ("p003", "a stranger")])
    groups = {name: {name} for name in names}
    for one, two in sharing:
        joined = groups[one] | groups[two]
        for name in joined:
            groups[name] = joined
    assert [names[place] for place in group_of] == [min(groups[name]) for name in names]


def test_only_leaders_are_dealt_and_the_others_go_along() -> None:
    assigned = []

    def assign(indices: np.ndarray) -> np.ndarray:
        assigned.extend(indices.tolist())
        return indices * 10

    group_of = group_ids(["a", "b", "c", "d", "e"], [("d", "b"), ("e", "d")])
    assert assign_groups(group_of, assign).tolist() == [0, 10, 20, 10, 10]
    assert assigned == [0, 1, 2]


@pytest.mark.parametrize("by", ["patient", "centre"])
@given(sharing=pairs(40), seed=st.integers(0, 99))
def test_no_fold_learns_from_one_and_judges_the_other(
    by: SplitBy, sharing: list[tuple[str, str]], seed: int
) -> None:
    _, cohort = noise_cohort(40, 0)
    cohort = at_centres(cohort, 4)
    folds = make_folds(cohort, by=by, n_folds=4, n_repeats=2, seed=seed, linked=sharing)
    names = cohort.patient_ids
    require_apart(folds, dict(zip(names, group_ids(names, sharing).tolist(), strict=True)))
    tested = [name for fold in folds for name in fold.test_ids]
    assert sorted(tested) == sorted(names * 2)
    if by == "patient":
        for fold in folds:  # nobody is lost to the learning either
            assert sorted(fold.train_ids + fold.test_ids) == sorted(names)


def test_those_who_share_a_slide_count_once_where_a_class_is_too_small() -> None:
    _, cohort = noise_cohort(12, 0)  # four patients of class b
    patient_folds(cohort, n_folds=4, n_repeats=1, seed=0)
    with pytest.raises(SplitError, match=r"3 patients of class 'b', those that share.*--folds 3"):
        patient_folds(cohort, n_folds=4, n_repeats=1, seed=0, linked=[("p003", "p000")])


@given(sharing=pairs(40), seed=st.integers(0, 99))
def test_folds_of_several_labels_keep_them_together(sharing: LinkedPairs, seed: int) -> None:
    patients = tuple(
        Patient(patient_id=f"p{n:03d}", slide_ids=(f"s{n}",), label=None, center_id=None)
        for n in range(40)
    )
    cohort = Cohort(path=Path("labels.csv"), patients=patients, classes=())
    truth = np.stack([np.arange(40) % 2, np.arange(40) % 3 == 0], axis=1).astype(np.int64)
    table = LabelTable(patients=cohort, names=("one", "two"), truth=truth)
    folds = label_folds(table, n_folds=3, n_repeats=1, seed=seed, linked=sharing)
    names = cohort.patient_ids
    require_apart(folds, dict(zip(names, group_ids(names, sharing).tolist(), strict=True)))
    assert sorted(name for fold in folds for name in fold.test_ids) == sorted(names)


@pytest.mark.parametrize("by", ["patient", "centre"])
def test_poisoned_copies_change_nothing_that_judges_the_slide_they_copy(by: SplitBy) -> None:
    copies = {"p001": "p000", "p014": "p000"}
    bags, cohort = noise_cohort(24, 1)
    bags, cohort = with_copies(bags, copies), at_centres(cohort, 4)
    loud = {
        name: np.full_like(tiles, 300) if name in copies else tiles
        for name, tiles in bags.features.items()
    }

    def logits_of(store: PatientBags, folds: Sequence[Fold]) -> dict[str, list[float]]:
        found = cross_validate(store, cohort, folds, config=FAST, seed=5)
        return dict(zip(found.patient_ids, found.logits[0].tolist(), strict=True))

    def moved(folds: Sequence[Fold]) -> set[str]:
        clean, poisoned = logits_of(bags, folds), logits_of(replace(bags, features=loud), folds)
        return {name for name in clean if clean[name] != poisoned[name]}

    plan = CrossValidationPlan.build(
        cohort, bags, None, by=by, n_folds=4, n_repeats=1, nested=True, config=FAST, seed=5,
        calibrator="platt",
    )  # fmt: skip
    names = cohort.patient_ids
    group_of = dict(zip(names, group_ids(names, bags.linked_patients()).tolist(), strict=True))
    for inner in plan.inner:
        require_apart(inner, group_of)
    reached = moved(plan.folds)
    assert "p000" not in reached
    assert len(reached) > len(
        copies
    )  # patients of other folds are predicted by heads trained on them
    unaware = next(
        folds
        for folds in (make_folds(cohort, by=by, n_folds=4, n_repeats=1, seed=n) for n in range(20))
        if any("p000" in fold.test_ids and "p001" in fold.train_ids for fold in folds)
    )
    assert "p000" in moved(unaware)  # the poison would have arrived


@pytest.mark.usefixtures("two_inner_folds")
def test_no_head_is_stopped_on_a_copy_of_what_it_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    bags, cohort = noise_cohort(72, 3)
    twins = {f"p{n:03d}": f"p{n - 3:03d}" for n in range(3, 72, 6)}
    trained_on: list[Any] = []
    monkeypatch.setattr(
        ensemble, "train_heads", lambda heads, splits, *_, **__: trained_on.extend(splits)
    )
    settings = replace(FAST, early_stopping=True)
    with pytest.raises(TypeError):  # nothing was trained
        train_ensemble(
            with_copies(bags, twins), labels_of(cohort), n_classes=2, config=settings, seed=(0,)
        )
    group_of = group_ids(cohort.patient_ids, list(twins.items()))
    assert len(set(group_of.tolist())) == 60
    for split in trained_on:
        stopped_on, learned = (set(group_of[p.numpy()]) for p in (split.val_idx, split.train_idx))
        assert stopped_on
        assert not stopped_on & learned
    assert len(trained_on) == settings.n_members


def test_no_baseline_learns_from_a_copy_of_what_it_judges() -> None:
    bags, cohort = noise_cohort(24, 1)
    bags, cohort = with_copies(bags, {"p001": "p000"}), at_centres(cohort, 4)
    folds = make_folds(
        cohort, by="centre", n_folds=4, n_repeats=1, seed=0, linked=bags.linked_patients()
    )
    found = cross_validate(bags, cohort, folds, config=FAST, seed=0)
    loud = {**bags.features, "p001": np.full_like(bags.features["p001"], 300)}

    def moved(store: PatientBags, poisoned: PatientBags) -> list[bool]:
        out = replace(found, linked=store.linked_patients())
        clean, poison = (
            embedding_baselines(each, out, calibrator="none", seed=0) for each in (store, poisoned)
        )
        return [bool((clean[name][0, 0] != poison[name][0, 0]).any()) for name in clean]

    assert not any(moved(bags, replace(bags, features=loud)))
    unaware = replace(bags, slides=())
    assert all(moved(unaware, replace(unaware, features=loud)))


def test_no_calibrator_is_fitted_on_a_copy_of_what_it_calibrates() -> None:
    bags, cohort = noise_cohort(24, 1)
    bags, cohort = with_copies(bags, {"p001": "p000"}), at_centres(cohort, 4)
    folds = make_folds(
        cohort, by="centre", n_folds=4, n_repeats=1, seed=0, linked=bags.linked_patients()
    )
    found = cross_validate(bags, cohort, folds, config=FAST, seed=0)
    logits = found.logits.copy()
    logits[0, 1] = [30, -30]
    clean, poison, unaware = (
        cross_fitted_probabilities(out)[0, 0].tolist()
        for out in (
            found,
            replace(found, logits=logits),
            replace(found, logits=logits, linked=()),
        )
    )
    assert clean == poison
    assert clean != unaware


def test_the_classifier_keeps_equal_bags_of_two_patients_in_one_fold() -> None:
    bags, cohort = noise_cohort(18, 2)
    arrays = [bags.features[name] for name in cohort.patient_ids]
    arrays[6] = arrays[0]
    assert arrays[6] is arrays[0]
    seen: list[tuple[str, ...]] = []
    original = patient_folds

    def watch(*args: Any, **kwargs: Any) -> tuple[Fold, ...]:
        folds = original(*args, **kwargs)
        seen.extend(fold.test_ids for fold in folds)
        return folds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mil.classifier.patient_folds", watch)
        classifier = MILClassifier(n_members=1, n_folds=3, fixed_steps=5)
        for seed in range(4):
            classifier.set_params(random_state=seed).fit(arrays, cohort.labels)
    both = [sum(name in {"0", "6"} for name in tested) for tested in seen]
    assert sorted(set(both)) == [0, 2]


def test_the_same_heads_come_of_a_cohort_without_copies() -> None:
    bags, cohort = noise_cohort(12, 3)
    plain, noted = (
        train_ensemble(store, labels_of(cohort), n_classes=2, config=FAST, seed=(0,))
        for store in (bags, with_copies(bags, {}))
    )
    assert states(plain.heads) == states(noted.heads)


@pytest.mark.parametrize("by", ["patient", "centre"])
def test_folds_that_leave_too_few_of_a_class_are_refused_before_anything_is_trained(
    by: SplitBy,
) -> None:
    bags, cohort = noise_cohort(20, 0)  # seven patients of class b
    copies = {f"p{n:03d}": "p000" for n in (3, 6, 9, 12)} if by == "centre" else {"p003": "p000"}
    n_kept = 20 if by == "centre" else 10  # of class b four, two of them sharing a slide
    cohort = at_centres(replace(cohort, patients=cohort.patients[:n_kept]), 2)
    message = (
        r"class 'b' in the training part of fold \d of .* at least 3"
        if by == "centre"
        else r"3 patients of class 'b', those that share a slide counted once; .* at least 4"
    )
    with pytest.raises(SplitError, match=message):
        CrossValidationPlan.build(
            cohort, with_copies(bags, copies).subset(cohort.patient_ids), None, by=by,
            n_folds=3, n_repeats=1, nested=False, config=FAST, seed=0, calibrator="platt",
        )  # fmt: skip
