from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli.shared.runs import newest_run
from features.bags.h5 import write_bag
from mil.training.checkpoints import run_lock
from tests.cli.running import mil, mil_ok
from tests.fakes import make_bag, real_data, write_cohort

COMMANDS = ("embed", "train", "infer", "score", "demo", "doctor")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags, tables and a run trained by the command itself."""
    folder = tmp_path_factory.mktemp("world")
    table = write_cohort(folder, n_patients=36, shift=0.8)
    result = mil_ok(
        "train", "--cohort", table, "--bags", folder / "bags", "--run", folder / "run",
        "--folds", 3, "--json",
    )  # fmt: skip
    (folder / "train.json").write_text(result.stdout)
    return folder


def test_help_loads_neither_torch_nor_a_slide_reader() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cli.app import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'embed' in result.output\n"
        "heavy = {'torch', 'timm', 'openslide', 'tifffile', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = mil_ok(command, "--help")
    assert f"mil {command}" in result.output
    assert "Example" in result.output


def test_wrong_usage_is_exit_code_2() -> None:
    assert mil("embed").exit_code == 2
    assert mil("embed", "x", "--min-tissue", "7").exit_code == 2
    assert mil("embed", "x", "--overlap", "300").exit_code == 2
    assert mil("embed", "x", "--slide-mpp", "0.5", "--mpp-table", "t.csv").exit_code == 2
    for command in ("embed", "inspect", "preview"):
        for mpp in ("0", "nan", "250"):
            refused = mil(command, "x", "--slide-mpp", mpp)
            assert refused.exit_code == 2
            assert "expected 0.05 to 20 µm/px" in refused.output
    assert mil("nothing").exit_code == 2


def test_training_tells_scores_beside_baselines(world: Path) -> None:
    data = json.loads((world / "train.json").read_text())
    assert data["n_patients"] == 36
    assert data["scores"]["constant"]["weighted_log_loss"]["value"] == pytest.approx(np.log(2))
    assert data["scores"]["calibrated"]["auroc"]["value"] > 0.8


def test_training_takes_unlabelled_slides(world: Path, tmp_path: Path) -> None:
    table = tmp_path / "other.csv"
    table.write_text("image_id,patient_id\n001_0,renamed\n")
    result = mil_ok(
        "train", "--cohort", world / "train.csv", "--bags", world / "bags", "--run",
        tmp_path / "run", "--folds", 2, "--head", "mean", "--unlabelled", table,
    )  # fmt: skip
    text = " ".join(result.output.split())
    assert "whitening was also fitted on 0 patients" in text
    assert "(renamed is 001)" in text


def test_a_run_is_not_overwritten_unless_asked(world: Path, tmp_path: Path) -> None:
    again = ["train", "--cohort", world / "train.csv", "--bags", world / "bags", "--folds", 3]
    result = mil(*again, "--run", world / "run")
    assert result.exit_code == 1
    assert "not empty" in result.output
    assert "--overwrite" in result.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    result = mil(*again, "--run", tmp_path / "mine", "--overwrite")
    assert result.exit_code == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_bad_table_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mil("train", "--cohort", "gone.csv")
    assert result.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_two_trainings_into_one_run_are_refused_before_bags_are_read(
    world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with run_lock(run):
        result = mil(
            "train", "--cohort", world / "train.csv", "--bags", world / "bags", "--run", run
        )
    assert result.exit_code == 1
    assert f"{run}: another training is writing it" in result.output
    assert "--run" in result.output
    assert not run.exists()


def test_inference_writes_a_submission_and_says_which_prior_it_is_for(
    world: Path, tmp_path: Path
) -> None:
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\n001_0,001\nnone_0,049194\n")
    out = tmp_path / "submission.csv"
    ask = ["infer", "--patients", table, "--run", world / "run", "--bags", world / "bags"]
    result = mil(*ask, "--out", out)
    assert result.exit_code == 3
    assert "no bag of 'none_0'" in result.output
    assert "prior of CE 0.500, LAA 0.500 (balanced)" in result.output
    assert "1 patient without a readable slide got the prior (049194)" in result.output
    assert "was trained on 1 of these patients" in result.output
    rows = pd.read_csv(out, dtype={"patient_id": str})
    assert rows["patient_id"].tolist() == ["001", "049194"]
    data = json.loads(mil(*ask, "--out", out, "--prior", "cohort", "--json").stdout)
    assert data["prior"]["LAA"] == pytest.approx(12 / 36)
    assert data["status"] == {"ok": 1, "no_bag": 1}
    assert "note: 'mil infer' with --slides or --series embeds what has no bag" in result.output
    table.write_text("image_id,patient_id\n001_0,001\n001_9,001\n")
    (warned,) = [
        line for line in mil(*ask, "--out", out).stderr.splitlines() if "no bag of" in line
    ]
    assert warned.startswith("warning: no bag of '001_9'; is it ")
    assert "'001_0'" not in warned
    assert data["n_seen_in_training"] == 1


def test_inference_counts_sets_and_marks_patients_to_look_at(world: Path, tmp_path: Path) -> None:
    rows = ["image_id,patient_id", "gone_0,gone"]
    bags = tmp_path / "bags"
    bags.mkdir()
    for number in range(6):
        write_bag(bags / f"n{number}.h5", make_bag(f"n{number}", dim=16, shift=0.8 * (number % 2)))
        rows.append(f"n{number},n{number}")
    table = tmp_path / "test.csv"
    table.write_text("\n".join(rows) + "\n")
    ask = ["infer", "--patients", table, "--run", world / "run", "--bags", bags, "--out",
           tmp_path / "out.csv"]  # fmt: skip
    data = json.loads(mil(*ask, "--coverage", "0.8", "--abstain", "--json").stdout)
    details = pd.read_csv(tmp_path / "out.details.csv", dtype=str)
    assert data["coverage"] == 0.8
    assert data["sets"] == details["set"].value_counts().sort_index().to_dict()
    assert data["n_to_look_at"] == (details["look_at"] == "true").sum() >= 1
    assert all(0 < share < 0.8 for share in data["guaranteed"].values())
    text = mil(*ask, "--coverage", "0.99").output
    assert "needs 99 training patients to be ruled out, and there are fewer of CE, LAA" in " ".join(
        text.split()
    )
    assert "look_at" not in pd.read_csv(tmp_path / "out.details.csv")


@pytest.mark.ci
def test_scores_of_a_submission_are_printed_and_given_as_json(world: Path, tmp_path: Path) -> None:
    oof = world / "run" / "out_of_fold.csv"
    result = mil_ok("score", oof, "--cohort", world / "train.csv")
    for word in ("weighted log loss", "AUROC", "0.6931", "training is not in them"):
        assert word in result.output
    data = json.loads(mil("score", oof, "--cohort", world / "train.csv", "--json").stdout)
    trained = json.loads((world / "train.json").read_text())
    assert data["files"][0]["raw"]["auroc"]["value"] == pytest.approx(
        trained["scores"]["calibrated"]["auroc"]["value"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--cohort", "gone.csv"], "gone.csv: there is no such file"),
        (["train", "--cohort", "{world}/train.csv", "--bags", "gone"], "gone: there is no such"),
        (["train", "--cohort", "{world}/train.csv", "--bags", "{world}/bags", "--head", "x",
          "--run", "{tmp}/r"], "head 'x': unknown"),
        (["train", "--cohort", "{world}/train.csv", "--bags", "{world}/bags", "--folds", "20",
          "--run", "{tmp}/r"], "12 patients of class 'LAA'; expected at least 20"),
        (["train", "--cohort", "{world}/train.csv", "--bags", "{world}/bags", "--device", "warp"],
         "device 'warp'"),
        (["infer", "--patients", "{world}/train.csv", "--run", "gone"],
         "gone: there is no such folder"),
        (["infer", "--patients", "{world}/train.csv", "--run", "{world}/run", "--prior", "odd"],
         "prior 'odd'"),
        (["infer", "--patients", "{world}/train.csv", "--run", "{world}/run", "--bags", "gone",
          "--out", "{tmp}/r"], "gone: there is no such folder"),
        (["explain", "--patients", "{world}/train.csv", "--run", "{world}/run", "--bags", "gone",
          "--out", "{tmp}/r"], "gone: there is no such folder"),
        (["embed", "gone"], "gone: there is no such file or folder"),
        (["embed", "{world}/bags", "--backbone", "resnet_50"], "no slide in it"),
        (["score", "gone.csv", "--cohort", "{world}/train.csv"], "gone.csv: there is no such"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_1(
    world: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = mil(*[part.format(world=world, tmp=tmp_path) for part in arguments])
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "r").exists()


def paint(folder: Path, n_slides: int) -> None:
    from features.slides.synthetic import make_cohort, render_slide, write_slide

    folder.mkdir()
    for number, plan in enumerate(make_cohort(n_patients=n_slides, seed=3, signal=1.0)[:n_slides]):
        write_slide(folder / f"s{number}.tif", render_slide(plan)[900:2100, 900:2100])


@pytest.mark.ci
def test_embedding_goes_on_where_it_stopped_and_partly_failed_is_exit_code_3(
    tmp_path: Path,
) -> None:
    paint(tmp_path / "slides", 2)
    (tmp_path / "slides" / "bad.tif").write_bytes(b"bad")
    ask = ["embed", tmp_path / "slides", "--bags", tmp_path / "bags", "--json"]
    first = mil(*ask)
    assert first.exit_code == 3, first.output
    data = json.loads(first.stdout)
    assert (data["n_done"], data["n_failed"], data["mpp_sources"]) == (2, 1, {"assumed": 2})
    assert "no reader can open it" in data["failed"]["bad"]
    again = json.loads(mil(*ask).stdout)
    assert (again["n_done"], again["n_skipped"], again["n_failed"]) == (0, 2, 1)
    (tmp_path / "slides" / "bad.tif").unlink()
    text = mil_ok("embed", tmp_path / "slides", "--bags", tmp_path / "bags")
    assert "0.25 µm/px was assumed" in text.output


@pytest.mark.ci
def test_slides_without_bags_are_embedded_as_the_run_was(tmp_path: Path) -> None:
    from features.bags.h5 import find_bags, read_meta

    paint(tmp_path / "slides", 14)
    bags = tmp_path / "bags"
    known = sorted((tmp_path / "slides").iterdir())[:12]
    assert (
        mil(
            "embed", *known, "--bags", bags, "--mpp", "1.0", "--min-tissue", "0.2", "--views", 1,
        ).exit_code == 0
    )  # fmt: skip
    rows = [f"{p.stem},{p.stem},{'ab'[i % 2]}" for i, p in enumerate(known)]
    (tmp_path / "train.csv").write_text("\n".join(["image_id,patient_id,label", *rows]))
    mil_ok(
        "train", "--cohort", tmp_path / "train.csv", "--bags", bags, "--run", tmp_path / "run",
        "--folds", 2,
    )  # fmt: skip
    new = sorted(p.stem for p in (tmp_path / "slides").iterdir() if p not in known)
    (tmp_path / "test.csv").write_text(
        "\n".join(["image_id,patient_id", *(f"{n},{n}" for n in new)])
    )
    result = mil_ok(
        "infer", "--patients", tmp_path / "test.csv", "--run", tmp_path / "run", "--bags", bags,
        "--slides", tmp_path / "slides", "--out", tmp_path / "out.csv", "--tta", "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["status"] == {"ok": 2}
    paths = find_bags(bags)
    made = read_meta(paths[new[0]]).fingerprint
    assert made == read_meta(paths[known[0].stem]).fingerprint
    assert made.n_views == 1


@real_data
def test_real_slides_become_bags(mil_data: Path, tmp_path: Path) -> None:
    result = mil("embed", mil_data / "slides", "--bags", tmp_path / "bags", "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 3
    assert set(data["failed"]) == {"broken", "unopenable", "unreadable"}
    made = {path.stem for path in (tmp_path / "bags").glob("*.h5")}
    assert {"cmu-1-small-region", "kidney-48-5"} <= made


@real_data
def test_published_predictions_score_as_known(mil_data: Path) -> None:
    files = sorted((mil_data / "strip" / "oof").glob("*.csv"))
    table = mil_data / "strip" / "train.csv"
    result = mil("score", *files, "--class", "LAA", "--cohort", table, "--json")
    data = json.loads(result.stdout)
    assert data["n_patients"] == 632
    assert data["baselines"]["constant"] == pytest.approx(0.6931, abs=1e-4)
    assert data["baselines"]["cohort_prior"] == pytest.approx(0.804, abs=1e-3)
    for file in data["files"][:-1]:
        assert 0.73 <= file["raw"]["weighted_log_loss"]["value"] <= 0.795
        assert 0.63 <= file["raw"]["auroc"]["value"] <= 0.68
    assert mil("score", files[0], "--cohort", table).exit_code == 1


def test_a_run_that_is_being_written_is_not_the_newest(tmp_path: Path) -> None:
    for name in ("first", ".second.123.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").touch()
    assert newest_run(tmp_path) == tmp_path / "first"


def test_a_terminal_that_lacks_characters_gets_others(tmp_path: Path) -> None:
    (tmp_path / "切片.png").write_bytes(b"no picture")
    done = subprocess.run(
        [sys.executable, "-m", "cli", "inspect", tmp_path / "切片.png"], capture_output=True,
        check=False, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"??.png: no reader can open it" in done.stderr
