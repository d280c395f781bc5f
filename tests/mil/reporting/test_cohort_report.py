from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from features.bags.h5 import write_bag
from features.errors import BagError, TableError
from mil.errors import CohortError
from mil.reporting.cohort_report import (
    CohortSummary,
    SlideFiles,
    SlideHeader,
    read_cohort_table,
    render_cohort_report,
    summarize_cohort,
)
from mil.reporting.cohort_report.page import choose_for_gallery
from mil.reporting.cohort_report.statistics import Variable, count_by, group_test, statistics
from mil.reporting.cohort_report.table import SlideTable
from tests.browser import needs_browser, open_tab
from tests.fakes import make_bag, real_data

pytestmark = pytest.mark.usefixtures("drawn_figures")

HEAD = "image_id,patient_id,label,center_id,image_num"
HOSTILE = "<script>alert(1)</script>$\\frac"
PATIENTS_OF_CENTRES = [
    ("1", 38, 10), ("2", 18, 3), ("3", 19, 19), ("4", 67, 22), ("5", 22, 8), ("6", 19, 13),
    ("7", 48, 20), ("8", 14, 2), ("9", 13, 2), ("10", 25, 7), ("11", 174, 69),
]  # fmt: skip


def write(folder: Path, rows: Sequence[str], *, head: str = HEAD) -> Path:
    path = folder / "train.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def cohort(folder: Path, *, n_patients: int = 40, hostile: bool = False) -> Path:
    """Every third patient is LAA, every fifth has two slides; four centres."""
    rows = []
    for number in range(n_patients):
        label = "LAA" if number % 3 == 0 else "CE"
        centre = HOSTILE if hostile and number % 4 == 0 else f"{number % 4 + 1}"
        for image in range(1 + (number % 5 == 0)):
            rows.append(f"{number:03d}p_{image},{number:03d}p,{label},{centre},{image}")
    return write(folder, rows)


def header(slide_id: str, **changes: object) -> SlideHeader:
    rng = np.random.default_rng([*slide_id.encode()])
    width, height = (int(side) for side in rng.integers(5000, 50_000, 2))
    plain = SlideHeader(
        slide_id=slide_id, width_px0=width, height_px0=height, n_levels=1,
        file_bytes=width * height // 3, mpp=0.25, reader="tiff", compression="LZW", content_id="",
    )  # fmt: skip
    return replace(plain, **changes)


def files_of(table: SlideTable, **changes: dict[str, object]) -> SlideFiles:
    """A header for each slide, changed where ``changes`` names the slide; two pictures a label."""
    headers = {slide: header(slide, **changes.get(slide, {})) for slide in table.slides["slide"]}
    chosen = choose_for_gallery(table, headers, n_per_label=2)
    pictures = {slide: Image.new("RGB", (300, 200), "#e0b0c0") for slide in chosen}
    return SlideFiles(headers=headers, thumbnails=pictures)


def described(
    path: Path, *, files: SlideFiles | None = None, bags: Path | None = None
) -> CohortSummary:
    return summarize_cohort(read_cohort_table(path), files=files, bags_dir=bags)


def kinds(summary: CohortSummary) -> set[str]:
    return {finding.kind for finding in summary.findings}


