"""Plans of cross-validations of classes with few patients."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from features.utils.text import pluralize
from mil.data.cohort import Cohort
from mil.errors import SplitError
from mil.training.config import TrainConfig
from mil.training.cv_plan import CrossValidationPlan
from tests.mil.training.test_ensemble import noise_cohort

BAGS, COHORT = noise_cohort(60, 0)


def with_few(n_few: int) -> Cohort:
    """The patients of the cohort with so many of class b."""
    few = [patient for patient in COHORT.patients if patient.label == "b"][:n_few]
    many = [patient for patient in COHORT.patients if patient.label == "a"][:12]
    return replace(COHORT, patients=(*many, *few))


def plan(cohort: Cohort, *, n_folds: int, nested: bool) -> CrossValidationPlan:
    return CrossValidationPlan.build(
        cohort, BAGS.subset(cohort.patient_ids), None, by="patient", n_folds=n_folds, n_repeats=1,
        nested=nested, config=TrainConfig(), seed=0, calibrator="platt",
    )  # fmt: skip


def plan_by_advice(cohort: Cohort, *, n_folds: int, nested: bool) -> CrossValidationPlan:
    """Plan with the number of folds asked for, or the one that the error advises."""
    try:
        return plan(cohort, n_folds=n_folds, nested=nested)
    except SplitError as error:
        advised = re.search(r"Use --folds (\d+)", error.hint)
        if advised is None:
            raise
        return plan(cohort, n_folds=int(advised[1]), nested=nested)


@pytest.mark.parametrize(("nested", "least"), [(False, 4), (True, 5)])
@pytest.mark.parametrize("n_folds", [2, 5, 10])
@pytest.mark.parametrize("n_few", [1, 2, 3, 4, 5, 6, 9])
def test_one_minimum_holds_for_a_small_class_and_from_there_on_advice_works_at_once(
    n_few: int, n_folds: int, nested: bool, least: int
) -> None:
    if n_few >= least:
        assert plan_by_advice(with_few(n_few), n_folds=n_folds, nested=nested).folds
        return
    with pytest.raises(SplitError) as caught:
        plan_by_advice(with_few(n_few), n_folds=n_folds, nested=nested)
    assert caught.value.actual == f"{pluralize(n_few, 'patients')} of class 'b'"
    assert f"at least {least} of each class" in caught.value.expected
    assert "--folds" not in str(caught.value)


def test_patients_without_tiles_are_named_where_a_class_becomes_too_small() -> None:
    cohort = with_few(7)
    few = [patient.patient_id for patient in cohort.patients if patient.label == "b"]
    with_tiles = [name for name in cohort.patient_ids if name not in few[2:]]
    with pytest.raises(SplitError) as caught:
        CrossValidationPlan.build(
            cohort, BAGS.subset(with_tiles), None, by="patient", n_folds=5, n_repeats=1,
            nested=False, config=TrainConfig(), seed=0, calibrator="platt",
        )  # fmt: skip
    assert caught.value.actual == (
        f"2 patients of class 'b' with tiles, beside {', '.join(few[2:5])} and 2 more without any"
    )
    assert "embed.csv" in str(caught.value)
