from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mil.base_learners.covariates import CovariateModel, with_covariate_logits
from mil.data.cohort import Covariate

AGE, SEX = Covariate(name="age", is_number=True), Covariate(name="sex", is_number=False)


def fit(cells: list[tuple[str, str]], labels: list[int] | None = None) -> CovariateModel:
    truth = labels or [i % 2 for i in range(len(cells))]
    return CovariateModel.fit(
        (AGE, SEX), cells, np.array(truth, np.int64), n_classes=2, balanced=True
    )


CELLS = [(str(50 + i % 9 + 8 * (i % 2)), "mf"[i % 3 == 0]) for i in range(30)]


def test_the_informative_column_decides_and_the_model_is_read_back_equal() -> None:
    model = fit(CELLS)
    logits = model.logits([("80", "m"), ("40", "m")])
    assert logits[0, 1] > logits[0, 0]
    assert logits[1, 1] < logits[1, 0]
    again = CovariateModel.from_dict(json.loads(json.dumps(model.as_dict())), n_classes=2)
    np.testing.assert_array_equal(again.logits(CELLS), model.logits(CELLS))
    assert again.covariates == (AGE, SEX)


def test_a_missing_number_is_the_median_and_an_unknown_category_is_missing() -> None:
    cells = [*CELLS, ("", ""), ("", "m")]
    model = fit(cells)
    np.testing.assert_allclose(model.logits([("", "x")]), model.logits([("", "")]))
    assert model.unknown(("60", "x")) == ("sex: x",)
    assert model.unknown(("60", "")) == ()
    assert np.isfinite(model.logits([("1e9", "m")])).all()
    without = fit(CELLS)
    median = np.median([float(age) for age, _ in CELLS])
    np.testing.assert_allclose(without.logits([("", "m")]), without.logits([(str(median), "m")]))


def test_what_does_not_vary_has_no_weight_and_is_named() -> None:
    model = fit([(age, "m") for age, _ in CELLS])
    assert model.constant == ("sex",)
    nothing = fit([("60", "m")] * 10)
    assert nothing.constant == ("age", "sex")
    assert np.ptp(nothing.logits([("10", "f")])) < 1e-9


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("weights"),
        lambda d: d["weights"].pop(),
        lambda d: d["scale"].__setitem__(0, 0.0),
        lambda d: d["bias"].__setitem__(0, float("nan")),
        lambda d: d["columns"][0].pop("median"),
        lambda d: d["columns"].pop(),
    ],
)
def test_a_damaged_model_is_refused(damage: Any) -> None:
    values = fit(CELLS).as_dict()
    damage(values)
    with pytest.raises((KeyError, TypeError, ValueError)):
        CovariateModel.from_dict(values, n_classes=2)


def test_logits_of_covariates_are_the_last_learner_of_every_head() -> None:
    logits = np.zeros((3, 6, 2))
    result = with_covariate_logits(logits, np.array([-1.0, 1.0]))
    assert result.shape == (3, 7, 2)
    np.testing.assert_array_equal(result[:, -1], [[-1.0, 1.0]] * 3)