@real_data
def test_the_stroke_cohort_is_described(mil_data: Path) -> None:
    summary = described(mil_data / "strip" / "train.csv")
    assert (len(summary.table.slides), len(summary.table.patients)) == (754, 632)
    assert summary.labels == {
        "slides": {"CE": 547, "LAA": 207},
        "patients": {"CE": 457, "LAA": 175},
    }
    patients, slides, numbers, images = summary.crosstabs
    assert slides.as_dict() == {
        name: {"CE": ce, "LAA": laa}
        for name, ce, laa in [
            ("1", 44, 10), ("2", 26, 3), ("3", 22, 27), ("4", 88, 26), ("5", 29, 9), ("6", 24, 14),
            ("7", 70, 29), ("8", 14, 2), ("9", 14, 2), ("10", 37, 7), ("11", 179, 78),
        ]
    }  # fmt: skip
    assert patients.as_dict() == {
        name: {"CE": ce, "LAA": laa} for name, ce, laa in PATIENTS_OF_CENTRES
    }
    assert patients.shares[2].tolist() == [0.5, 0.5]
    assert dict(zip(numbers.names, numbers.totals.tolist(), strict=True)) == {
        "1": 543, "2": 68, "3": 13, "4": 4, "5": 4,
    }  # fmt: skip
    assert images.totals.sum() == 754
    (differs,) = (finding for finding in summary.findings if finding.kind == "centre_differs")
    assert differs.subjects[:2] == ("3", "6")
    assert set(differs.subjects[2:]) == {"2", "8", "9"}
    assert "LAA, 27.7 % of all" in differs.message
    assert "centre 3 with 50.0 % (19 of 38 patients" in differs.message
    assert "centre 6 with 40.6 % (13 of 32 patients" in differs.message
    ids = next(finding for finding in summary.findings if finding.kind == "ids_like_numbers")
    assert "37 of digits only (5 with a leading 0)" in ids.message
    html = render_cohort_report(summary)
    for figure in (
        "<b>754</b>slides", "<b>632</b>patients", "<b>11</b>centres",
        "<b>457 · 72.3 %</b>patients of CE", "<b>175 · 27.7 %</b>patients of LAA",
    ):  # fmt: skip
        assert figure in html


def test_faults_of_a_table_are_counted_and_not_refused(tmp_path: Path) -> None:
    summary = described(write(tmp_path, [
        "a_0.tif,a,CE,1,0", "a_0.tif,a,CE,1,0",  # the same row twice
        "b_0,b,CE,1,0", "b_1,b,LAA,2,1",  # two labels, two centres
        "c_0,c,,,0", ",d,CE,1,0", "e_0,,CE,1,0",  # empty cells
        "x_0,f,LAA,2,0", "x_0,g,LAA,2,0",  # a slide of two patients
    ]))  # fmt: skip
    table = summary.table
    assert (table.n_rows, table.n_rows_repeated, table.n_rows_left_out) == (9, 1, 2)
    assert list(table.slides["slide"]) == ["a_0", "b_0", "b_1", "c_0", "x_0"]
    assert dict(zip(table.patients["patient"], table.patients["label"], strict=True)) == {
        "a": "CE", "b": "(several)", "c": "(none)", "f": "LAA",
    }  # fmt: skip
    assert sum(summary.labels["slides"].values()) == 5
    assert sum(summary.labels["patients"].values()) == 4
    assert kinds(summary) >= {
        "row_repeated", "row_without_id", "value_missing", "patient_with_two_labels",
        "patient_with_two_centres", "slide_of_two_patients", "slide_listed_twice",
    }  # fmt: skip
    assert summary.findings[0].kind == "slide_of_two_patients"
    label = next(column for column in table.columns if column.name == "label")
    assert (label.n_missing, label.n_distinct) == (1, 2)
    assert label.frequent == (("CE", 5), ("LAA", 3))
    assert "(several)" in render_cohort_report(summary)


@pytest.mark.parametrize(
    ("head", "rows", "text"),
    [
        ("slide_id,patient_id", ["a,a", "b,b"], "no column &#39;label&#39;"),
        (
            "image_id,patient_id,label",
            ["a,a,CE", "b,b,CE"],
            "have the same one, CE: there is nothing to learn",
        ),
        ("image_id,patient_id,label,center_id", ["a,a,CE,", "b,b,LAA,"], "(none)"),
        ("image_id,patient_id,label", ["a,a,x", "b,b,y", "c,c,z"], "3 patients"),
    ],
)
def test_a_page_is_made_from_whatever_data_exist(
    tmp_path: Path, head: str, rows: list[str], text: str
) -> None:
    path = write(tmp_path, rows, head=head)
    files = files_of(read_cohort_table(path))
    html = render_cohort_report(described(path, files=files))
    assert text in html
    assert html.count("data:image/jpeg") == len(files.thumbnails) > 0


