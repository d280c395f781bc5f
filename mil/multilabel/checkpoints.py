"""Checkpoints of a training on several labels: the labels that are finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from features.errors import CONTENT_ERRORS
from features.utils.files import make_folder
from mil.inference.bundle import write_json
from mil.training_run import TrainingSummary

__all__ = ["LabelCheckpoints"]


class LabelCheckpoints:
    """Summaries of finished labels, each with a hash of everything that determines its run.

    A label with other data or settings has another hash and is trained again. The folder is created
    with the first checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, label: str, run_dir: Path, *, config_hash: str) -> TrainingSummary | None:
        """Return the summary of a label's run; None if it is unfinished or has another hash."""
        try:
            stored = json.loads(self._path(label).read_text(encoding="utf-8"))
            summary = TrainingSummary.from_dict(stored["summary"], path=run_dir)
        except CONTENT_ERRORS:
            return None
        valid = stored["decided_by"] == config_hash and (run_dir / "model.json").is_file()
        return summary if valid else None

    def write(self, label: str, summary: TrainingSummary, *, config_hash: str) -> None:
        """Write the checkpoint of a finished label.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        make_folder(self._folder)
        write_json(self._path(label), {"decided_by": config_hash, "summary": summary.as_dict()})

    def discard(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, label: str) -> Path:
        return self._folder / f"{label}.json"
