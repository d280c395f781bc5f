from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import TableError
from mil.data.cohort import Cohort, Patient
from mil.errors import CohortError, PredictionsError
from mil.evaluation.predictions import (
    Predictions,
    align_classes,
    average_predictions,
    read_predictions,
)

COHORT = Cohort(
    path=Path("train.csv"),
    patients=(
        Patient(patient_id="049194", slide_ids=("a", "b"), label="CE", center_id=None),
        Patient(patient_id="588e11", slide_ids=("c",), label="LAA", center_id=None),
        Patient(patient_id="p3", slide_ids=("d",), label="CE", center_id=None),
    ),
    classes=("CE", "LAA"),
)


def read(folder: Path, *rows: str, class_name: str | None = None) -> np.ndarray:
    path = folder / "p.csv"
    path.write_text("\n".join(rows) + "\n")
    return read_predictions(path, COHORT, class_name=class_name).proba


def test_a_table_of_patients_is_put_in_the_cohorts_order(tmp_path: Path) -> None:
    proba = read(tmp_path, "patient_id,CE,LAA", "p3,0.2,0.8", "049194,.6,.2", "588e11,0.5,0.5")
    np.testing.assert_allclose(proba, [[0.75, 0.25], [0.5, 0.5], [0.2, 0.8]])


def test_slides_are_averaged_to_patients(tmp_path: Path) -> None:
    rows = ["image_id,LAA", "a.tif,0.2", "b,0.6", "c,0.9", "d,0.1"]
    proba = read(tmp_path, *rows, class_name="LAA")
    np.testing.assert_allclose(proba[:, 1], [0.4, 0.9, 0.1])
    np.testing.assert_allclose(read(tmp_path, *rows, class_name="LAA")[:, 0], [0.6, 0.1, 0.9])


def test_the_column_of_the_named_class_is_taken_wherever_it_stands(tmp_path: Path) -> None:
    rows = ["patient_id,CE,LAA", "049194,.9,.1", "588e11,.2,.8", "p3,.6,.4"]
    for name in ("CE", "LAA"):
        proba = read(tmp_path, *rows, class_name=name)
        np.testing.assert_allclose(proba[:, 1], [0.1, 0.8, 0.4])
        np.testing.assert_allclose(proba, read(tmp_path, *rows))


def test_a_one_that_was_rounded_on_its_way_is_a_one(tmp_path: Path) -> None:
    rows = ["patient_id,LAA", "p3,1.0000005", "049194,-2e-17", "588e11,.5"]
    proba = read(tmp_path, *rows, class_name="LAA")
    assert proba.min() == 0
    assert proba.max() == 1


def test_a_slide_of_another_patient_than_in_the_cohort_is_refused(tmp_path: Path) -> None:
    rows = ["image_id,patient_id,CE,LAA", "a,049194,.9,.1", "b,,.2,.8", "c,588E11,.5,.5"]
    read(tmp_path, *rows, "d,p3,.5,.5")
    with pytest.raises(TableError, match=r"row 2: slide 'a' of patient 'p3'; expected of '049194'"):
        read(tmp_path, rows[0], "a,p3,.9,.1", *rows[2:], "d,p3,.5,.5")


def test_a_single_column_is_found_among_others(tmp_path: Path) -> None:
    rows = ["image_id,patient_id,label,fold1,predictions", "a,049194,CE,0,.1", "b,,CE,1,.2"]
    proba = read(tmp_path, *rows, "c,588e11,LAA,0,.3", "d,p3,CE,0,.4", class_name="LAA")
    np.testing.assert_allclose(proba[:, 1], [0.15, 0.3, 0.4])


def test_probabilities_joined_with_the_details_of_an_inference_are_read(tmp_path: Path) -> None:
    rows = ["049194,1,,.9,.1", "588e11,1,,.2,.8", "p3,1,,.6,.4"]
    proba = read(tmp_path, "patient_id,n_slides_used,seen_in_training,CE,LAA", *rows)
    np.testing.assert_allclose(proba[:, 1], [0.1, 0.8, 0.4])
    one = read(
        tmp_path, "patient_id,n_slides_used,seen_in_training,x,score", *rows, class_name="LAA"
    )
    np.testing.assert_allclose(one, proba)


FULL = ["049194,.5,.5", "588e11,.5,.5", "p3,.5,.5"]
ONE = ["049194,.5", "588e11,.5", "p3,.5"]
THREE = ["049194,.5,.2,.3", "588e11,.3,.4,.3", "p3,.1,.6,.3"]
ODD = ["049194,.5,.9,.3", "588e11,.3,.4,.3", "p3,.1,.4,.3"]