def test_cells_that_training_refuses_are_a_finding(tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    rows = "".join(f"s{n},p{n},{'AB'[n % 2]}\n" for n in range(4))
    for row in ("s9,=LEFT(A9;3),A", "s9,49194.0,A", "s9,p9,#REF!", "Total,5,C", "s9,p\ufffd,A"):
        table.write_text(f"image_id,patient_id,label\n{rows}{row}\n")
        kinds = [f.kind for f in summarize_cohort(read_cohort_table(table)).findings]
        assert kinds.count("table_refused") == 1, row
    table.write_text(f"image_id,patient_id,label\n{rows}s9,p9,\n")
    kinds = [f.kind for f in summarize_cohort(read_cohort_table(table)).findings]
    assert not {"table_refused", "unclear_labels"} & set(kinds)


@pytest.mark.parametrize(
    ("sizes", "said", "advice"),
    [
        ({"A": 9, "B": 3}, "B has 3", "Add patients of that class"),
        ({"A": 2, "B": 3, "C": 9}, "A has 2, B has 3", "Add patients of these classes"),
        ({"A": 9, "B": 4}, "B: fewer patients than the 5 folds", "--folds 4"),
        ({"A": 5, "B": 6}, None, None),
        ({f"class {n:02d}": 6 for n in range(14)} | {"rare": 1}, "rare has 1", "Add patients"),
    ],
)
def test_classes_too_small_to_train_on_are_a_finding(
    tmp_path: Path, sizes: dict[str, int], said: str | None, advice: str | None
) -> None:
    rows = [f"{name}{n},{name}{n},{name},1,0" for name, size in sizes.items() for n in range(size)]
    rows += ["x_0,x,A,1,0", "x_1,x,B,1,1"] if "A" in sizes else []  # of no class
    found = [f for f in described(write(tmp_path, rows)).findings if f.kind == "class_too_small"]
    if said is None or advice is None:
        assert not found
    else:
        (finding,) = found
        assert said in finding.message
        assert advice in finding.advice


def test_a_table_without_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no column 'patient_id'"):
        described(write(tmp_path, ["a,CE"], head="image_id,label"))
    with pytest.raises(CohortError, match="no row with a slide id and a patient id"):
        described(write(tmp_path, [",a,CE", "b,,CE"], head="image_id,patient_id,label"))
    (tmp_path / "bags").mkdir()
    write_bag(tmp_path / "bags" / "other.h5", make_bag("other"))
    with pytest.raises(BagError, match="has a bag"):
        described(cohort(tmp_path), bags=tmp_path / "bags")


def test_names_from_a_table_are_escaped_everywhere(tmp_path: Path) -> None:
    path = cohort(tmp_path, hostile=True)
    files = files_of(read_cohort_table(path))
    failures = {HOSTILE: HOSTILE}
    html = render_cohort_report(described(path, files=replace(files, failures=failures)))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "http://" not in re.sub(r'src="data:[^"]+"', "", html)
    pictures = [base64.b64decode(uri) for uri in re.findall(r"svg\+xml;base64,([^\"]+)", html)]
    assert pictures
    assert not any(b"<script" in picture for picture in pictures)


def test_a_table_of_several_labels_is_described_by_the_one_asked_for(tmp_path: Path) -> None:
    rows = [f"s{number},p{number},{number % 2},{int(number < 3)}" for number in range(9)]
    path = write(tmp_path, rows, head="bag_id,patient_id,any,subdural")
    summary = summarize_cohort(read_cohort_table(path, label="subdural"))
    assert summary.labels["patients"] == {"0": 6, "1": 3}
    with pytest.raises(TableError, match=r"no column 'epidural' among bag_id, .*subdural"):
        read_cohort_table(path, label="epidural")


@pytest.mark.ci
def test_a_column_of_many_labels_or_centres_is_cut(tmp_path: Path) -> None:
    rows = [f"{n}_0,{n},{'common' if n % 2 else f'rare {n:03d}'},{n},0" for n in range(300)]
    summary = described(write(tmp_path, rows))
    assert len(summary.table.classes) == 12
    assert summary.labels["patients"]["common"] == 150
    assert summary.labels["patients"]["(others)"] == 140
    assert "class_rare" not in {finding.kind for finding in summary.findings}
    html = render_cohort_report(summary)
    assert "Patients by centre, the 100 largest of 300" in html
    assert "rare 299" not in html.split("Labels</h2>")[1]


def test_patients_without_a_unique_label_cause_no_division_by_zero(tmp_path: Path) -> None:
    summary = described(write(tmp_path, ["a_0,a,CE,1,0", "a_1,a,LAA,1,1"]))
    assert summary.labels["patients"] == {"(several)": 1, "CE": 0, "LAA": 0}
    assert "(several)" in render_cohort_report(summary)


def test_only_classes_are_compared_between_centres(tmp_path: Path) -> None:
    rows = [f"{n}_0,{n},{'AB'[n % 2]},{n // 20},0" for n in range(40)]
    rows += [f"{n}_1,{n},{'BA'[n % 2]},{n // 20},1" for n in range(4)]
    summary = described(write(tmp_path, rows))
    assert summary.labels["patients"]["(several)"] == 4
    assert not [f.message for f in summary.findings if "the share of (several)" in f.message]


def test_missing_extra_copied_and_unusual_files_are_findings(tmp_path: Path) -> None:
    path = cohort(tmp_path)
    table = read_cohort_table(path)
    files = files_of(
        table,
        **{
            "001p_0": {"content_id": "same"},
            "002p_0": {"content_id": "same"},
            "000p_0": {"content_id": "twin"},
            "000p_1": {"content_id": "twin"},
            "003p_0": {"mpp": math.nan},
            "004p_0": {"mpp": 0.5},
        },
    )
    headers = {**files.headers, "extra": header("extra")}
    del headers["005p_0"], headers["006p_0"]
    summary = described(
        path, files=SlideFiles(headers=headers, failures={"006p_0": "006p_0.tif: not a TIFF"})
    )
    findings = {(f.kind, f.severity.value): f for f in summary.findings}
    assert findings["file_copied", "error"].subjects == ("001p_0", "002p_0")
    assert findings["file_copied", "warning"].subjects == ("000p_0", "000p_1")
    assert findings["file_missing", "warning"].subjects == ("005p_0",)
    assert findings["file_unreadable", "warning"].subjects == ("006p_0",)
    assert findings["file_not_in_table", "note"].subjects == ("extra",)
    assert findings["resolution_unknown", "warning"].subjects == ("003p_0",)
    assert findings["resolution_far", "warning"].subjects == ("004p_0",)
    assert summary.largest is not None
    areas = {h.slide_id: h.width_px0 * h.height_px0 for h in headers.values() if h is not None}
    del areas["extra"]
    assert summary.largest.slide_id == max(areas, key=areas.__getitem__)


def test_tissue_and_tiles_come_from_bags(tmp_path: Path) -> None:
    path = cohort(tmp_path, n_patients=12)
    bags = tmp_path / "bags"
    bags.mkdir()
    for slide in read_cohort_table(path).slides["slide"]:
        bag = make_bag(slide, n_tiles=4)
        bag.tissue_fraction[:] = 0.5
        write_bag(bags / f"{slide}.h5", bag)
    green = make_bag("001p_0", n_tiles=9)
    glass = replace(green.meta, background_rgb=(196, 211, 192))
    write_bag(bags / "001p_0.h5", replace(green, meta=glass))
    write_bag(bags / "002p_0.h5", make_bag("002p_0", n_tiles=0, empty_reason="no tissue found"))
    (bags / "003p_0.h5").unlink()
    summary = described(path, bags=bags)
    tiles, tissue = (variable.values for variable in summary.bag_variables)
    order = list(summary.table.slides["slide"])
    assert tiles[order.index("001p_0")] == 9
    assert tissue[order.index("004p_0")] == pytest.approx(50)
    by_label, by_centre = summary.tile_counts["label"], summary.tile_counts["centre"]
    for groups in (by_label, by_centre):
        assert sum(group.n_tiles for group in groups) == np.nansum(tiles)
        assert sum(group.n_slides for group in groups) == len(order) - 1
        assert sum(group.n_patients for group in groups) == 11
    predict_set = dict.fromkeys(summary.table.patients["patient"], 0.0)
    for owner, n_tiles in zip(summary.table.slides["patient"], np.nan_to_num(tiles), strict=True):
        predict_set[owner] += n_tiles
    labels = summary.table.patients.set_index("patient")["label"]
    known = [n for name, n in predict_set.items() if labels[name] == "CE" and name != "003p"]
    assert by_label[0].group == "CE"
    assert by_label[0].tiles_a_patient == np.median(known)
    assert by_label[0].tissue_share == pytest.approx(0.5)
    assert math.isnan(tiles[order.index("003p_0")])
    findings = {finding.kind: finding for finding in summary.findings}
    assert findings["bag_missing"].subjects == ("003p_0",)
    assert findings["bag_empty"].subjects == ("002p_0",)
    assert "no tissue found" in findings["bag_empty"].advice
    html = render_cohort_report(summary)
    assert 'style="background: rgb(192, 208, 192)"' in html


def test_a_variable_that_predicts_the_label_is_a_finding(tmp_path: Path) -> None:
    path = cohort(tmp_path)
    table = read_cohort_table(path)
    large = {s: {"width_px0": 90_000} for s in table.slides.query("label == 'LAA'")["slide"]}
    summary = described(path, files=files_of(table, **large))
    finding = next(f for f in summary.findings if f.kind == "measure_tells_label")
    assert finding.subjects == ("width",)
    width = next(d for d in summary.differences if d.measure == "width")
    assert (width.auroc, width.medians[1]) == (1.0, 90_000)
    assert sum(width.n_patients) == 40


def test_a_patient_counts_once_in_the_comparison_of_classes(tmp_path: Path) -> None:
    rows = [
        f"{n}_{i},{n},{'LAA' if n % 2 else 'CE'}" for n in range(10) for i in range(n % 2 * 4 + 1)
    ]
    table = read_cohort_table(write(tmp_path, rows, head="image_id,patient_id,label"))
    values = np.arange(len(table.slides), dtype=float)
    difference = group_test(Variable(name="x", unit="", values=values), table)
    assert difference is not None
    assert difference.n_patients == (5, 5)


@given(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=30), st.data())
def test_counts_add_up(labels: list[str], data: st.DataObject) -> None:
    import pandas as pd

    centres = data.draw(st.lists(st.sampled_from(["1", "2", "10"]), min_size=len(labels),
                                 max_size=len(labels)))  # fmt: skip
    frame = pd.DataFrame({"label": labels, "centre": centres})
    crosstab = count_by("centre", frame, classes=sorted(set(labels)), level="slides")
    assert crosstab.counts.sum() == len(labels)
    assert list(crosstab.names) == sorted(set(centres), key=int)
    np.testing.assert_allclose(crosstab.shares.sum(axis=1), 1)


