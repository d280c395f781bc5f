"""Advice on tables, folders of bags and options: each message is followed, and arrives."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.bags.h5 import read_bag, write_bag
from mil.data.cohort import read_cohort
from mil.data.splits import can_leave_centres_out
from tests.cli.running import follow_advice, mil, mil_ok
from tests.fakes import write_cohort

DETAILS = "patient_id,n_slides_used,seen_in_training"
SCORE = "--cohort train.csv --resamples 100"
ROLES = "with one of the roles slide, patient, label, center"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 15 patients with bags, and predictions of them in many odd tables."""
    folder = tmp_path_factory.mktemp("study")
    rows = [row.split(",") for row in write_cohort(
        folder, n_patients=15, shift=0.8).read_text().splitlines()[1:]]  # fmt: skip
    patients = list(dict.fromkeys(patient for _, patient, _ in rows))
    proba = [0.2 + 0.04 * number for number in range(len(patients))]

    def write(name: str, header: str, *columns: object) -> None:
        lines = [",".join(map(str, cells)) for cells in zip(*columns, strict=True)]
        (folder / name).write_text("\n".join([header, *lines]) + "\n")

    both = ([f"{1 - p:.2f}" for p in proba], [f"{p:.2f}" for p in proba])
    write("p.csv", "patient_id,CE,LAA", patients, *both)
    write("percent.csv", "patient_id,CE,LAA", patients, *[[f"{c[2:]}%" for c in b] for b in both])
    commas = [[f'"{cell.replace(".", ",")}"' for cell in column] for column in both]
    write("comma.csv", "patient_id,CE,LAA", patients, *commas)
    half = [[f"{float(cell) / 2:.3f}" for cell in column] for column in both]
    write("half.csv", "patient_id,CE,LAA", patients, *half)
    write("age.csv", "patient_id,CE,LAA,risk", patients, *half, both[1])
    write("laa.csv", "patient_id,LAA", patients, both[1])
    write("two.csv", "patient_id,risk,size", patients, both[1], both[0])
    write("named.csv", "patient_id,probability,size", patients, both[1], both[0])
    write("more.csv", "patient_id,CE,LAA", [*patients, "900"], *[[*b, "0.5"] for b in both])
    write("other.csv", "patient_id,CE,LAA", [f"case {n}" for n in patients], *both)
    write("labels.csv", "patient_id,image_id,any,CE,LAA", *zip(*[
        (patient, slide, 1 if n % 4 else 0, int(label == "CE"), int(label == "LAA"))
        for n, (slide, patient, label) in enumerate(rows)], strict=True))  # fmt: skip
    write("fewer.csv", "patient_id,CE,LAA", *[column[:8] for column in (patients, *both)])
    write("dated.csv", "patient_id,CE,LAA", ["2025-01-02", *patients[1:]], *both)
    write("unpadded.csv", "patient_id,CE,LAA", [str(int(name)) for name in patients], *both)
    write("one_class.csv", "patient_id", [row[1] for row in rows if row[2] == "CE"])
    write("third.csv", "patient_id,CE,LAA,X", patients, *half, ["0.5"] * len(patients))
    write("three.csv", "patient_id,any,CE,LAA", patients, both[0], *both)
    logits = [[f"{4 * float(cell) - 3:.2f}" for cell in column] for column in both]
    write("logits.csv", "patient_id,CE,LAA", patients, *logits)
    for name, header in (
        ("p.details", DETAILS), ("moved.details", DETAILS),
        ("prefixed", "patient_id,prob_CE,prob_LAA"), ("suffixed", "patient_id,CE_prob,LAA_prob"),
        ("numbered", "patient_id,class_0,class_1"), ("nameless", "id,CE,LAA"),
    ):  # fmt: skip
        write(f"{name}.csv", header, patients, *both)
    write("long.csv", "patient_id,class,p", [*patients, *patients],
          ["CE" if n < len(patients) else "LAA" for n in range(2 * len(patients))],
          [*both[0], *both[1]])  # fmt: skip
    kinds = [["CE", "LAA"][p > 0.5] for p in proba]
    write("kinds.csv", "patient_id,CE,LAA", patients, kinds, kinds)
    write("guesses.csv", "patient_id,prediction", patients, kinds)
    write("again.csv", "patient_id,CE,LAA", *[[*column, column[0]] for column in (patients, *both)])
    write("total.csv", "patient_id,CE,LAA", [*patients, "Mean"], *[[*b, "0.5"] for b in both])
    write("gap.csv", "patient_id,CE,LAA", patients, *[["", *column[1:]] for column in both])
    write("rest.csv", "patient_id,CE,LAA", *[column[1:] for column in (patients, *both)])
    for name, cell in (("words", "half"), ("nothing", "0")):
        write(f"{name}.csv", "patient_id,CE,LAA", patients,
              *[[cell, *column[1:]] for column in both])  # fmt: skip
    of_slides = [[column[int(row[1])] for row in rows] for column in both]
    write("slides.csv", "image_id,CE,LAA", [row[0] for row in rows], *of_slides)
    write("mixed_up.csv", "image_id,CE,LAA", patients, *both)
    write("mixed_down.csv", "patient_id,CE,LAA", [row[0] for row in rows], *of_slides)
    write("crossed.csv", "image_id,patient_id,CE,LAA", [row[0] for row in rows],
          [row[1] for row in (*rows[1:], rows[0])], *of_slides)  # fmt: skip
    alike = [row[2].lower() if number == 1 else row[2] for number, row in enumerate(rows)]
    write("alike.csv", "image_id,patient_id,label", *[[row[n] for row in rows] for n in (0, 1)],
          alike)  # fmt: skip
    write("rows_twice.csv", "image_id,patient_id,label", *zip(*rows, rows[0], strict=True))
    write("plain.csv", "slide,case,kind", *zip(*rows, strict=True))
    write("scans.csv", "image_id,patient_id,label", [f"{row[0]}.svs.h5" for row in rows],
          *[[row[n] for row in rows] for n in (1, 2)])  # fmt: skip
    return folder


