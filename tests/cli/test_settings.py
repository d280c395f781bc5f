"""Settings of ``mil embed`` and ``mil train`` in a file and by ``--set``."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from features.bags.h5 import read_bag_info, write_bag
from mil.training.config import TrainConfig
from tests.cli.running import follow_advice, mil, mil_ok
from tests.fakes import make_bag, write_cohort

FEW = ("--set", "n_members=1", "--set", "fixed_steps=3", "--set", "head=gated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_cohort(folder, n_patients=24, shift=0.8)
    return folder


@pytest.fixture
def study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def content(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def table_of(run: Path) -> dict[str, object]:
    return dict(tomllib.loads((run / "settings.toml").read_text())["train"])


def test_a_run_from_the_settings_of_a_run_has_the_same_bytes_from_any_folder(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study / "study.toml").write_text(
        '[train]\nfolds = 3\nn_members = 1\nhead = "gated"\nseed = 4\n'
        "learning_rate = 0.002\nfixed_steps = 3\n"
        'column = ["label=label"]\n[embed]\nmpp = 1.0\n'
    )
    mil_ok("train", "--config", "study.toml", "--run", "a/run", "--set", "feature_noise=0.1")
    stated = table_of(study / "a" / "run")
    assert (stated["folds"], stated["learning_rate"], stated["feature_noise"]) == (3, 0.002, 0.1)
    assert stated["patience"] == 12
    assert stated["cohort"] == str(study / "train.csv")
    (tmp_path / "train.csv").write_text("image_id,patient_id,label\nof_another,study,a\n")
    monkeypatch.chdir(tmp_path)
    mil_ok("train", "--config", study / "a/run", "--run", study / "b/run")
    assert content(study / "a" / "run") == content(study / "b" / "run")


def test_a_run_of_a_study_that_was_moved_is_trained_again_once_paths_are_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    write_cohort(tmp_path / "old", n_patients=24, shift=0.8)
    monkeypatch.chdir(tmp_path / "old")
    mil_ok("train", "--folds", 2, *FEW, "--run", "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").rename("new")
    again = ["train", "--config", "new/run", "--run", "again"]
    paths = ["--cohort", "new/train.csv", "--bags", "new/bags"]
    follow_advice(again, "State where it is now: --cohort PATH --bags PATH.", [*again, *paths])
    follow_advice(
        [*again, *paths[:2], "--overwrite"], "State where it is now: --bags PATH.",
        [*again, *paths, "--overwrite"],
    )  # fmt: skip


@pytest.mark.ci
def test_every_field_of_the_training_reaches_the_run_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cohort(
        tmp_path, n_patients=160, shift=0.8
    )  # early stopping needs 25 of a class in a fold
    values: dict[str, object] = {
        "head": "mean", "n_members": 1, "n_components": 5, "early_stopping": True,
        "max_epochs": 2, "fixed_steps": 3, "patience": 2, "batch_patients": 7, "max_tiles": 9,
        "learning_rate": 0.003, "weight_decay": 0.02, "schedule": "one-cycle", "clip_norm": 2.5,
        "loss": "cross-entropy", "label_smoothing": 0.1, "instance_dropout": 0.2,
        "feature_noise": 0.3, "mixup": 0.4, "device": "cpu",
    }  # fmt: skip
    defaults = dataclasses.asdict(TrainConfig())
    assert set(values) == set(defaults)
    assert [name for name in values if values[name] == defaults[name]] == ["device"]
    words = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    mil_ok("train", "--cohort", "train.csv", "--folds", 2, "--run", "every", *words)
    stored = json.loads((tmp_path / "every" / "model.json").read_text())["settings"]
    assert {name: stored[name] for name in values} == values


def test_options_and_assignments_replace_the_file_and_say_so(study: Path) -> None:
    (study / "few.toml").write_text("[train]\nfolds = 5\nseed = 1\n")
    said = mil_ok("train", "--config", "few.toml", "--folds", 2, "--set", "seed=9",
                  "--run", "replaced", *FEW)  # fmt: skip
    assert "the command line replaces folds, seed of few.toml" in said.output
    stated = table_of(study / "replaced")
    assert (stated["folds"], stated["seed"]) == (2, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nlearnign_rate = 1", "learnign_rate: unknown; expected a setting of 'mil train'"),
        ("[train]\nlearnign_rate = 1", "Did you mean 'learning_rate'?"),
        ("[train]\nzzz = 1", "The reference lists all settings"),
        ("folds = 3", "folds: not below the name of a command"),
        ("[training]\nfolds = 3", "Did you mean [train]?"),
        ("train = 3", "train = 3; expected a table"),
        ("[train]\nfolds = 5.5", "folds: '5.5'; expected a valid integer"),
        ("[train]\nfolds = true", "folds: 'True'"),
        ("[train]\nfolds = 99", "folds: '99'; expected a value less than or equal to"),
        ("[train]\nby = 'ward'", "by: 'ward' ("),
        ("[train]\nlearning_rate = 'fast'", "learning_rate: 'fast'"),
        ("[train]\nlearning_rate = [1, 2]", "learning_rate: '1,2'"),
        ("[train]\nlearning_rate = -1", "learning_rate: -1.0; expected above 0"),
        ("[train]\nlearning_rate = nan", "learning_rate: nan; expected above 0, and finite"),
        ("[train]\nweight_decay = inf", "weight_decay: inf; expected 0 or more, and finite"),
        ("[train]\nnested = 'perhaps'", "nested: 'perhaps'"),
        ("[train]\nhead.kind = 'x'", "head: a table; expected a value"),
        ("[train]\ncolumn = [['x']]", "column: a list of lists"),
        ("[train]\nfolds = 3\nfolds = 4", "expected settings in TOML"),
        ("[train]\nhead = gated", "text is in \"quotes\""),
        ("[train]\nconfig = 'other.toml'", "config: unknown"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line(study: Path, text: str, message: str) -> None:
    (study / "wrong.toml").write_text(text)
    result = mil("train", "--config", "wrong.toml", "--run", "never")
    assert result.exit_code == 1, result.output
    assert message in " ".join(result.output.split())
    assert not (study / "never").exists()


@pytest.mark.parametrize("name", ["gone.toml", "noise.toml"])
def test_a_file_that_is_none_is_refused(study: Path, name: str) -> None:
    (study / "noise.toml").write_bytes(b"\xff\xfe\x00[train")
    result = mil("train", "--config", name)
    assert result.exit_code == 1
    assert name in result.output
    assert "expected settings in TOML" in result.output


@pytest.mark.usefixtures("study")
def test_a_folder_without_settings_is_called_that() -> None:
    result = mil("train", "--config", "bags")
    assert result.exit_code == 1
    assert "bags: a folder without settings.toml; expected a run that" in result.output


def test_a_run_states_no_settings_of_bags_and_a_bag_none_of_runs(study: Path) -> None:
    (study / "run").mkdir()
    (study / "run" / "settings.toml").write_text("[train]\nfolds = 3\n")
    bag = make_bag("a")
    bag = dataclasses.replace(
        bag, meta=dataclasses.replace(bag.meta, settings="[embed]\nmpp = 0.5\n")
    )
    write_bag(study / "a.h5", bag)
    for command, source in (("embed", "run"), ("train", "a.h5")):
        result = mil(command, "--config", source)
        assert result.exit_code == 1
        told = " ".join(result.output.split())
        assert f"{source}: no settings of 'mil {command}'; expected a" in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--set", "folds"], "is not KEY=VALUE"),
        (["--set", "=3"], "is not KEY=VALUE"),
        (["--set", "folds=3", "--set", "folds=4"], "two values of folds"),
        (["--set", "folds=3", "--folds", "4"], "folds is given by --folds as well"),
    ],
)
def test_assignments_that_contradict_each_other_are_a_usage_error(
    study: Path, given: list[str], message: str
) -> None:
    result = mil("train", *given)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_an_unknown_assignment_names_the_nearest_setting(study: Path) -> None:
    result = mil("train", "--set", "n-member=3")
    assert result.exit_code == 1
    assert "--set n_member: unknown" in result.output
    assert "Did you mean 'n_members'?" in result.output


@pytest.mark.ci
def test_bags_from_the_settings_of_a_bag_have_the_same_bytes(tmp_path: Path) -> None:
    from features.slides.synthetic import make_cohort, render_slide, write_slide

    (plan,) = make_cohort(n_patients=2, seed=3, signal=1.0)[:1]
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "a.tif", render_slide(plan))
    (tmp_path / "study.toml").write_text(
        '[embed]\nmpp = 1.0\nmax_tiles = 4\nrules = ["dark", "ink"]\nfloor_distance = 8.0\n'
    )
    mil_ok("embed", tmp_path / "slides", "--bags", tmp_path / "a",
           "--config", tmp_path / "study.toml", "--set", "execution=eager")  # fmt: skip
    bag = tmp_path / "a" / "a.h5"
    text = read_bag_info(bag).meta.settings
    stated = tomllib.loads(text)["embed"]
    assert stated["floor_distance"] == 8.0
    assert stated["rules"] == "dark,ink"
    mil_ok("embed", tmp_path / "slides", "--bags", tmp_path / "b", "--config", bag)
    assert bag.read_bytes() == (tmp_path / "b" / "a.h5").read_bytes()
    result = mil("embed", tmp_path / "slides", "--set", "floor_distence=8")
    assert "Did you mean 'floor_distance'?" in result.output


def test_the_schema_in_the_docs_is_that_of_the_commands() -> None:
    import importlib.util

    from jsonschema import Draft202012Validator

    path = Path(__file__).parents[2] / "docs" / "settings_schema.py"
    spec = importlib.util.spec_from_file_location("settings_schema", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    schema = json.loads(module.SCHEMA_PATH.read_text(encoding="utf-8"))
    assert schema == module.settings_schema(), "run python docs/settings_schema.py"
    fields = {own.name for own in dataclasses.fields(TrainConfig)}
    assert fields <= set(schema["properties"]["train"]["properties"])
    check = Draft202012Validator(schema)
    assert check.is_valid({"train": {"folds": 3, "learning_rate": 0.1}, "embed": {"rules": "all"}})
    assert not check.is_valid({"train": {"fold": 3}})
    assert not check.is_valid({"train": {"folds": 1}})