def test_statistics_are_those_of_numpy_and_unknown_values_are_counted_apart(tmp_path: Path) -> None:
    table = read_cohort_table(cohort(tmp_path, n_patients=5))
    values = np.array([1.0, 2.0, 3.0, 100.0, np.nan, 4.0])
    every, *_ = statistics(Variable(name="x", unit="px", values=values), table)
    assert (every.n, every.n_missing, every.n_outliers) == (5, 1, 1)
    assert (every.least, every.median, every.most, every.mean) == (1, 3, 100, 22)
    assert every.sd == pytest.approx(np.std(values[[0, 1, 2, 3, 5]], ddof=1))


def test_the_gallery_takes_patients_evenly_and_each_once(tmp_path: Path) -> None:
    table = read_cohort_table(cohort(tmp_path))
    chosen = choose_for_gallery(table, set(table.slides["slide"]), n_per_label=3)
    labels = table.slides.set_index("slide")["label"]
    assert [labels[slide] for slide in chosen] == ["CE"] * 3 + ["LAA"] * 3
    assert len({slide[:4] for slide in chosen}) == 6
    assert chosen[3] == "000p_0"
    assert choose_for_gallery(table, [], n_per_label=3) == []
    assert choose_for_gallery(table, ["001p_0"], n_per_label=0) == []


@needs_browser
@pytest.mark.parametrize("width_px", [360, 1200])
def test_in_a_browser_all_figures_show_and_nothing_sticks_out(
    tmp_path: Path, width_px: int
) -> None:
    path = cohort(tmp_path, hostile=True)
    html = render_cohort_report(described(path, files=files_of(read_cohort_table(path))))
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert policy.search(html)
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    with open_tab(tmp_path / "profile") as tab:
        tab.resize(width_px, 900)
        tab.open((tmp_path / "page.html").as_uri())
        # Images of counts, of files, and of the gallery.
        assert tab.evaluate("document.images.length") == 4 + 3 + 4
        assert tab.evaluate("[...document.images].every((i) => i.naturalWidth > 0 && i.alt)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width_px
        assert tab.errors == []