COHORT = [[f"s{n}", f"p{n}", "AB"[n % 2], f"c{n % 3}", str(40 + 7 * n % 31)] for n in range(24)]
HEADER = "image_id,patient_id,label,center_id,age"


@pytest.fixture(scope="module")
def odd_tables(study: Path) -> None:
    """One cohort as tables that each have one fault; good.csv has none."""

    def write(name: str, rows: list[list[str]] = COHORT, header: str = HEADER) -> str:
        text = "\n".join([header, *map(",".join, rows)]) + "\n"
        (study / f"{name}.csv").write_text(text)
        return text

    def change(name: str, row: int, column: int, cell: str) -> None:
        write(name, [
            [cell if (n, m) == (row, column) else old for m, old in enumerate(cells)]
            for n, cells in enumerate(COHORT)
        ])  # fmt: skip

    good = write("good")
    for name, content in {
        "book": b"PK\x03\x04 of a workbook", "parquet": b"PAR1 of columns",
        "letter": b"{\\rtf1 a letter}", "json": b'[{"image_id": "s1"}]', "pdf": b"%PDF-1.7 a page",
        "page": b"<!DOCTYPE html><html>log in</html>", "packed": b"\x1f\x8b\x08 of gzip",
        "._good": b"\x00\x05\x16\x07 of macOS", "zero": good.replace("p3", "p\0").encode(),
        "blanks": good.replace(",", " ").encode(),
        "separated": good.replace("\ns3", "\u2028s3").encode(),
        "rows": "".join(f'"{row}"\n' for row in good.splitlines()).encode(),
        "curly": "".join("\u201c{}\u201d\n".format(row.replace(",", "\u201d,\u201c"))
                         for row in good.splitlines()).encode(),
        "single_quotes": "".join("'{}'\n".format(row.replace(",", "','"))
                                 for row in good.splitlines()).encode(),
        "sep": ("sep=;\n" + good).encode(), "web": b"<table><tr><td>image_id</td></tr></table>",
        "formula": good.replace(",p3,", ",=LEFT(A5;2),").encode(),
        "array": b"\x93NUMPY of rows",
        "latin": good.replace("p3", "p\u00e4").encode("latin-1"),
        "other_mark": f"{HEADER}\n{good.partition(chr(10))[2].replace(',', ';')}".encode(),
        "quoted": good.replace("\n", '"\n"').replace('"', "", 1).removesuffix('"').encode(),
        "typed": good.replace("\n", "\nstring,string,string,string,int\n", 1).encode(),
        "counted": "\n".join(f"{n},{row}" if n else row
                             for n, row in enumerate(good.splitlines())).encode(),
        "numbers": "\n".join(f"{n or 'row'},{row}"
                           for n, row in enumerate(good.splitlines())).encode(),
        "dates": good.replace(",A,", ",2025-01-01,").replace(",B,", ",2025-01-02,").encode(),
        "failed": (study / "train.csv").read_bytes() + b"x,x,of no bag\n",
        "joined": (good + good).encode(), "titled": ("A study\n\n" + good).encode(),
    }.items():  # fmt: skip
        (study / f"{name}.csv").write_bytes(content)
    for name, column, cell in (
        ("cells", 2, "A, perhaps"), ("missing", 2, "NA"), ("open", 1, '"p3'), ("date", 0, "03-Jan"),
        ("number", 1, "5.88e+13"), ("several", 1, "p4"), ("small", 2, "b"),
    ):  # fmt: skip
        change(name, 3, column, cell)
    write("whole", [["s0", '"p0\ns1', 'p1"', *COHORT[0][2:]], *COHORT[2:]],
          HEADER.replace("patient_id", "patient_id,more"))  # fmt: skip
    write("total", [*COHORT, ["Total", "24", "", "", ""]])
    write("headless", COHORT[1:], ",".join(COHORT[0]))
    write("misread", [[cell.replace("c1", "c\ufffd1") for cell in row] for row in COHORT])
    write("single", [[*row[:2], "A", *row[3:]] for row in COHORT])
    write("reserved", [[*row[:2], row[2].replace("A", "patient_id"), *row[3:]] for row in COHORT])
    write("slides_only", [[row[0], row[2]] for row in COHORT], "image_id,label")
    write("both", [[*row, row[0]] for row in COHORT], f"{HEADER},Label")
    write("pid", header=HEADER.replace("patient_id", "patient no"))
    write("kind", header=HEADER.replace("label", "kind"))
    write("doubled", [[*row, row[2]] for row in COHORT], f"{HEADER},label")
    write("below", [HEADER.split(","), *COHORT], "a,b,c,d,e")
    write("scanners", [[*row[:4], f"of {row[3]}"] for row in COHORT])
    at = ["xy"[row[2] == "B" or n % 8 > 0] for n, row in enumerate(COHORT)]
    write("confounded", [[*row[:3], c, f"of {c}"] for c, row in zip(at, COHORT, strict=True)])
    write("units", [[*row[:4], f"{row[4]} years"] for row in COHORT])
    write("many", [[*row[:4], f"of {row[0]}"] for row in COHORT])
    write("telling", [[*row[:4], f"of {row[2]}"] for row in COHORT])
    write("constant", [[*row[:4], "50"] for row in COHORT])
    write("shared", [*COHORT, [COHORT[0][0], *COHORT[2][1:]]])
    write("twice", [*COHORT, COHORT[0]])
    write("unnamed", [*COHORT, ["s99", "", *COHORT[0][2:]]])
    write("zeros", [[f"t{n}", f"{n:03d}", *row[2:]] for n, row in enumerate(COHORT)])
    write("centres", [[*row[:3], "xy"[(row[2] == "B" and n > 1) or n > 19], row[4]]
                      for n, row in enumerate(COHORT)])  # fmt: skip
    change("unclear", 3, 2, "unknown")
    write("rare", [row for n, row in enumerate(COHORT) if row[2] == "A" or n < 10])
    write("few", [row for n, row in enumerate(COHORT) if row[2] == "A" or n < 4])
    (study / "bare.toml").write_text("[train]\nhead = mean\n")
    (study / "quick.toml").write_text("[train]\nn_members = 1\nfixed_steps = 2\nfolds = 3\n")
    for name in ("fewer", "mixed", "spoilt", "copies"):
        shutil.copytree(study / "bags", study / name)
    (study / "fewer" / "001_0.h5").unlink()
    bag = read_bag(study / "bags" / "001_0.h5")
    made = replace(bag.meta.fingerprint, encoder="another")
    write_bag(study / "mixed" / "001_0.h5", replace(bag, meta=replace(bag.meta, fingerprint=made)))
    with h5py.File(study / "spoilt" / "001_0.h5", "r+") as file:
        file["features"][0] = np.nan
    copied = replace(bag, meta=replace(bag.meta, slide_id="002_0"))
    write_bag(study / "copies" / "002_0.h5", copied)
    one = (study / "train.csv").read_text().replace("002_0,002,", "002_0,001,")
    (study / "one.csv").write_text(one)
    write("absent", [[*row[:4], row[4] if row[2] == "A" else ""] for row in COHORT])


