"""Runs logged with MLflow, here with a fake of the few functions that are called."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cli.running import mil, mil_ok
from tests.fakes import write_cohort

QUICK = ("--head", "gated", "--set", "n_members=1", "--set", "fixed_steps=3", "--folds", 2)


class FakeMlflow(ModuleType):
    """Record of what is logged; fails on request."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__("mlflow")
        self.fails = fails
        self.uri = ""
        self.names: list[str] = []
        self.params: dict[str, Any] = {}
        self.metrics: dict[tuple[str, int | None], float] = {}
        self.artifacts: list[str] = []

    def set_tracking_uri(self, uri: str) -> None:
        self.uri = uri

    def set_experiment(self, name: str) -> None:
        if self.fails:
            raise ConnectionError("no such server")

    @contextmanager
    def start_run(self, *, run_name: str) -> Iterator[None]:
        self.names.append(run_name)
        yield

    def log_params(self, params: dict[str, Any]) -> None:
        self.params |= params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics |= {(name, step): value for name, value in metrics.items()}

    def log_artifact(self, path: str) -> None:
        self.artifacts.append(Path(path).name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    write_cohort(folder, n_patients=24, shift=0.8)
    return folder


def train(world: Path, run: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--cohort", world / "train.csv", "--bags", world / "bags", "--run", run,
            *QUICK, *more)  # fmt: skip


@pytest.mark.ci
def test_curves_scores_and_settings_are_logged_without_patients(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    mil_ok(*train(world, tmp_path / "run", "--track", "mlflow:http://there:5000"))
    assert (fake.uri, fake.names) == ("http://there:5000", ["run"])
    assert fake.params["n_members"] == 1
    assert fake.params["n_folds"] == 2
    named = {name for name, _ in fake.metrics}
    assert {"weighted_log_loss/calibrated", "auroc/calibrated/low"} <= named
    assert {"train_loss/repeat 0 fold 1", "train_loss/deployed"} <= named
    assert sorted(fake.artifacts) == ["MODEL_CARD.md", "settings.toml"]


@pytest.mark.ci
def test_a_server_that_fails_loses_no_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", FakeMlflow(fails=True))
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    said = mil_ok(*train(world, tmp_path / "run", "--track", "mlflow")).output
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "MLflow failed: no such server" in said
    assert (tmp_path / "run" / "model.json").is_file()


@pytest.mark.parametrize(
    ("tracker", "message"),
    [("wandb", "expected mlflow"), ("mlflow", "pip install 'mil-slides[mlflow]'")],
)
def test_a_tracker_that_is_not_there_is_refused_before_the_training(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    result = mil(*train(world, tmp_path / "run", "--track", tracker))
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
def test_mlflow_itself_stores_what_is_logged(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)  # where MLflow puts the files of a run beside a database
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mil_ok(*train(world, tmp_path / "run", "--track", f"mlflow:{uri}"))
    (run,) = mlflow.search_runs(experiment_names=["mil"], output_format="list")
    assert 0 < run.data.metrics["weighted_log_loss/calibrated"] < 2
    assert run.data.params["head"] == "gated"
    files = mlflow.artifacts.list_artifacts(run_id=run.info.run_id)
    assert {file.path for file in files} == {"settings.toml", "MODEL_CARD.md"}


@pytest.mark.ci
def test_the_model_card_has_the_header_of_model_hubs(world: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    mil_ok(*train(world, tmp_path / "run"))
    card = ModelCard.load(tmp_path / "run" / "MODEL_CARD.md")
    assert card.data.library_name == "mil-slides"
    assert "multiple-instance-learning" in card.data.tags
    assert card.text.strip().startswith("# Model card: run")
