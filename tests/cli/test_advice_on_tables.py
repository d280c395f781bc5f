"""Advice on tables, folders of bags and options: each message is followed, and arrives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import follow_advice, mil
from tests.fakes import write_cohort

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
    write("three.csv", "patient_id,any,CE,LAA", patients, both[0], *both)
    write("plain.csv", "slide,case,kind", *zip(*rows, strict=True))
    write("scans.csv", "image_id,patient_id,label", [f"{row[0]}.svs.h5" for row in rows],
          *[[row[n] for row in rows] for n in (1, 2)])  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def in_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("percent.csv", "Divide percentages by 100.", "p.csv"),
        ("laa.csv", "name it with --class.", "laa.csv --class LAA"),
        ("comma.csv", "Write it with a decimal point", "p.csv"),
        ("half.csv --class LAA", "Leave --class out", "half.csv"),
        ("age.csv", "take out the columns that are not classes", "half.csv"),
        ("laa.csv --class CE", "If they are those of LAA, use --class LAA.", "laa.csv --class LAA"),
        ("two.csv --class LAA", "Name it 'probability'.", "named.csv --class LAA"),
        ("more.csv", "give the table of labels with --patients too",
         "more.csv --patients train.csv"),
        ("other.csv", "name them as the labels do, such as 000, 001", "p.csv"),
        ("p.csv --prior 0.5", "shares that sum to 1 such as CE=0.5,LAA=0.5",
         "p.csv --prior CE=0.5,LAA=0.5"),
    ],
)  # fmt: skip
def test_advice_on_predictions_leads_to_scores(wrong: str, advice: str, then: str) -> None:
    follow_advice(f"score {wrong} {SCORE}", advice, f"score {then} {SCORE}")


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
        ("describe train.csv --out train.csv", "name another",
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
         "--column."), ("describe plain.csv --out {out}/page.html --column patient=case "
         "--column slide=slide --column label=kind")),
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


@pytest.mark.ci
def test_a_store_that_is_there_is_replaced_with_overwrite(tmp_path: Path) -> None:
    pack = f"bags pack bags --out {tmp_path / 'pack.zarr'}"
    assert mil(*pack.split()).exit_code == 0
    follow_advice(pack, "Replace it with --overwrite.", f"{pack} --overwrite")
