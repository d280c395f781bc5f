"""Labels of a run that are done, so that a training that was killed does not do them again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from features.utils.files import make_folder
from mil.inference.bundle import write_json
from mil.training_run import TrainingSummary

__all__ = ["LabelCheckpoints"]


class LabelCheckpoints:
    """Notes beside the runs of labels: what each came to, and a hash of all that decided it.

    A label that was trained otherwise has another hash, so its note is not found.

    Parameters
    ----------
    folder
        Where the notes lie; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, label: str, run_dir: Path, *, decided_by: str) -> TrainingSummary | None:
        """What the label came to; None where it is not done, or was done otherwise.

        Parameters
        ----------
        label
            Its name.
        run_dir
            Where its run lies if it is done.
        decided_by
            Hash of all that decides its run.
        """
        try:
            said = json.loads(self._path(label).read_text(encoding="utf-8"))
            found = TrainingSummary.from_dict(said["summary"], path=run_dir)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = said["decided_by"] == decided_by and (run_dir / "model.json").is_file()
        return found if whole else None

    def note(self, label: str, summary: TrainingSummary, *, decided_by: str) -> None:
        """Note that a label is done.

        Raises
        ------
        OutputError
            If the note cannot be written.
        """
        make_folder(self._folder)
        write_json(self._path(label), {"decided_by": decided_by, "summary": summary.as_dict()})

    def discard(self) -> None:
        """Remove the notes: the run is whole."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, label: str) -> Path:
        return self._folder / f"{label}.json"
