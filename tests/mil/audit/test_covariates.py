from __future__ import annotations

from pathlib import Path

import pytest

from mil.audit.covariates import audit_covariates
from mil.data.cohort import read_cohort

N = 60
COLUMNS = {
    "scanner": lambda i: ["Aperio", "Leica", "Aperio"][i % 3],
    "dose": lambda i: str(10 * (i % 3) + i % 2),
    "sex": lambda i: "mf"[i * 7 % 11 < 5],
    "age": lambda i: str(50 + i * 13 % 37),
    "answer": lambda i: ["no", "yes"][i % 2],
    "empty": lambda i: "",
    "outcome": lambda i: ["", str(i)][i % 2],
}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("scanner", ["covariate_is_shortcut"]),
        ("dose", ["covariate_is_shortcut"]),
        ("center_id", ["covariate_is_shortcut"]),
        ("sex", []),
        ("age", []),
        ("answer", ["covariate_refused"]),
        ("empty", ["covariate_refused"]),
        ("outcome", ["covariate_refused"]),
    ],
)
def test_columns_that_stand_for_the_centre_or_the_label_are_found(
    tmp_path: Path, name: str, kinds: list[str]
) -> None:
    rows = [
        ",".join([f"s{i}", f"p{i}", "ab"[i % 2], f"c{i % 3}", *(f(i) for f in COLUMNS.values())])
        for i in range(N)
    ]
    head = ",".join(["image_id,patient_id,label,center_id", *COLUMNS])
    (tmp_path / "train.csv").write_text("\n".join([head, *rows]) + "\n")
    cohort = read_cohort(tmp_path / "train.csv", labelled=True)
    found = list(audit_covariates(cohort, [name], columns=None))
    assert [finding.kind for finding in found] == kinds
    assert all(name in finding.message for finding in found)