@pytest.fixture(autouse=True)
def in_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("percent.csv", "Divide percentages by 100.", "p.csv"),
        ("laa.csv", "name it with --class.", "laa.csv --class LAA"),
        ("comma.csv", "Write it with a decimal point", "p.csv"),
        ("half.csv --class LAA", "Leave --class out: the file has a column for each class.",
         "half.csv"),
        ("age.csv", "take out the columns that are not classes", "half.csv"),
        ("laa.csv --class CE", "If they are those of LAA, use --class LAA.", "laa.csv --class LAA"),
        ("unpadded.csv", "'0' looks like '000': write it the same way in both.", "p.csv"),
        ("p.csv --patients one_class.csv", "List patients of another class as well.",
         "p.csv --patients train.csv"),
        ("third.csv --calibrate --repeats 1", "Leave the option out, or give labels", "third.csv"),
        ("two.csv --class LAA", "Name it 'probability'.", "named.csv --class LAA"),
        ("more.csv", "give the table of labels with --patients too",
         "more.csv --patients train.csv"),
        ("fewer.csv", "To score some patients only, list them in a table and give it with --pat",
         "fewer.csv --patients fewer.csv"),
        ("dated.csv", "is a date that a spreadsheet made of an id such as 1-2, save the", "p.csv"),
        ("other.csv", "name them as the labels do, such as 000, 001", "p.csv"),
        ("logits.csv", "If these are logits, turn each row into probabilities by the softmax.",
         "p.csv"),
        ("prefixed.csv", "If 'prob_CE' holds its probability, rename it to 'CE'.", "p.csv"),
        ("p.details.csv", "expected a table of probabilities. They are in p.csv.", "p.csv"),
        ("moved.details.csv", "They are in the table that 'mil infer' wrote beside it, without",
         "p.csv"),
        ("suffixed.csv", "If 'CE_prob' holds its probability, rename it to 'CE'.", "p.csv"),
        ("numbered.csv", "Name the columns of probabilities after their classes.", "p.csv"),
        ("nameless.csv", "Name the column of ids 'patient_id' or 'slide_id'.", "p.csv"),
        ("long.csv", "Write one row per patient, with a column of probabilities per class.",
         "p.csv"),
        ("kinds.csv", "Scores need probabilities, not predicted classes.", "p.csv"),
        ("words.csv", "expected a probability, from 0 to 1. Write a number such as 0.61.", "p.csv"),
        ("nothing.csv", "all probabilities are 0; expected a sum above 0. To leave its patient out",
         "rest.csv --patients rest.csv"),
        ("crossed.csv", "Correct the wrong table; without the column of patients, those of slides",
         "slides.csv"),
        ("guesses.csv", "Scores need probabilities, not predicted classes.", "p.csv"),
        ("again.csv", "Delete all rows of each but one.", "p.csv"),
        ("total.csv", "per row. Delete the row. If it is a slide or patient, move it up.", "p.csv"),
        ("gap.csv", ("To leave its patient out, delete the row; 'mil score' takes the others by "
         "--patients."), "rest.csv --patients rest.csv"),
        ("mixed_up.csv", "They are ids of patients: name their column 'patient_id'.", "p.csv"),
        ("mixed_down.csv", "They are ids of slides: name their column 'slide_id'.", "slides.csv"),
        ("p.csv --prior 0.5", "shares that sum to 1 such as CE=0.5,LAA=0.5",
         "p.csv --prior CE=0.5,LAA=0.5"),
    ],
)  # fmt: skip
def test_advice_on_predictions_leads_to_scores(wrong: str, advice: str, then: str) -> None:
    follow_advice(f"score {wrong} {SCORE}", advice, f"score {then} {SCORE}")


