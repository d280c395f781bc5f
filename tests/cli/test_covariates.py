"""Clinical covariates from the table of ``mil train`` to that of ``mil infer``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil.base_learners import learner_names
from mil.data.bags import load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from mil.data.covariates import with_covariates
from mil.data.splits import make_folds
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate
from mil.training_run import train_run
from tests.cli.running import mil, mil_ok
from tests.fakes import write_cohort

pytestmark = pytest.mark.ci  # a run is trained first

QUICK = ("--set", "n_members=1", "--set", "fixed_steps=3", "--folds", 3)
NAMES = ("age", "sex")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clinical")
    write_cohort(folder, n_patients=30, shift=0.1)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    numbers = table["patient_id"].astype(int)
    # Age tells the classes apart with errors; sex is noise, and missing for two patients.
    table["age"] = 60 + 6 * (numbers % 3 == 0) + numbers * 7 % 11
    table["sex"] = ["mf"[n % 2] if n % 13 else "" for n in numbers]
    table["center_id"] = ["ab"[n % 2] for n in numbers]
    table.to_csv(folder / "train.csv", index=False)
    mil_ok("train", "--cohort", folder / "train.csv", "--bags", folder / "bags", "--run",
           folder / "run", "--covariates", "age,sex", *QUICK)  # fmt: skip
    return folder


def infer(world: Path, table: pd.DataFrame, *more: object) -> tuple[int, str, Path]:
    table.to_csv(world / "new.csv", index=False)
    result = mil("infer", "--patients", world / "new.csv", "--bags", world / "bags", "--run",
                 world / "run", "--out", world / "out.csv", *more)  # fmt: skip
    return result.exit_code, " ".join(result.output.split()), world / "out.csv"


def new(world: Path) -> pd.DataFrame:
    table = pd.read_csv(world / "train.csv", dtype=str, keep_default_na=False)
    return table.drop(columns="label").head(6)


def test_the_report_says_what_the_slides_add(world: Path) -> None:
    scores = json.loads((world / "run" / "scores.json").read_text())
    alone = scores["covariates alone"]["auroc"]["value"]
    assert alone > 0.75
    assert set(scores["gains"]) >= {"covariates alone", "slides alone"}
    assert scores["learners"]["covariates"]["weight"] > 0.3
    page = (world / "run" / "report.html").read_text()
    assert "What the slides add to the covariates" in page
    assert "slides alone, without the covariates" in page
    assert "age, sex" in (world / "run" / "MODEL_CARD.md").read_text()


def test_new_patients_need_the_columns_and_use_them(world: Path) -> None:
    table = new(world)
    code, said, out = infer(world, table.assign(age="50"))
    assert code == 0, said
    young = pd.read_csv(out)["LAA"]
    code, said, out = infer(world, table.assign(age="95"))
    assert (pd.read_csv(out)["LAA"] > young).all()
    assert "sex is missing for 1 patient" in said


@pytest.mark.parametrize(
    ("column", "cell", "code", "message"),
    [
        ("sex", "other", 0, "categories that no training patient had count as missing: sex: other"),
        ("age", "old", 1, "age is 'old'"),
        ("age", "", 0, "note: age is missing for 5 patients"),
        ("age", None, 1, "no column 'age'"),
    ],
)
def test_cells_that_the_run_does_not_know_are_refused_or_said(
    world: Path, column: str, cell: str | None, code: int, message: str
) -> None:
    table = new(world)
    table = table.drop(columns=column) if cell is None else table.assign(**{column: cell})
    found, said, _ = infer(world, table)
    assert found == code, said
    assert message in said
    assert "Traceback" not in said


def test_a_stored_run_without_its_covariates_is_refused(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    described = json.loads((tmp_path / "run" / "model.json").read_text())
    del described["covariates"]
    (tmp_path / "run" / "model.json").write_text(json.dumps(described))
    result = mil("report", tmp_path / "run")
    assert result.exit_code == 1
    assert "model.json was changed afterwards" in result.output


def test_covariates_need_the_stack(world: Path, tmp_path: Path) -> None:
    result = mil("train", "--cohort", world / "train.csv", "--bags", world / "bags", "--run",
                 tmp_path / "run", "--covariates", "age", "--head", "gated")  # fmt: skip
    assert result.exit_code == 1
    assert "expected the head 'stack'" in result.output


def test_nothing_of_a_test_patient_is_in_the_model_of_its_fold(world: Path) -> None:
    def read(age: str) -> Cohort:
        table = pd.read_csv(world / "train.csv", dtype=str, keep_default_na=False)
        table.loc[table["patient_id"] == "003", ["age", "sex"]] = [age, "other"]
        table.to_csv(world / "changed.csv", index=False)
        return with_covariates(read_cohort(world / "changed.csv", labelled=True), NAMES)

    first, second = read("60"), read("999")
    folds = make_folds(first, by="patient", n_folds=3, n_repeats=1, seed=0)
    config = TrainConfig(n_members=1, fixed_steps=1)
    models = []
    for cohort in (first, second):
        bags = load_patient_bags(cohort, bags_of(world))
        oof = cross_validate(bags, cohort, folds, config=config, seed=0)
        assert oof.logits.shape[2] == 1 + len(learner_names("stack"))
        models.append({key: model.as_dict() for key, model in oof.covariates.items()})
    own = next(fold.index for fold in folds if "003" in fold.test_ids)
    for (repeat, index), model in models[0].items():
        assert (model == models[1][repeat, index]) is (index == own)


def bags_of(world: Path) -> dict[str, Path]:
    return {path.stem: path for path in (world / "bags").glob("*.h5")}


@pytest.mark.parametrize(
    "options",
    [["--nested"], ["--by", "centre"], ["--repeats", "2"], ["--labels", "LAA_yes"]],
    ids=lambda options: options[0],
)
def test_covariates_go_with_every_kind_of_training(
    world: Path, tmp_path: Path, options: list[str]
) -> None:
    table = pd.read_csv(world / "train.csv", dtype=str, keep_default_na=False)
    table["LAA_yes"] = (table["label"] == "LAA").astype(int)
    table.to_csv(tmp_path / "train.csv", index=False)
    quick = QUICK[:4] if "centre" in options else QUICK
    ask = ["train", "--cohort", tmp_path / "train.csv", "--bags", world / "bags",
           "--covariates", "age,sex", *options, *quick]  # fmt: skip
    mil_ok(*ask, "--run", tmp_path / "a" / "run")
    new(world).to_csv(tmp_path / "new.csv", index=False)
    mil_ok("infer", "--patients", tmp_path / "new.csv", "--bags", world / "bags", "--run",
           tmp_path / "a" / "run", "--out", tmp_path / "out.csv")  # fmt: skip
    proba = pd.read_csv(tmp_path / "out.csv").iloc[:, 1:].to_numpy()
    assert np.isfinite(proba).all()
    share = "logit_share_covariates" + ("_LAA_yes" if "--labels" in options else "")
    assert pd.read_csv(tmp_path / "out.details.csv")[share].abs().between(0, 1).all()


def test_a_training_with_covariates_that_is_interrupted_goes_on_to_the_same_bytes(
    world: Path, tmp_path: Path
) -> None:
    cohort = with_covariates(read_cohort(world / "train.csv", labelled=True), NAMES)
    options = {"config": TrainConfig(n_members=1, fixed_steps=1), "n_folds": 3, "report": False}

    def interrupt(done: int, total: int) -> None:
        if done == total - 2:
            raise KeyboardInterrupt

    bags = load_patient_bags(cohort, bags_of(world))
    with pytest.raises(KeyboardInterrupt):
        train_run(cohort, bags, tmp_path / "a" / "run", on_head=interrupt, **options)
    heads: list[int] = []
    for name in "ab":
        train_run(cohort, bags, tmp_path / name / "run",
                  on_head=lambda done, total: heads.append(done), **options)  # fmt: skip
    assert files_of(tmp_path / "a" / "run") == files_of(tmp_path / "b" / "run")


def files_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def test_pages_of_tiles_do_without_clinical_data_and_say_so(world: Path, tmp_path: Path) -> None:
    result = mil_ok("explain", "--slide", "000_0", "--run", world / "run", "--bags", world / "bags",
                    "--out", tmp_path / "pages")  # fmt: skip
    assert "age is missing for 1 patient" in " ".join(result.output.split())


def test_a_column_that_is_the_same_in_a_fold_is_named(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "train.csv", dtype=str)
    odd = table["patient_id"].isin(["000", "001", "002", "003"])
    table["smoker"] = np.where(table["patient_id"].isin(["000", "001"]), "yes", "no")
    table.loc[odd, "center_id"] = "c"
    table.to_csv(tmp_path / "train.csv", index=False)
    result = mil_ok("train", "--cohort", tmp_path / "train.csv", "--bags", world / "bags", "--run",
                    tmp_path / "run", "--covariates", "smoker", "--by", "centre",
                    *QUICK[:4])  # fmt: skip
    said = " ".join(result.output.split())
    assert "covariate 'smoker' is the same for all training patients of fold" in said
