from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mil.data.cohort import Cohort, Patient
from mil.errors import CohortError, MilError
from mil.evaluation.metrics import auroc, weighted_log_loss
from mil.evaluation.subgroups import MISSING, SEVERAL, read_subgroups
from mil.inference.predict import PatientPrediction
from mil.reporting.validation_report import write_validation
from mil.validation.external import ExternalValidation, validate

CLASSES = ("CE", "LAA")
LABELS = np.arange(40) % 2
LOGITS = np.random.default_rng(0).normal(size=40) + 0.45 * (2 * LABELS - 1)


def cohort_of(labels: Sequence[int], classes: Sequence[str] = CLASSES) -> Cohort:
    patients = tuple(
        Patient(patient_id=f"p{n}", slide_ids=(f"p{n}_0",), label=classes[label], center_id=None)
        for n, label in enumerate(labels)
    )
    present = tuple(sorted({classes[label] for label in labels}))
    return Cohort(path=Path("external.csv"), patients=patients, classes=present)


def prediction(number: int, logit: float, **changes: Any) -> PatientPrediction:
    p = 1 / (1 + np.exp(-logit))
    proba = np.array([1 - p, p])
    made = PatientPrediction(
        patient_id=f"p{number}", probabilities=proba, status="ok", slide_ids=(f"p{number}_0",),
        n_tiles={f"p{number}_0": 3}, ensemble_min=proba, ensemble_max=proba, attention_share={},
        matched_training_patient="", used_for_whitening=False, out_of_fold=None,
        prediction_set=tuple(name for name, own in zip(CLASSES, proba, strict=True) if own > 0.3),
    )  # fmt: skip
    return replace(made, **changes)


def predictions() -> list[PatientPrediction]:
    return [prediction(number, logit) for number, logit in enumerate(LOGITS)]


def evaluate(made: Sequence[PatientPrediction], cohort: Cohort, **more: Any) -> ExternalValidation:
    options = {"classes": CLASSES, "coverage": 0.9, "n_resamples": 100}
    return validate(made, cohort, **{**options, **more})


def test_scores_and_coverage_are_those_of_the_patients() -> None:
    made = evaluate(predictions(), cohort_of(LABELS), groups={"half": ["a", "b"] * 20})
    proba = np.stack([p.probabilities for p in predictions()])
    scores = made.scores["balanced"]
    assert scores["weighted_log_loss"].value == pytest.approx(weighted_log_loss(proba, LABELS))
    assert scores["auroc"].value == pytest.approx(auroc(proba, LABELS))
    assert np.isfinite([scores["calibration_slope"].low, scores["calibration_slope"].high]).all()
    held = [CLASSES[y] in p.prediction_set for y, p in zip(LABELS, predictions(), strict=True)]
    assert sum(one.n_held for one in made.sets) == sum(held)
    assert all(one.low <= one.coverage <= one.high for one in made.sets)
    # A group without one of the classes has no scores, and is shown.
    assert [(one.name, one.counts, one.scores) for one in made.groups] == [
        ("a", (20, 0), {}), ("b", (0, 20), {}),
    ]  # fmt: skip


def test_brier_and_accuracy_follow_the_stated_prior_and_log_loss_does_not() -> None:
    made = evaluate(predictions(), cohort_of(LABELS), priors=("balanced", "CE=0.9,LAA=0.1"))
    even, rare = made.scores.values()
    assert even["weighted_log_loss"] == rare["weighted_log_loss"]
    assert even["brier_score"].value > rare["brier_score"].value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"matched_training_patient": "t7"}, "trained on it (as 't7')"),
        ({"used_for_filter": True}, "tile filter"),
        ({"status": "no_bag"}, "no bag"),
        ({"status": "no_tissue"}, "no tissue"),
        ({"status": "bag_refused"}, "no bag that can be used"),
        ({"status": "out_of_range"}, "another scale"),
    ],
)
def test_patients_without_a_prediction_of_their_own_are_not_scored(
    changes: dict[str, Any], words: str
) -> None:
    made = predictions()
    made[3] = replace(made[3], **changes)
    result = evaluate(made, cohort_of(LABELS))
    assert words in result.left_out["p3"]
    assert "p3" not in result.patient_ids
    assert len(result.labels) == len(result.proba) == 39
    assert any("left out" in note for note in result.notes)


@pytest.mark.parametrize(
    ("cohort", "make", "words"),
    [
        (cohort_of(LABELS, ("CE", "other")), predictions, "label 'other'"),
        (cohort_of([0] * 40), predictions, "0 patients of class 'LAA'"),
        (
            cohort_of(LABELS),
            lambda: [replace(p, matched_training_patient="t") for p in predictions()],
            "40 are left out, first p0: the run was trained on it",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(
    cohort: Cohort, make: Callable[[], list[PatientPrediction]], words: str
) -> None:
    with pytest.raises(CohortError) as caught:
        evaluate(make(), cohort)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("shift", "scale", "words"),
    [
        (0.0, 1.0, "Better than a constant"),
        (6.0, 1.0, "Worse than a constant"),
        (0.0, 8.0, "Overconfident"),
        (0.0, 0.1, "Underconfident"),
    ],
)
def test_the_page_says_how_well_the_run_does_here(
    tmp_path: Path, shift: float, scale: float, words: str
) -> None:
    made = [prediction(n, scale * logit + shift) for n, logit in enumerate(LOGITS)]
    result = evaluate(made, cohort_of(LABELS), groups={"sex": ["f", "f", "m", "<m>"] * 10})
    write_validation(tmp_path / "page.html", result, run="first", cohort="x.csv", trained={})
    page = (tmp_path / "page.html").read_text()
    assert words in page
    assert "<m>" not in page


def test_subgroups_are_read_per_patient(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "image_id,patient_id,scanner,id\n" + "p0_0,p0,A,0\np0_1,p0,B,1\np1_0,p1,NA,2\np2_0,p2,A,3\n"
        + "".join(f"q{n}_0,q{n},A,{n + 9}\n" for n in range(30))
    )  # fmt: skip
    patients = [Patient(patient_id=f"p{n}", slide_ids=slides, label="CE", center_id=None)
                for n, slides in enumerate([("p0_0", "p0_1"), ("p1_0",), ("p2_0",)])]  # fmt: skip
    others = [Patient(patient_id=f"q{n}", slide_ids=(f"q{n}_0",), label="CE", center_id=None)
              for n in range(30)]  # fmt: skip
    cohort = Cohort(path=path, patients=(*patients, *others), classes=("CE",))
    groups = read_subgroups(path, cohort, ["scanner"])["scanner"]
    assert groups[:4] == (SEVERAL, MISSING, "A", "A")
    for names, words in ((["sex"], "no column 'sex'"), (["id"], "groups")):
        with pytest.raises(MilError, match=words):
            read_subgroups(path, cohort, names)
