"""Advice of the commands on runs: each message is followed, and leads to what it promises."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mil.training.config import TrainConfig
from tests.cli.running import expect_advice, follow_advice, mil, mil_ok
from tests.studies import train_on, write_encoded_cohort

pytestmark = pytest.mark.ci
QUICK = TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=2)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, quick_runs: pytest.MonkeyPatch) -> Path:
    """Runs a and b on the same folds, "other" on others; new patients in odd tables."""
    folder = tmp_path_factory.mktemp("study")
    encoders = {"a": 1.2, "b": 0.8}
    table = write_encoded_cohort(folder, "train", n_patients=24, encoders=encoders)
    new = write_encoded_cohort(folder, "new", n_patients=20, encoders=encoders, prefix="x")
    for run, encoder, seed in (("a", "a", 0), ("b", "b", 0), ("other", "b", 9)):
        train_on(folder, table, encoder, run=run, config=QUICK, seed=seed)
    rows = pd.read_csv(new, dtype=str)
    rows.rename(columns={"patient_id": "case id"}).to_csv(folder / "renamed.csv", index=False)
    rows.assign(label=rows["label"].str.lower()).to_csv(folder / "small.csv", index=False)
    for name in "ab":
        judged = pd.read_csv(folder / "runs" / name / "judged.csv", dtype=str)
        columns = {"calibrated_CE": "CE", "calibrated_LAA": "LAA"}
        judged[["patient_id", *columns]].rename(columns=columns).to_csv(
            folder / f"{name}.csv", index=False
        )
    return folder


def test_advice_of_compare_and_combine_works(study: Path, tmp_path: Path) -> None:
    runs, page = study / "runs", ["--out", tmp_path / "page.html"]
    files = [study / "a.csv", study / "b.csv"]
    with_labels = [*files, "--cohort", study / "train.csv", *page]
    follow_advice(
        ["compare", *files, *page],
        "Give the table of labels with --cohort",
        ["compare", *with_labels],
    )
    follow_advice(
        ["combine", *with_labels, "--run", tmp_path / "no"],
        "leave --run out for a report",
        ["combine", *with_labels],
        exit_code=2,
    )
    both = ["combine", runs / "a", "--run", tmp_path / "both"]
    advice = f"Train it on them: mil train --folds-of {runs / 'a'}"
    failed = mil(*both, runs / "other")
    assert failed.exit_code == 1
    assert advice in failed.output
    mil_ok("train", "--folds-of", runs / "a", "--cohort", study / "train.csv", "--bags",
           study / "bags" / "b", "--run", tmp_path / "again", "--head", "mean")  # fmt: skip
    mil_ok(*both, tmp_path / "again")
    infer = ["infer", "--run", tmp_path / "both", "--patients", study / "new.csv", "--out",
             tmp_path / "out.csv", "--bags", study / "bags" / "a"]  # fmt: skip
    follow_advice(
        infer, "Give their folder with --bags too", [*infer, "--bags", study / "bags" / "b"]
    )


def test_advice_of_evaluate_and_recalibrate_works(study: Path, tmp_path: Path) -> None:
    on = [study / "runs" / "a", "--bags", study / "bags" / "a", "--cohort"]
    evaluate, page = ["evaluate", *on], ["--out", tmp_path / "page.html"]
    recalibrate, new = ["recalibrate", *on], ["--run", tmp_path / "new"]
    named = [study / "renamed.csv", "--column", "patient=case id"]
    advice = "Rename it in the table, or name it with --column patient='case id'."
    follow_advice([*evaluate, *named[:1], *page], advice, [*evaluate, *named, *page])
    follow_advice([*recalibrate, *named[:1], *new], advice, [*recalibrate, *named, *new])
    follow_advice(
        [*evaluate, study / "small.csv", *page],
        "Give the labels the run's names",
        [*evaluate, study / "new.csv", *page],
    )
    groups = [*evaluate, study / "new.csv", *page, "--by"]
    follow_advice(
        [*groups, "scaner"],
        "Did you mean 'scanner'? Rename it in the table, or name it with --by scanner.",
        [*groups, "scanner"],
    )
    follow_advice(
        [*recalibrate, study / "new.csv", *new],
        "with --overwrite",
        [*recalibrate, study / "new.csv", *new, "--overwrite"],
    )


def test_advice_on_settings_and_covariates_works(study: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(study / "train.csv", dtype=str)
    rows["age"] = [f"{50 + 7 * n % 31}" for n in range(len(rows))]
    rows.to_csv(tmp_path / "ages.csv", index=False)
    rows.loc[3, "age"] = "61 years"
    rows.to_csv(tmp_path / "units.csv", index=False)
    (tmp_path / "a.toml").write_text("[training]\nfolds = 2\n")
    (tmp_path / "b.toml").write_text("folds = 2\n")
    (tmp_path / "c.toml").write_text("[train]\nfolds = 2\n")
    quick = ["--folds", 2, "--set", "n_members=1", "--set", "fixed_steps=3", "--overwrite",
             "--bags", study / "bags" / "a", "--run", tmp_path / "run", "--cohort"]  # fmt: skip
    train = ["train", *quick[2:], study / "train.csv", "--set", "head=mean", "--config"]
    for name, advice in (("a", "Did you mean [train]?"), ("b", "Put [train] above.")):
        failed = mil(*train, tmp_path / f"{name}.toml")
        assert failed.exit_code == 1
        assert advice in failed.output
    mil_ok(*train, tmp_path / "c.toml")
    train = ["train", *quick, tmp_path / "ages.csv", "--covariates"]
    follow_advice([*train, "agee"], "or name it with --covariates", [*train, "age"])
    train[-2] = tmp_path / "units.csv"
    failed = mil(*train, "age")
    assert failed.exit_code == 1
    assert "Write numbers without unit" in failed.output  # as ages.csv has them


def test_where_the_output_cannot_be_is_said_before_the_work(study: Path, tmp_path: Path) -> None:
    infer = ["infer", "--run", study / "runs" / "a", "--bags", study / "bags" / "a", "--patients",
             study / "new.csv", "--out"]  # fmt: skip
    follow_advice(
        [*infer, tmp_path],
        "is a folder; name a file in it",
        [*infer, tmp_path / "p.csv"],
        exit_code=2,
    )
    failed = mil(*infer, tmp_path / "new" / "p.csv")
    assert failed.exit_code == 2
    output = " ".join(failed.output.replace("│", " ").split())
    assert "there is no folder" in output
    assert "make it first" in output
    (tmp_path / "new").mkdir()
    mil_ok(*infer, tmp_path / "new" / "p.csv")


def test_a_folder_in_the_way_of_a_table_beside_a_page_is_said(study: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "f.csv", tmp_path / "f.html"
    folder.mkdir()
    evaluate = ["evaluate", study / "runs" / "a", "--bags", study / "bags" / "a", "--cohort",
                study / "new.csv", "--out"]  # fmt: skip
    refused = mil(*evaluate, out)
    assert refused.exit_code == 2
    words = "".join(refused.output.replace("│", " ").split())
    advice = f"a table beside f.html would replace {folder}, which is a folder; name another"
    assert "".join(advice.split()) in words
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "names", "suffix"),
    [
        ("infer --run {a} --bags {bags} --patients {new}", "p.xlsx p.json p.tsv p.csv.gz", ".csv"),
        ("evaluate {a} --bags {bags} --cohort {new}", "p.pdf p.csv", ".html"),
        ("describe {new}", "p.docx p.json", ".html"),
        ("compare {a} {b}", "p.json p.csv", ".html"),
        ("combine {one} {two} --cohort {train}", "p.csv", ".html"),
        ("filter fit {new}", "p.h5 p.pt", ".safetensors"),
    ],
)
def test_an_output_of_a_kind_that_is_not_written_is_refused_before_the_work(
    study: Path, tmp_path: Path, command: str, names: str, suffix: str
) -> None:
    typed = command.format(
        a=study / "runs" / "a", b=study / "runs" / "b", bags=study / "bags" / "a",
        new=study / "new.csv", train=study / "train.csv", one=study / "a.csv", two=study / "b.csv",
    )  # fmt: skip
    for name in names.split():
        refused = expect_advice(
            f"{typed} --out {tmp_path / name}", "the only kind; let its name end so", exit_code=2
        )
        assert f"{name} would be written as {suffix}" in refused
    assert not list(tmp_path.iterdir())
    also = {".html": ".htm", ".csv": ".txt"}.get(suffix)
    if "filter" not in command:  # whose examples are none
        for name in ("p", f"p{suffix}", f"q{suffix.upper()}", f"r{also}"):
            mil_ok(*typed.split(), "--out", tmp_path / name)
            assert (tmp_path / name).is_file()


def test_a_point_in_the_name_of_an_output_belongs_to_the_name(study: Path, tmp_path: Path) -> None:
    run, bags = study / "runs" / "a", study / "bags" / "a"
    names = ["fold0.5", "fold0.7", "p.2026-11-30", "p.v2"]
    for name in names:
        mil_ok("infer", "--run", run, "--bags", bags, "--patients", study / "new.csv",
               "--out", tmp_path / name)  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {
        *names, *(f"{name}.details.csv" for name in names)
    }  # fmt: skip
    mil_ok("evaluate", run, "--bags", bags, "--cohort", study / "new.csv",
           "--out", tmp_path / "e.v2")  # fmt: skip
    assert (tmp_path / "e.v2.csv").is_file()


def test_no_command_replaces_what_it_reads(study: Path, tmp_path: Path) -> None:
    """Also of what is written beside the page, under another suffix."""
    table, page, details = (tmp_path / f"t.{kind}" for kind in ("csv", "html", "details.csv"))
    for copy in (table, details):
        copy.write_bytes((study / "new.csv").read_bytes())
    of_bags = ["--bags", study / "bags" / "a"]
    files = [table, study / "b.csv", "--cohort", study / "train.csv"]
    runs = [study / "runs" / name for name in "ab"]
    for command in (
        ["evaluate", runs[0], *of_bags, "--cohort", table, "--out", page],
        ["evaluate", runs[0], *of_bags, "--cohort", details, "--out", page],
        ["infer", "--run", runs[0], *of_bags, "--patients", table, "--out", table],
        ["infer", "--run", runs[0], *of_bags, "--patients", details, "--out", table],
        ["describe", table, "--out", tmp_path / "." / "t.csv"],
        ["compare", *files, "--out", table],
        ["combine", *files, "--out", table],
        ["filter", "fit", table, "--out", table],
    ):
        refused = mil(*command)
        assert refused.exit_code == 2, command
        output = " ".join(refused.output.replace("│", " ").split())
        by = "it" if command[-1] in command[:-1] else f"a table beside {command[-1].name}"
        assert f"{by} would replace" in output
    assert table.read_bytes() == details.read_bytes() == (study / "new.csv").read_bytes()
    cohort = ["--cohort", study / "train.csv"]
    for command in (
        ["combine", *runs, "--run", runs[1], "--overwrite"],
        ["recalibrate", runs[0], *of_bags, *cohort, "--run", runs[0], "--overwrite"],
    ):
        refused = mil(*command)
        assert refused.exit_code == 1, command
        assert "a folder of its own" in refused.output
    assert all((run / "model.json").is_file() for run in runs)
