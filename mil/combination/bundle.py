"""Bundle of several runs as one model: the runs themselves, their weights, and prediction sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.bags.bag import check_format
from features.utils.tables import read_table, write_table
from features.utils.text import normalize_name
from mil.arrays import Floats
from mil.calibration import StackedPlattScaling
from mil.calibration.priors import parse_prior
from mil.errors import RunError
from mil.evaluation.abstention import AbstentionPoint
from mil.inference.bundle import ModelBundle, load_bundle, write_json
from mil.inference.conformal import CrossConformal
from mil.part_digests import DAMAGE, check_digests, damaged_run, hash_file, with_digests

__all__ = ["Combination", "load_combination", "save_combination"]

FORMAT, FORMAT_VERSION = "mil-combination", 2

_MAIN, _MEMBERS = "combination.json", "members"


@dataclass(frozen=True, kw_only=True, eq=False)
class Combination:
    """Several runs on the same patients as one model.

    Attributes
    ----------
    path
        Folder of the combination, with the runs in ``members/``.
    classes
        Classes in the order of the columns.
    members
        The runs, by name.
    calibrator
        Weights of the runs' log probabilities, and biases.
    conformal
        Nonconformity scores of the training patients, shape (patients,), out-of-fold.
    sets_by_fold
        Whether sets compare the mean log probability of the runs' learners of each fold; else, with
        runs of earlier versions, that of the whole combination.
    seed
        Seed of the bootstrap behind the scores.
    cohort_counts
        Training patients of each class, shape (classes,).
    out_of_fold
        Cross-fitted probabilities of each training patient at the balanced prior, shape (classes,).
    abstention
        Confidence below which patients need review; None where none halves the errors.
    """

    path: Path
    classes: tuple[str, ...]
    members: Mapping[str, ModelBundle]
    calibrator: StackedPlattScaling
    conformal: CrossConformal
    cohort_counts: tuple[int, ...]
    out_of_fold: Mapping[str, Floats]
    abstention: AbstentionPoint | None
    sets_by_fold: bool
    seed: int

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each run by name, 0 to 1; they sum to 1 unless no run carries a signal."""
        return dict(zip(self.members, self.calibrator.weights_.tolist(), strict=True))

    def parse_prior(self, text: str) -> Floats:
        """Return the class shares, shape (classes,), that a text names, as for a single run.

        Raises
        ------
        MilError
            If the text is no prior.
        """
        counts = dict(zip(self.classes, self.cohort_counts, strict=True))
        return parse_prior(text, self.classes, counts)

    def guaranteed_coverage(self, coverage: float) -> dict[str, float] | None:
        """Return the guaranteed coverage of each class, see :mod:`mil.inference.conformal`.

        None where nothing is guaranteed: the sets are not those of the folds, or a run guarantees
        nothing, see :meth:`mil.inference.bundle.ModelBundle.guaranteed_coverage`.
        """
        if not self._patients_are_exchangeable:
            return None
        bounds = self.conformal.guaranteed_coverage(coverage)
        return dict(zip(self.classes, bounds.tolist(), strict=True))

    def coverage_of_most_cohorts(self, coverage: float) -> dict[str, float] | None:
        """Return the coverage of each class to plan with; None where nothing is guaranteed."""
        if not self._patients_are_exchangeable:
            return None
        planned = self.conformal.coverage_of_most_cohorts(coverage)
        return dict(zip(self.classes, planned.tolist(), strict=True))

    @property
    def _patients_are_exchangeable(self) -> bool:
        members = self.members.values()
        return self.sets_by_fold and all(run.patients_are_exchangeable for run in members)


def save_combination(combination: Combination, sources: Mapping[str, Path]) -> None:
    """Copy the runs from ``sources``, by name, and write weights, sets and patients.

    ``combination.json`` comes last and marks the combination as complete; probabilities in
    ``out_of_fold.csv`` have shape (patients, classes).

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    path = combination.path
    digests = {}
    for name, source in sources.items():
        shutil.copytree(source, path / _MEMBERS / name, ignore=shutil.ignore_patterns("*.html"))
        digests[name] = hash_file(path / _MEMBERS / name / "model.json")
    rows = [[patient_id, *proba] for patient_id, proba in combination.out_of_fold.items()]
    table = pd.DataFrame(rows, columns=["patient_id", *combination.classes])
    write_table(path / "out_of_fold.csv", table)
    content: dict[str, object] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "classes": combination.classes,
        "members": digests,
        "calibrator": combination.calibrator.as_dict(),
        "weights": combination.weights,
        "sets": combination.conformal.as_dict(combination.classes),
        "sets_by_fold": combination.sets_by_fold,
        "seed": combination.seed,
        "cohort_counts": combination.cohort_counts,
        "abstention": combination.abstention and combination.abstention.as_dict(),
    }
    write_json(path / _MAIN, with_digests(content, path))


def load_combination(path: str | Path) -> Combination:
    """Read a combination; no code in it is executed.

    Raises
    ------
    RunError
        If the folder is not a combination, is damaged or incomplete.
    """
    path = Path(path)
    try:
        described = json.loads((path / _MAIN).read_text(encoding="utf-8"))
    except DAMAGE as error:
        raise _damaged(path, f"{_MAIN}: {error}") from error
    described = described if isinstance(described, dict) else {}
    check_format(path / _MAIN, described, name=FORMAT, newest=FORMAT_VERSION, error=RunError)
    try:
        combination = _parse(path, described)
    except DAMAGE as error:
        raise _damaged(path, str(error)) from error
    for name, member in combination.members.items():
        if member.classes != combination.classes:
            raise _damaged(path, f"classes of {name}: {', '.join(member.classes)}")
    return combination


def _parse(path: Path, described: Mapping[str, Any]) -> Combination:
    check_digests(path, described)
    of_version_1 = described.get("out_of_fold_sha256")
    if of_version_1 and hash_file(path / "out_of_fold.csv") != of_version_1:
        raise ValueError("out_of_fold.csv was changed")
    members = {}
    for name, sha256 in described["members"].items():
        folder = path / _MEMBERS / Path(name).name
        if hash_file(folder / "model.json") != sha256:
            raise ValueError(f"the run {name} was changed")
        members[name] = load_bundle(folder)
    classes = tuple(described["classes"])
    calibrator = StackedPlattScaling.from_dict(described["calibrator"])
    if len(calibrator.slopes_) != len(members) or len(calibrator.bias_) != len(classes):
        raise ValueError(f"weights of {len(calibrator.slopes_)} of {len(members)} runs")
    table = read_table(path / "out_of_fold.csv")
    values = table[list(classes)].astype(np.float64).to_numpy()
    return Combination(
        path=path,
        classes=classes,
        members=members,
        calibrator=calibrator,
        conformal=CrossConformal.from_dict(described["sets"], classes),
        sets_by_fold=described.get("sets_by_fold") is True,
        seed=int(described.get("seed", 0)),
        cohort_counts=tuple(described["cohort_counts"]),
        out_of_fold=dict(zip(table["patient_id"].map(normalize_name), values, strict=True)),
        abstention=AbstentionPoint.from_dict(point) if (point := described["abstention"]) else None,
    )


def _damaged(path: Path, reason: str) -> RunError:
    return damaged_run(
        path, reason, expected="a whole combination, as 'mil combine' wrote it",
        again="combine the runs again",
    )  # fmt: skip
