"""Ids that a spreadsheet turned into dates."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.bags.bag import no_bag_error
from features.utils.spreadsheet_dates import are_dates, date_hint
from mil.data.cohort import cohort_notes, read_cohort


@pytest.mark.parametrize(
    ("date", "own"),
    [
        ("2025-01-02", "1-2"), ("2025-01-02", "2/1"), ("02/01/2025", "2-1"), ("1/2/2025", "1-2"),
        ("2.1.25", "02.01"), ("2025/01/02", "01-02"), ("Jan-02", "1-2"), ("02-Jan", "1-2"),
        ("3. Mrz", "3-3"), ("2. Jan", "2-1"), ("2025-01-02 00:00:00", "1-2"),
        ("1998-05-01", "5-98"), ("2003-01-02", "1-2-3"), ("2003-01-02", "01-02-2003"),
    ],
)  # fmt: skip
def test_a_date_is_traced_to_the_id_that_it_was(date: str, own: str) -> None:
    hint = date_hint([date], ["9-9", own, "a"])
    assert hint.startswith(f"{date!r} may be the date that a spreadsheet made of {own!r}")
    assert own in str(no_bag_error("t.csv", [date], ["9-9", own]))


def test_a_date_without_a_trace_is_called_one_unless_ids_are_dates() -> None:
    assert "If '2025-01-02' is a date" in date_hint(["s1", "2025-01-02"], ["s1", "s3"])
    assert not date_hint(["2025-01-02"], ["2025-01-03", "2025-02-11"])
    assert not date_hint(["s1", "20250102", "12-2025-7", "1-2"], ["s2"])
    assert not date_hint(["45-67-89"], ["s2"])


@pytest.mark.parametrize(
    ("names", "are_some"),
    [
        (["45-67-89", "99-99-99"], False), (["2024-13-32"], False), (["45-Jan"], False),
        (["1-LIS", "2-MAG"], False), (["1-MAI"], False), (["0.0.2024"], False),
        (["13/02/2024", "02/13/2024"], True), (["98-01-02"], True), (["31-Jan", "1-lis"], True),
        (["Mar-98"], True), (["2024-02-13"], True),
    ],
)  # fmt: skip
def test_dates_have_a_day_and_a_month_that_there_are(names: list[str], are_some: bool) -> None:
    assert are_dates(names) == are_some


@pytest.mark.parametrize(
    ("patients", "noted"),
    [
        (
            ["2025-01-02", "1-13", "1-14"],
            "1 of 3 look like dates, such as '2025-01-02' beside '1-13'",
        ),
        (["2025-01-02", "2025-01-13", "2025-01-14"], ""),
        (["2025-01-02", "H13", "x-1"], ""),
    ],
)
def test_dates_beside_ids_of_numbers_are_noted(
    tmp_path: Path, patients: list[str], noted: str
) -> None:
    table = tmp_path / "t.csv"
    rows = "".join(f"s{i},{name},{'AB'[i % 2]}\n" for i, name in enumerate(patients))
    table.write_text(f"image_id,patient_id,label\n{rows}")
    notes = cohort_notes(read_cohort(table, labelled=True))
    assert noted in " ".join(notes)
    assert bool(notes) == bool(noted)