def test_ids_that_became_dates_are_saved_again_as_text(study: Path) -> None:
    for name, ids in (("ids", "1-{}"), ("dates", "2025-01-{:02}")):
        for table, header, of in (
            ("p", "patient_id,CE,LAA", "0.{0},0.{1}"),
            ("c", "patient_id,image_id,label", "s{0},{2}"),
        ):  # fmt: skip
            rows = [f"{ids.format(n)},{of.format(n, 10 - n, ['CE', 'LAA'][n % 2])}"
                    for n in range(1, 10)]  # fmt: skip
            (study / f"{name}_{table}.csv").write_text("\n".join([header, *rows]) + "\n")
    score = "score {}_p.csv --cohort ids_c.csv --resamples 100"
    follow_advice(
        score.format("dates"), "may be the date that a spreadsheet made of '1-1': save the table",
        score.format("ids"),
    )  # fmt: skip


@pytest.mark.usefixtures("odd_tables")
@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("book.csv", "Save the sheet as CSV (UTF-8).", "good.csv"),
        ("parquet.csv", "Write it as CSV, such as with pandas' read_parquet", "good.csv"),
        ("letter.csv", "Save the table as CSV (UTF-8).", "good.csv"),
        ("json.csv", "Write it as CSV, such as with pandas' read_json", "good.csv"),
        ("pdf.csv", "a table as CSV.", "good.csv"),
        ("page.csv", "Download it again, signed in if need be.", "good.csv"),
        ("packed.csv", "Unpack it, and name what is in it.", "good.csv"),
        ("._good.csv", "Name the file without '._' before its name.", "good.csv"),
        ("zero.csv", "The file is damaged or of another kind: export it again.", "good.csv"),
        ("latin.csv", "Save it as CSV (UTF-8), which Excel offers", "good.csv"),
        ("joined.csv", "delete the header of each but the first", "good.csv"),
        ("other_mark.csv", "Put ',' between its cells, as in the header, or ';' into", "good.csv"),
        ("quoted.csv", "Delete the quotation marks around the row.", "good.csv"),
        ("typed.csv", "types of the columns; expected rows of values. Delete the row.",
         "good.csv"),
        ("counted.csv", "If rows begin with their numbers, put a name for these before the header",
         "numbers.csv"),
        ("kind.csv --column label=zz", "as --column states. State one of these columns.",
         "kind.csv --column label=kind"),
        ("doubled.csv", "expected once. Delete one of them, or give it another name.", "good.csv"),
        ("titled.csv", "If row 3 is the header, delete what is above it.", "good.csv"),
        ("below.csv", "Row 2 looks like the header: make it the first row.", "good.csv"),
        ("cells.csv", "row 5: 6 cells; expected 5, as in the header. Put quotation marks around",
         "good.csv"),
        ("open.csv", ("row 5: a quotation mark that is not closed; expected pairs "
          "of them. Close it, or delete it."),
         "good.csv"),
        ("whole.csv", "Close the quotation mark that opens in this row or before it.", "good.csv"),
        ("missing.csv", "Fill it in or delete the row; if 'NA' is meant, spell it out.",
         "good.csv"),
        ("date.csv", "Save the table again with ids as text", "good.csv"),
        ("number.csv", "Save the table again with ids as text", "good.csv"),
        ("both.csv", "Rename or delete one in the table, or name one with --column label=label.",
         "good.csv"),
        ("total.csv", "Delete the row. If it is a slide or patient, move it up.", "good.csv"),
        ("headless.csv",
         "The first row looks like values: write the names of the columns above it.", "good.csv"),
        ("curly.csv", 'Put the quotation marks " around cells, or none.', "good.csv"),
        ("single_quotes.csv", 'Put the quotation marks " around cells, or none.', "good.csv"),
        ("rows.csv", "Delete quotation marks around whole rows, and a line sep= of", "good.csv"),
        ("sep.csv", "and a line sep= of another separator.", "good.csv"),
        ("web.csv", "Open it in a spreadsheet, and save the sheet as CSV (UTF-8).", "good.csv"),
        ("array.csv", "Export the table as CSV (UTF-8).", "good.csv"),
        ("blanks.csv", "Put commas, semicolons or tabs between the cells.", "good.csv"),
        ("formula.csv", "Save the sheet as CSV with values in place of formulas.", "good.csv"),
        ("misread.csv", "Export the table again as UTF-8, or correct the cell.", "good.csv"),
        ("separated.csv", "Replace U+2028, which is in it, by the end of a line.", "good.csv"),
        (".", "a folder; expected a CSV table. Name the file in it.", "good.csv"),
        ("both.csv", "or name one with --column label=label.", "both.csv --column label=label"),
        ("pid.csv", "Rename it in the table, or name it with --column patient='patient no'.",
         "pid.csv --column patient='patient no'"),
        ("kind.csv", "Name it with --column label=NAME.", "kind.csv --column label=kind"),
        ("slides_only.csv",
         "Where each slide is of another patient, it is --column patient=image_id.",
         "slides_only.csv --column patient=image_id"),
        ("good.csv --column label=image_id", "Name the right ones with --column ROLE=NAME.",
         "good.csv --column label=age"),
        ("good.csv --covariates ages", "Rename it in the table, or name it with --covariates.",
         "good.csv --covariates age"),
    ],
)  # fmt: skip
def test_advice_on_files_and_columns_leads_to_an_audit(wrong: str, advice: str, then: str) -> None:
    follow_advice(f"audit {wrong}", advice, f"audit {then}")


