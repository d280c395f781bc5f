from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedKFold, cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.utils import estimator_checks

from features.errors import MilError
from mil import MILClassifier
from mil.errors import CalibrationError, InputError, RunError
from mil.evaluation.metrics import weighted_log_loss
from mil.training.config import TrainConfig
from tests.mil.training.test_ensemble import noise_cohort

FAST = {"n_members": 2, "n_components": 8, "fixed_steps": 20, "n_folds": 3}


def drawn(n_patients: int = 30, seed: int = 1, shift: float = 0.6) -> tuple[list, np.ndarray]:
    bags, cohort = noise_cohort(n_patients, seed, shift=shift)
    return list(bags.features.values()), np.array(cohort.classes)[cohort.labels]


@pytest.fixture(scope="module")
def fitted() -> MILClassifier:
    return MILClassifier(**FAST).fit(*drawn())


@pytest.mark.ci
def test_importing_mil_loads_no_torch() -> None:
    script = "import sys, mil; assert 'torch' not in sys.modules; mil.MILClassifier"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(ImportError):
        from mil import Nothing  # type: ignore[attr-defined] # noqa: F401


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_mixin_order,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learns_own_checks_hold(check: object) -> None:
    check("MILClassifier", MILClassifier())  # type: ignore[operator]


def test_its_defaults_are_those_of_training() -> None:
    ours = {name: p.default for name, p in inspect.signature(MILClassifier).parameters.items()}
    for field in fields(TrainConfig):
        assert ours[field.name] == field.default


def test_what_it_says_of_bags_hangs_together(fitted: MILClassifier) -> None:
    bags, labels = drawn(12, seed=2)
    proba = fitted.predict_proba(bags)
    assert fitted.classes_.tolist() == ["a", "b"]
    assert proba.shape == (12, 2)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_allclose(
        fitted.decision_function(bags), np.log(proba[:, 1] / proba[:, 0]), rtol=1e-9
    )
    assert (fitted.predict(bags) == fitted.classes_[proba.argmax(axis=1)]).all()
    assert fitted.score(bags, labels) > 0.7
    attention = fitted.attention(bags)
    assert [len(weights) for weights in attention] == [len(tiles) for tiles in bags]
    np.testing.assert_allclose([weights.sum() for weights in attention], 1, rtol=1e-5)


def test_a_bag_is_judged_alike_alone_and_among_others(fitted: MILClassifier) -> None:
    bags, _ = drawn(9, seed=3)
    together = fitted.predict_proba(bags)
    np.testing.assert_array_equal(together[::-1], fitted.predict_proba(bags[::-1]))
    np.testing.assert_array_equal(together[4:5], fitted.predict_proba(bags[4:5]))


@pytest.mark.parametrize("factor", [2.0**-27, 2.0**20])
def test_the_unit_of_embeddings_does_not_matter(fitted: MILClassifier, factor: float) -> None:
    """As float16 they would all be alike, and copies of each other."""
    bags, labels = drawn()
    scaled = [bag * np.float32(factor) for bag in bags]
    again = MILClassifier(**FAST).fit(scaled, labels)
    expected = fitted.predict_proba([bag.astype(np.float32) for bag in bags])
    np.testing.assert_allclose(again.predict_proba(scaled), expected, atol=0.02)


def test_the_same_random_state_gives_the_same_bytes(fitted: MILClassifier) -> None:
    bags, labels = drawn()
    again, other = (MILClassifier(**FAST, random_state=n).fit(bags, labels) for n in (0, 1))
    expected = fitted.predict_proba(bags).tobytes()
    assert clone(fitted).fit(bags, labels).predict_proba(bags).tobytes() == expected
    assert again.predict_proba(bags).tobytes() == expected
    assert other.predict_proba(bags).tobytes() != expected
    assert pickle.loads(pickle.dumps(fitted)).predict_proba(bags).tobytes() == expected  # noqa: S301


def test_calibration_makes_held_out_probabilities_better_where_heads_are_too_sure() -> None:
    bags, labels = drawn(90, seed=4, shift=0.0)
    losses = {}
    # Five heads are too many to be stopped early on so few patients.
    for calibrator in ("platt", None):
        trained = MILClassifier(
            **FAST | {"n_members": 5, "fixed_steps": 60, "head": "gated"},
            learning_rate=1e-2,
            calibrator=calibrator,
        )
        trained.fit(bags[:60], labels[:60])
        truth = (labels[60:] == "b").astype(np.int64)
        losses[calibrator] = weighted_log_loss(trained.predict_proba(bags[60:]), truth)
        assert (trained.calibrator_ is None) == (calibrator is None)
    # Nothing can be learned; heads whose logits are normalised are too sure by less than before.
    excess = {calibrator: loss - np.log(2) for calibrator, loss in losses.items()}
    assert excess[None] > 0.05
    assert excess["platt"] < 0.02 * excess[None]


def test_a_bag_without_tiles_teaches_nothing_and_gets_the_prior(fitted: MILClassifier) -> None:
    bags, labels = drawn()
    empty = np.empty((0, 16), np.float16)
    np.testing.assert_array_equal(fitted.predict_proba([empty]), [[0.5, 0.5]])
    assert fitted.attention([empty])[0].shape == (0,)
    more = MILClassifier(**FAST).fit([*bags, empty], [*labels, "a"])
    np.testing.assert_array_equal(more.predict_proba(bags), fitted.predict_proba(bags))
    at_cohort = clone(fitted).set_params(prior="cohort").fit(bags, labels)
    np.testing.assert_allclose(at_cohort.predict_proba([empty]), [[2 / 3, 1 / 3]])