@pytest.mark.parametrize(
    ("header", "rows", "others"),
    [
        ("CE,LAA,UNK", THREE, ("UNK",)),
        ("CE,UNK,LAA", ["049194,.5,.3,.2", "588e11,.3,.3,.4", "p3,.1,.3,.6"], ("UNK",)),
        ("CE,LAA,UNK", ["049194,.5,.49,.01", "588e11,.5,.49,.01", "p3,.5,.49,.01"], ("UNK",)),
        ("CE,LAA,a,b", ["049194,.5,.2,.1,.2", "588e11,.3,.4,.3,0", "p3,.1,.6,.1,.2"], ("a", "b")),
        ("CE,LAA,UNK", ["049194,.333,.333,.333", "588e11,.3,.4,.3", "p3,0,0,1"], ("UNK",)),
        ("CE,LAA,UNK,spread", [f"{row},.07" for row in THREE], ("UNK",)),
        ("CE,LAA,spread", [f"{row},.07" for row in FULL], ()),
        ("CE,LAA,n_tiles", [f"{row},12" for row in FULL], ()),
        ("CE,LAA,never", [f"{row},0" for row in ("049194,.5,.2", "588e11,.3,.4", "p3,.1,.6")], ()),
    ],
)
def test_a_class_that_no_patient_has_stays_in_the_sum_of_its_row(
    tmp_path: Path, header: str, rows: list[str], others: tuple[str, ...]
) -> None:
    path = tmp_path / "p.csv"
    path.write_text("\n".join([f"patient_id,{header}", *rows]))
    predictions = read_predictions(path, COHORT, class_name=None)
    assert predictions.other_classes == others
    assert predictions.proba.shape == (3, 2 + len(others))
    np.testing.assert_allclose(predictions.proba.sum(axis=1), 1)


def test_a_class_of_the_other_patients_stays_in_the_sum_even_unscaled(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("\n".join(["patient_id,CE,LAA,UNK", *ODD, "p9,1,1,1"]))
    predictions = read_predictions(
        path, COHORT, class_name=None, known_classes=("CE", "LAA", "UNK"), is_part=True
    )
    assert (predictions.other_classes, predictions.n_left_out) == (("UNK",), 1)
    np.testing.assert_allclose(predictions.proba[0], np.array([0.5, 0.9, 0.3]) / 1.7)


def test_files_with_different_other_classes_get_the_same_columns() -> None:
    one, two = align_classes(
        [
            Predictions(proba=np.array([[0.5, 0.3, 0.2]]), other_classes=("UNK",)),
            Predictions(proba=np.array([[0.5, 0.4, 0.1]]), other_classes=("none",)),
        ]
    )
    assert one.other_classes == two.other_classes == ("UNK", "none")
    np.testing.assert_allclose(one.proba, [[0.5, 0.3, 0.2, 0]])
    np.testing.assert_allclose(two.proba, [[0.5, 0.4, 0, 0.1]])


@pytest.mark.parametrize(
    ("rows", "class_name", "message"),
    [
        (["patient_id,predictions", "049194,.5"], None, r"no column 'CE'.*--class"),
        (["patient_id,predictions", "049194,.5"], "XX", "no such class.*expected CE or LAA"),
        (["patient,CE,LAA", "049194,.5,.5"], None, "Did you mean 'patient'"),
        (["patient_id,CE,LAA", *FULL[:2]], None, r"no row for 1 of 3 patients \(p3\)"),
        (["patient_id,CE,LAA", *FULL, "p9,.5,.5"], None, r"1 patient that train.csv does not"),
        (["patient_id,CE,LAA", *FULL, FULL[0]], None, r"1 patient more than once \(049194\)"),
        (["patient_id,CE,LAA", *FULL[:2], "p3,x,.5"], None, "row 4: CE is 'x'"),
        (["patient_id,CE,LAA", *FULL[:2], "p3,nan,.5"], None, "row 4: CE is 'nan'"),
        (["patient_id,CE,LAA", *FULL[:2], "p3,-1,.5"], None, "row 4: CE is '-1'"),
        (["patient_id,CE,LAA", *FULL[:2], "p3,5.5,.5"], None, "row 4: CE is '5.5'; .* 0 to 1"),
        (["patient_id,CE,LAA", *FULL[:2], "p3,0,0"], None, "row 4: all probabilities are 0"),
        (["patient_id,p", "049194,.5", "588e11,2", "p3,.5"], "LAA", "row 3: p is '2'"),
        (["patient_id,x,y", *FULL], "LAA", "2 columns of numbers"),
        (["patient_id,LAA", *ONE], "CE", "'LAA' and none for 'CE'.*use --class LAA"),
        (["patient_id,CE,LAA,UNK", *THREE], "LAA", "LAA and CE sum to 0.7 .*Leave --class out"),
        (["patient_id,CE,LAA,UNK", *ODD], None, "sum to 0.5 to 1.4, and UNK may be a class"),
    ],
)
def test_each_fault_has_its_own_line(
    tmp_path: Path, rows: list[str], class_name: str | None, message: str
) -> None:
    with pytest.raises((PredictionsError, TableError), match=message):
        read(tmp_path, *rows, class_name=class_name)


@given(
    values=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=4),
)
def test_averages_stay_probabilities_between_their_parts(values: list[float]) -> None:
    parts = [np.array([[v, 1 - v]]) for v in values]
    for how in ("probability", "logit"):
        mean = average_predictions(parts, how=how)
        assert mean.sum() == pytest.approx(1)
        assert min(values) - 1e-9 <= mean[0, 0] <= max(values) + 1e-9