@pytest.mark.usefixtures("odd_tables")
@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("single.csv", "or name another column: --column label=NAME. Folds and",
         "single.csv --column label=age"),
        ("single.csv", "correct the table and audit again.", "good.csv"),
        ("reserved.csv", "Check that the column of labels is the right one, or rename the class.",
         "good.csv"),
        ("small.csv", "write it the same way everywhere.", "good.csv"),
        ("small.csv", "Write the label the same way in every row.", "good.csv"),
        ("several.csv", "Give each patient one label", "good.csv"),
        ("several.csv", "expected one label per patient. Correct the wrong rows.", "good.csv"),
        ("units.csv --covariates age", "Write numbers without unit", "good.csv --covariates age"),
        ("many.csv --covariates age", "Join rare categories in the table.",
         "good.csv --covariates age"),
        ("telling.csv --covariates age", "leave it out of --covariates", "telling.csv"),
        ("constant.csv --covariates age", "Leave it out of --covariates", "constant.csv"),
        ("absent.csv --covariates age", "leave it out of --covariates", "absent.csv"),
        ("shared.csv", "Find out which patient it belongs to, and delete the other rows.",
         "good.csv"),
        ("twice.csv", "Keep one row per slide.", "good.csv"),
        ("good.csv good.csv", "Remove them from one table; scores on them", "good.csv zeros.csv"),
        ("good.csv good.csv", "Remove them from one table.", "good.csv zeros.csv"),
        ("unclear.csv", "If it means that the label is not known, delete these rows.", "good.csv"),
        ("rare.csv --folds 6", "Use --folds 5, or add patients of that class.", "rare.csv"),
        ("rare.csv --folds 6", "Use --folds 5, or add patients of that class.",
         "good.csv --folds 6"),
        ("few.csv", "Add patients of that class, or take the class out of the table.", "rare.csv"),
        ("good.csv --column label=age", "If they are no classes, name another column with --column",
         "good.csv"),
        ("dates.csv", "If they are no diagnoses, name another column with --column label=NAME",
         "dates.csv --column label=center_id"),
        ("train.csv --bags fewer", "Embed them with 'mil embed', and audit again.",
         "train.csv --bags bags"),
        ("train.csv --bags spoilt", "'mil bags verify' checks all; 'mil train' refuses them.",
         "train.csv --bags bags"),
        ("train.csv --bags copies", "give copies the same patient id", "one.csv --bags copies"),
        ("few.csv train.csv --bags copies",
         "They are scored as two patients; give them one patient id.",
         "few.csv one.csv --bags copies"),
        ("one.csv --bags copies", "Keep one of each; copies of the whole", "train.csv --bags bags"),
    ],
)  # fmt: skip
def test_advice_of_an_audit_ends_the_warning(wrong: str, advice: str, then: str) -> None:
    follow_finding(f"audit {wrong}", advice, f"audit {then}")