def test_bags_of_a_patient_are_joined(fitted: MILClassifier) -> None:
    bags, labels = drawn()
    halves = [part for tiles in bags for part in np.split(tiles, [len(tiles) // 2])]
    owners = np.repeat([f"patient {n}" for n in range(30)], 2)
    joined = MILClassifier(**FAST).fit(halves, np.repeat(labels, 2), groups=owners)
    # Names of patients decide nothing but which bags are one.
    np.testing.assert_array_equal(joined.class_counts_, fitted.class_counts_)
    assert joined.score(bags, labels) > 0.8
    with pytest.raises(InputError, match="patient 0: 2 labels; expected one label"):
        MILClassifier(**FAST).fit(bags, labels, groups=np.arange(30) // 15)
    for nobody in (None, np.nan):
        with pytest.raises(InputError, match="groups: none for bag 29; expected a patient"):
            MILClassifier(**FAST).fit(bags, labels, groups=[*range(29), nobody])


def test_it_works_in_scikit_learns_model_selection_with_groups() -> None:
    bags, labels = drawn(36)
    groups = np.arange(36) // 2 * 2 + (labels == "b")
    folds = GroupKFold(3)
    areas = cross_val_score(
        MILClassifier(**FAST), bags, labels, groups=groups, cv=folds, scoring="roc_auc",
        params={"groups": groups}, error_score="raise",
    )  # fmt: skip
    assert areas.mean() > 0.8
    search = GridSearchCV(
        MILClassifier(**FAST | {"head": "gated"}, calibrator=None),
        {"head": ["mean", "gated"]},
        cv=StratifiedKFold(3),
        scoring="neg_log_loss",
        error_score="raise",
    )
    search.fit(bags, labels)
    assert search.best_params_["head"] in ("mean", "gated")
    assert log_loss(labels, search.predict_proba(bags)) < np.log(2)


def test_three_classes_of_any_labels() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(36) % 3 * 10
    bags = [rng.normal(size=(6, 8)) + np.eye(8)[label // 10] * 3 for label in labels]
    trained = MILClassifier(
        **FAST | {"fixed_steps": 60}, head="gated", calibrator="temperature"
    ).fit(bags, labels)
    assert trained.classes_.tolist() == [0, 10, 20]
    assert trained.decision_function(bags).shape == (36, 3)
    assert trained.score(bags, labels) > 0.8


def test_several_labels_a_bag_have_a_classifier_each() -> None:
    bags, y = drawn(48)
    truth = np.stack([y == y[0], np.arange(48) % 3 == 0], axis=1).astype(int)
    groups = np.arange(48)
    several = MultiOutputClassifier(MILClassifier(**FAST)).fit(bags, truth, groups=groups)
    first, second = several.predict_proba(bags)
    assert several.predict(bags).shape == (48, 2)
    assert ((first[:, 1] > 0.5) == truth[:, 0]).mean() > 0.8
    np.testing.assert_allclose(second.sum(axis=1), 1)
    assert np.ptp(first[:, 1] + second[:, 1]) > 0.2  # a row need not sum to 1
    with pytest.raises(InputError, match="MultiOutputClassifier"):
        MILClassifier(**FAST).fit(bags, truth)


def test_what_cannot_be_fitted_is_refused_in_plain_words(fitted: MILClassifier) -> None:
    bags, labels = drawn(9)
    with pytest.raises(InputError, match=r"n_folds: 5 for \[6, 3\] patients of each class"):
        MILClassifier().fit(bags, labels)
    with pytest.raises(ValueError, match="y: one class only, 'a'"):
        MILClassifier().fit(bags, ["a"] * 9)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        MILClassifier().fit(bags, labels[:-1])
    with pytest.raises(ValueError, match="Unknown label type"):
        MILClassifier().fit(bags, np.linspace(0, 1, 9))
    with pytest.raises(InputError, match=r"bags: \[9, 0\] patients with tiles of each class"):
        MILClassifier(head="gated", calibrator=None).fit([*bags, bags[0][:0]], ["a"] * 9 + ["b"])
    with pytest.raises(InputError, match=r"bag 0: float64 of shape \(16,\); expected numbers"):
        MILClassifier().fit([np.zeros(16)] * 9, labels)
    with pytest.raises(InputError, match=r"bag 1: float32 of shape \(2, 3\).*\(tiles, 16\)"):
        fitted.predict([bags[0], np.zeros((2, 3), np.float32)])
    with pytest.raises(InputError, match="bag 0: NaN or infinity"):
        fitted.predict([np.full((2, 16), np.nan)])
    with pytest.raises(InputError, match="bags: none"):
        fitted.predict([])
    with pytest.raises(NotFittedError):
        MILClassifier().predict(bags)
    with pytest.raises(InputError, match="prior: 'balnced'; expected 'balanced' or 'cohort'"):
        MILClassifier(**FAST, prior="balnced").fit(*drawn())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"n_folds: 2\.5 for"):
        MILClassifier(**FAST | {"n_folds": 2.5}).fit(*drawn())
    with pytest.raises(InputError, match="bag 0: NaN or infinity"):
        MILClassifier().fit([np.full((2, 16), 1e300), *bags[1:]], labels)
    with pytest.raises(RunError, match="max_tiles: 0; expected a whole number"):
        MILClassifier(**FAST, max_tiles=0).fit(*drawn())
    with pytest.raises(MilError, match="device 'banana'"):
        MILClassifier(**FAST, device="banana").fit(*drawn())
    with pytest.raises(RunError, match="head 'none': unknown"):
        MILClassifier(**FAST, head="none").fit(*drawn())
    with pytest.raises(CalibrationError, match="calibrator 'x': unknown"):
        MILClassifier(**FAST, calibrator="x").fit(*drawn())