def test_the_average_of_logits_is_the_average_of_logits() -> None:
    parts = [np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]])]
    mean = average_predictions(parts, how="logit")
    logits = [np.log(part[0, 0] / part[0, 1]) for part in parts]
    assert np.log(mean[0, 0] / mean[0, 1]) == pytest.approx(np.mean(logits))


def test_a_decimal_comma_is_told_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(
        PredictionsError, match=r"row 2: CE is '0,61'.*decimal point, such as 0\.61"
    ):
        read(tmp_path, "patient_id;CE;LAA", "p3;0,61;0,39")


def test_what_a_file_says_of_others_does_not_matter_for_a_part(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(
        "patient_id,CE,LAA\n049194,.9,.1\n588e11,.2,.8\np3,.6,.4\nzzz,nan,\nTotal,4,4\n"
    )
    read_part = read_predictions(path, COHORT, class_name=None, is_part=True)
    np.testing.assert_allclose(read_part.proba[:, 1], [0.1, 0.8, 0.4])
    path.write_text("patient_id,CE,LAA\nzzz,nan,\n")
    with pytest.raises(PredictionsError, match="no row for 3 of 3 patients"):
        read_predictions(path, COHORT, class_name=None, is_part=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["patient_id,CE,LAA", ",.9,.1", "p3,1,0"],
            "row 2: no patient_id; .* Fill it in or delete",
        ),
        (["patient_id,CE,LAA", "p3,nan,nan"], "row 2: CE is 'nan'.* delete the row; 'mil score'"),
        (["patient_id,CE,LAA", "p3,1.5,-2"], "row 2: CE is '1.5'.* logits.* softmax"),
        (["patient_id,CE,LAA", "p3,88.2,11.8"], "row 2: CE is '88.2'.* Divide percentages by 100"),
        (["patient_id,prob_CE,prob_LAA", "p3,1,0"], "If 'prob_CE' holds its .* rename it to 'CE'"),
        (
            ["patient_id,CE_true,patient_LAA,LAA_size,CE_p", "a,1,.1,12,.6"],
            "If 'CE_p' holds its .* rename it to 'CE'",
        ),
        (
            ["patient_id,LAA_size,CE_true,p", "a,12,yes,.6"],
            "If one column holds the probability of a single class, name it with --class",
        ),
        (
            ["patient_id,predicted (CE/LAA),p_laa", "a,CE,.4", "b,LAA,.6"],
            "If one column holds the probability of a single class, name it with --class",
        ),
        (
            ["patient_id,class,p", "a,CE,.4", "a,LAA,.6"],
            "Write one row per patient, with a column of probabilities per class",
        ),
        (
            ["patient_id,CE,LAA", "a,1,0", "b.svs,1,0"],
            "2 patients that .* name their column 'slide",
        ),
        (["slide_id,CE,LAA", "p3,1,0"], "1 slide that .* name their column 'patient_id'"),
        (
            ["patient_id,CE,LAA", "p3,1,0", "p3,1,0", "p3,1,0"],
            r"1 patient more than once \(p3\).*Del",
        ),
    ],
)
def test_what_to_do_is_said(tmp_path: Path, rows: list[str], message: str) -> None:
    others = ["049194,.9,.1", "588e11,.2,.8"] if any(row.startswith("p3") for row in rows) else []
    with pytest.raises((PredictionsError, TableError), match=message):
        read(tmp_path, *rows, *(others if "slide_id" not in rows[0] else []))


@pytest.mark.parametrize("row", ["Total,2,1", "Mean,0.67,0.33", "Summe:,200%,100%", "total,,"])
def test_a_row_of_totals_is_told_before_its_cells(tmp_path: Path, row: str) -> None:
    rows = ["patient_id,CE,LAA", "049194,.9,.1", "588e11,.2,.8", "p3,.6,.4"]
    with pytest.raises(CohortError, match=r"row 5: '\w+:?' in the last row.* Delete the row"):
        read(tmp_path, *rows, row)
    assert len(read(tmp_path, *rows)) == 3


def test_predicted_classes_are_no_probabilities(tmp_path: Path) -> None:
    rows = ["patient_id,prediction", "049194,CE", "588e11,LAA", "p3,CE"]
    with pytest.raises(PredictionsError, match="Scores need probabilities, not predicted classes"):
        read(tmp_path, *rows, class_name="LAA")