def follow_finding(wrong: str, advice: str, then: str) -> None:
    """Run a command that reports a finding with an advice, and the one after it, which does not."""
    found = mil(*shlex.split(wrong)).stdout
    assert any(advice in line for line in found.splitlines()), found
    assert ".. " not in found
    assert advice not in mil_ok(*shlex.split(then)).stdout


@pytest.mark.usefixtures("odd_tables")
@pytest.mark.parametrize(("table", "is_advised"), [("scanners", True), ("confounded", False)])
def test_training_by_centre_is_advised_only_where_it_is_possible(
    table: str, is_advised: bool
) -> None:
    found = mil_ok("audit", f"{table}.csv", "--covariates", "age").stdout
    assert "the covariate 'age' tells the centre of 100%" in found
    assert ("compare with 'mil train --by centre'" in found) == is_advised
    cohort = read_cohort(Path(f"{table}.csv"), labelled=True)
    assert can_leave_centres_out(cohort) == is_advised


@pytest.mark.usefixtures("odd_tables")
@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("twice.csv", "Delete them.", "good.csv"),
        ("unnamed.csv", "Add the ids, or delete the rows.", "good.csv"),
        ("zeros.csv", "Read ids as text", "good.csv"),
        ("centres.csv", "see 'mil audit', and train with 'mil train --by centre'", "good.csv"),
        ("train.csv --bags fewer", "Embed them with 'mil embed'.", "train.csv --bags bags"),
        ("train.csv --bags mixed", "embed all slides with the same settings.",
         "train.csv --bags bags"),
    ],
)  # fmt: skip
def test_advice_of_a_description_ends_the_warning(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    page = f"--out {tmp_path}/page.html"
    follow_finding(f"describe {wrong} {page}", advice, f"describe {then} {page}")


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        (f"score p.csv {SCORE} --calibrator none", "needs --calibrate",
         f"score p.csv {SCORE} --calibrator none --calibrate --repeats 1"),
        ("score three.csv --cohort labels.csv --resamples 100 --labels any,CE,LAA --class CE",
         "goes without --class",
         "score three.csv --cohort labels.csv --resamples 100 --labels any,CE,LAA"),
        (f"score p.csv {SCORE} --column diagnosis=label", ROLES,
         f"score p.csv {SCORE} --column label=label"),
        ("describe train.csv --label label --column label=label --out {out}/page.html",
         "give either --label or --column label=",
         "describe train.csv --label label --out {out}/page.html"),
        ("describe train.csv --out train.csv",
         "it would replace train.csv, which is read; name another",
         "describe train.csv --out {out}/page.html"),
        ("audit train.csv --column label=label --column label=x", "two columns of the label",
         "audit train.csv --column label=label"),
        ("bags import bags --bags {out}/b", "give either --from or --slide-vectors",
         "bags import bags --bags {out}/b --from clam"),
    ],
)  # fmt: skip
def test_advice_on_options_is_usage_that_works(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    follow_advice(wrong.format(out=tmp_path), advice, then.format(out=tmp_path), exit_code=2)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("describe plain.csv --out {out}/page.html", ("Rename it in the table, or name it with "
         "--column slide=slide."), ("describe plain.csv --out {out}/page.html "
         "--column patient=case --column slide=slide --column label=kind")),
        ("score p.csv --cohort alike.csv --resamples 100",
         "They look alike: write it the same way in every row.", f"score p.csv {SCORE}"),
        ("score p.csv --cohort rows_twice.csv --resamples 100", "Delete all rows of it but one.",
         f"score p.csv {SCORE}"),
        ("audit train.csv --bags nowhere", "or name another folder of bags",
         "audit train.csv --bags bags"),
        ("audit train.csv --bags .", "Name one folder of bags, such as bags.",
         "audit train.csv --bags bags"),
        ("bags verify nowhere", "or name another folder of bags", "bags verify bags"),
        ("bags pack bags --out bags", "Choose another target with --out.",
         "bags pack bags --out {out}/pack.zarr"),
        ("bags export bags --to stamp --out bags", "Name another folder, or empty this one.",
         "bags export bags --to stamp --out {out}/stamp"),
        ("compare p.csv --cohort train.csv --out {out}/page.html",
         "Name another run, or a file of predictions.",
         "compare p.csv half.csv --cohort train.csv --out {out}/page.html"),
        ("compare p.csv laa.csv --cohort train.csv --out {out}/page.html",
         "holds the probability of a single class, name it with --class.",
         "compare p.csv laa.csv --cohort train.csv --out {out}/page.html --class LAA"),
        ("combine p.csv --cohort train.csv --out {out}/page.html",
         "Name another run, or a file of predictions.",
         "combine p.csv half.csv --cohort train.csv --out {out}/page.html"),
    ],
)  # fmt: skip
def test_advice_on_columns_files_and_folders_leads_there(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    follow_advice(wrong.format(out=tmp_path), advice, then.format(out=tmp_path))


TRAIN = "train --cohort train.csv --bags bags --head mean --device cpu --run {out}/run"
QUICK = "--set n_members=1 --set fixed_steps=2"


@pytest.mark.ci
@pytest.mark.usefixtures("odd_tables")
@pytest.mark.parametrize(
    ("wrong", "advice", "then", "exit_code"),
    [
        (TRAIN.replace("train.csv", "good.csv"), "Check --bags, and that slide ids equal",
         f"{TRAIN} {QUICK} --folds 3", 1),
        (TRAIN.replace("train.csv", "failed.csv"),
         "Embed them, or leave the class out of the table; of slides that failed",
         f"{TRAIN} {QUICK} --folds 3", 1),
        (f"{TRAIN} {QUICK} --set nosuch=1", "The reference lists all settings.",
         f"{TRAIN} {QUICK} --set folds=3", 1),
        (f"{TRAIN} {QUICK} --set fold=2", "Did you mean 'folds'?",
         f"{TRAIN} {QUICK} --set folds=3", 1),
        (f"{TRAIN} --config bare.toml", "Lines such as folds = 5 stand below [train]; text is in",
         f"{TRAIN} --config quick.toml", 1),
        (f"{TRAIN} {QUICK} --set folds", "is not KEY=VALUE", f"{TRAIN} {QUICK} --set folds=3", 2),
        (f"{TRAIN} {QUICK} --set folds=3 --folds 4", "is given by --folds as well",
         f"{TRAIN} {QUICK} --folds 3", 2),
        (f"{TRAIN} --unlabelled bags --filter x", "does not go with --labels or --filter",
         f"{TRAIN} {QUICK} --folds 3", 2),
    ],
)  # fmt: skip
def test_advice_on_settings_leads_to_a_run(
    wrong: str, advice: str, then: str, exit_code: int, tmp_path: Path
) -> None:
    follow_advice(
        wrong.format(out=tmp_path), advice, then.format(out=tmp_path), exit_code=exit_code
    )


@pytest.mark.ci
def test_a_store_that_is_there_is_replaced_with_overwrite(tmp_path: Path) -> None:
    pack = f"bags pack bags --out {tmp_path / 'pack.zarr'}"
    assert mil(*pack.split()).exit_code == 0
    follow_advice(pack, "Replace it with --overwrite.", f"{pack} --overwrite")
