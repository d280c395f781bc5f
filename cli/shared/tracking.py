"""Curves, scores and settings of a finished run for MLflow."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from cli.shared.executors import print_warning
from cli.shared.settings import SETTINGS_FILE
from features.errors import MilError

__all__ = ["load_tracker"]

_EXPERIMENT = "mil"
_ARTIFACTS = (SETTINGS_FILE, "MODEL_CARD.md")  # neither names a patient


def load_tracker(text: str | None) -> Callable[[Path], None]:
    """Return what logs a finished run: nothing for None, MLflow for ``mlflow`` or ``mlflow:URI``.

    Without an address, MLflow's own settings decide, such as ``MLFLOW_TRACKING_URI``.

    Raises
    ------
    MilError
        If it is another tracker, or MLflow is not installed.
    """
    if text is None:
        return lambda _run_dir: None
    name, _, uri = text.partition(":")
    if name != "mlflow":
        raise MilError("--track", actual=repr(text), expected="mlflow or mlflow:URI")
    # It reports its use to its maker as well as the run to the server.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise MilError(
            "--track mlflow", actual="MLflow is not installed", expected="the extra 'mlflow'",
            hint="pip install 'mil-slides[mlflow]'.",
        ) from error  # fmt: skip
    if uri:
        mlflow.set_tracking_uri(uri)
    return partial(_track, mlflow)


def _track(mlflow: Any, run_dir: Path) -> None:
    """Log a finished run, or each label's run of it; a failure is said, and the run is kept.

    Losses by fold are means over heads in nats, with the epoch as step; scores are logged with the
    ends of their intervals. No patient is named.
    """
    runs = sorted((run_dir / "labels").iterdir()) if (run_dir / "labels").is_dir() else [run_dir]
    for one in runs:
        try:
            _log(mlflow, one, top=run_dir)
        except Exception as error:  # noqa: BLE001 - a server's failure of any kind ends no training
            print_warning(f"the run is complete in {run_dir}, but MLflow failed: {error}")
            return


def _log(mlflow: Any, run_dir: Path, *, top: Path) -> None:
    mlflow.set_experiment(_EXPERIMENT)
    name = top.name if run_dir == top else f"{top.name}/{run_dir.name}"
    with mlflow.start_run(run_name=name):
        mlflow.log_params(_settings(run_dir, top))
        mlflow.log_metrics(dict(_scores(run_dir)))
        for epoch, losses in _curves(run_dir):
            mlflow.log_metrics(losses, step=epoch)
        for file in _ARTIFACTS:
            for folder in dict.fromkeys((run_dir, top)):
                if (folder / file).is_file():
                    mlflow.log_artifact(str(folder / file))


def _settings(run_dir: Path, top: Path) -> dict[str, object]:
    """Return the settings of ``settings.toml``, and those that the run stores."""
    stored = json.loads((run_dir / "model.json").read_text(encoding="utf-8"))["settings"]
    given = tomllib.loads((top / SETTINGS_FILE).read_text(encoding="utf-8"))["train"]
    return {**given, **stored}


def _scores(run_dir: Path) -> Iterator[tuple[str, float]]:
    """Yield each finite score, and the ends of its interval, with a name for MLflow."""
    scores = json.loads((run_dir / "scores.json").read_text(encoding="utf-8"))
    kinds = {name: of for name, of in scores.items() if name not in {"kind", "gains", "learners"}}
    kinds |= {f"gain over {name}": of for name, of in scores["gains"].items()}
    for kind, of_kind in kinds.items():
        for metric, interval in of_kind.items():
            low, high = interval["interval"]
            for part, value in (("", interval["value"]), ("/low", low), ("/high", high)):
                if value is not None and math.isfinite(value):
                    yield _plain(f"{metric}/{kind}{part}"), float(value)


def _plain(name: str) -> str:
    """Return a name of letters, digits and signs that MLflow allows."""
    return "".join(c if c.isalnum() or c in "/_-. " else "_" for c in name)


def _curves(run_dir: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the epoch and the losses of all folds, means over their heads."""
    import pandas as pd

    table = pd.read_csv(run_dir / "history.csv", dtype={"repeat": str, "fold": str}).fillna(
        {"repeat": ""}
    )
    losses = ["train_loss", "stop_loss"]
    mean = table.groupby(["epoch", "repeat", "fold"])[losses].mean()
    for epoch, rows in mean.groupby(level="epoch"):
        values: dict[str, float] = {}
        for key, row in rows.iterrows():
            _, repeat, fold = cast("tuple[object, object, object]", key)
            where = f"repeat {repeat} fold {fold}" if repeat else str(fold)
            stated = row[losses].dropna()
            values |= {f"{name}/{where}": float(stated[name]) for name in stated.index}
        yield int(str(epoch)), values
