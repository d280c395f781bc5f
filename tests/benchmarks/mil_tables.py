"""Accuracy on the classic tables of multiple-instance learning, without a look at the test fold.

Ten times ten folds by default. Inside the training part of a fold, features are standardised with
outliers cut, whitening is fitted, and where the settings stop early, each head is stopped on an
inner split of its own. The settings of a table are chosen on the other tables, in rotation: the
ones with the largest mean AUROC there, among the two in ``CONFIGURATIONS`` and both, whose scores
are then averaged. A table alone gets the first ones.
``default`` is the default learner of the program with its default settings, of which nothing is
chosen here, and its cross-fitted calibrator: a bag is of class 1 where that is the likelier class
at equal class shares. ``logistic`` is scikit-learn's logistic regression on mean, max and min of a
bag's features, with its own few settings chosen in the same way.

The standard error is that of a mean over bags (each bag's accuracy is its mean over the repeats):
it says how far another sample of bags would lead, which repeating folds on the same bags cannot
lower. AUROC is the mean over the repeats. The published rows often chose the epoch on the test
fold.

    python -m tests.benchmarks.mil_tables musk1.npz fox.npz tiger.npz --json
    python -m tests.benchmarks.mil_tables musk1.npz --head gated --head logistic

A table is an ``.npz`` file of ``features`` (instances, d), ``bag`` (instances,), ``label`` (bags,):
0 or 1. Without files, those in ``mil-tables`` of the folder that ``MIL_DATA`` names are read.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from features.errors import MilError
from features.utils.hardware import CPU_COUNT
from mil.arrays import Ints
from mil.calibration import cross_fit
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort, Patient
from mil.data.splits import Fold, patient_folds
from mil.evaluation.metrics import auroc
from mil.heads import Head, head_names
from mil.heads.ensemble import predict_members
from mil.training.config import N_INNER_FOLDS, TrainConfig
from mil.training.cross_validation import cross_validate, resolve_components
from mil.training.ensemble import (
    MIN_VALIDATION_PER_CLASS,
    max_parallel_ensembles,
    train_ensembles,
)
from tests.fakes import FINGERPRINT

__all__ = [
    "CONFIGURATIONS", "LOGISTIC", "Row", "Table", "main", "read_table", "score_tables",
    "standardised",
]  # fmt: skip

Floats = npt.NDArray[np.float64]
_Part = tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]

_FEW = TrainConfig(
    n_members=3, n_components=24, batch_patients=32, max_tiles=16, fixed_steps=150,
    learning_rate=3e-3, mixup=0.5,
)  # fmt: skip
CONFIGURATIONS: Mapping[str, TrainConfig] = {
    "24 components": _FEW,
    "64 components": replace(_FEW, n_components=64),
}
"""The two settings that are chosen from or averaged, the same for all heads."""
LOGISTIC: Mapping[str, float] = {f"C={c:g}": c for c in (0.1, 0.01, 0.001, 1.0)}
"""The four inverse penalties of the logistic regression that are chosen from."""
DEFAULT = "default"
"""Name of the program's default learner, and of its settings."""
BOTH = " and ".join(CONFIGURATIONS)
"""The third choice: the mean of what both say."""
CHOICE_REPEATS = 3
"""Repeats that settings are chosen on."""
PUBLISHED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "musk1": {
        "mi-Graph": (0.889, 0.033),
        "MI-Net with DS": (0.894, 0.042),
        "attention": (0.892, 0.040),
        "gated attention": (0.900, 0.050),
    },
    "fox": {
        "mi-Graph": (0.620, 0.044),
        "MI-Net with DS": (0.630, 0.037),
        "attention": (0.615, 0.043),
        "gated attention": (0.603, 0.029),
    },
    "tiger": {
        "mi-Graph": (0.860, 0.037),
        "MI-Net with DS": (0.845, 0.039),
        "attention": (0.839, 0.022),
        "gated attention": (0.845, 0.018),
    },
}
"""Accuracy and standard error in table 1 of Ilse et al. (2018)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Bags and labels of one file."""

    name: str
    """Name of the file without its suffix."""
    bags: tuple[npt.NDArray[np.floating[Any]], ...]
    """Each of shape (instances, d), at least one instance; of any scale."""
    labels: npt.NDArray[np.int64]
    """Shape (bags,), 0 or 1."""

    @property
    def cohort(self) -> Cohort:
        """Bags as patients."""
        patients = tuple(
            Patient(patient_id=f"{i}", slide_ids=(f"{i}",), label=f"{label}", center_id=None)
            for i, label in enumerate(self.labels)
        )
        return Cohort(path=Path(f"{self.name}.npz"), patients=patients, classes=("0", "1"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a head came to on a table."""

    table: str
    """Name of the table."""
    head: str
    """Name of the head, ``default`` or ``logistic``."""
    accuracy: float
    """Mean over bags and repeats, 0 to 1."""
    standard_error: float
    """Of that mean over bags."""
    auroc: float
    """Mean over repeats."""
    settings: str
    """Name of the configuration, chosen on the other tables."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """One cross-validation."""

    table: Table
    head: str
    settings: str
    repeat: int
    n_folds: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.table.name, self.head, self.settings, self.repeat


_CUTS = 5
_LARGEST = 3.0  # deviations
_FRESH = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
Scores = Mapping[tuple[str, str, str, int], Floats]


def read_table(path: Path) -> Table:
    """Read one file.

    Raises
    ------
    MilError
        If it is no such table.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            features, bag, labels = (np.asarray(file[k]) for k in ("features", "bag", "label"))
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise MilError(
            path,
            actual=f"cannot be read ({type(error).__name__})",
            expected="an .npz file of features, bag and label",
        ) from error
    if (
        features.ndim != 2
        or bag.shape != features.shape[:1]
        or labels.ndim != 1
        or [array.dtype.kind in "iuf" for array in (features, labels)] != [True, True]
        or bag.dtype.kind not in "iu"
        or not np.isfinite(features).all()
    ):
        raise MilError(
            path,
            actual=", ".join(
                f"{name} {array.dtype} {array.shape}"
                for name, array in (("features", features), ("bag", bag), ("label", labels))
            ),
            expected="features (instances, d), all finite, and whole numbers bag (instances,) and "
            "label (bags,)",
        )
    ids = np.unique(bag)
    if len(ids) != len(labels) or not set(labels.tolist()) <= {0, 1}:
        raise MilError(
            path,
            actual=f"{len(ids)} bags and {len(labels)} labels: {sorted(set(labels.tolist()))[:5]}",
            expected="a label, 0 or 1, for each bag",
        )
    return Table(
        name=path.stem,
        bags=tuple(features[bag == number].astype(np.float64) for number in ids),
        labels=labels.astype(np.int64),
    )


def score_tables(
    tables: Sequence[Table],
    heads: Sequence[str],
    *,
    n_repeats: int,
    n_folds: int,
    n_jobs: int = 1,
    on_job: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Choose settings in rotation and cross-validate every table with every head.

    Parameters
    ----------
    tables
        With different names.
    heads
        Names of heads, ``default`` or ``logistic``.
    n_repeats, n_folds
        Cross-validations, and folds of each.
    n_jobs
        Processes.
    on_job
        Called with cross-validations done and in all of a stage: choosing, then reporting.

    Raises
    ------
    MilError
        If two tables have the same name, or a class of one has fewer bags than there are folds.
    """
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        raise MilError("tables", actual=", ".join(names), expected="different names")
    n_choice = min(CHOICE_REPEATS, n_repeats) if len(tables) > 1 else 0
    jobs = [
        _Job(table=table, head=head, settings=settings, repeat=repeat, n_folds=n_folds)
        for table in tables
        for head in heads
        for settings in _configurations(head)
        for repeat in range(n_choice)
    ]
    scores = dict(_run(jobs, n_jobs=n_jobs, on_job=on_job))
    chosen = {
        (t.name, head): _choose(t, head, tables, scores, n_repeats=n_choice)
        for t in tables
        for head in heads
    }
    jobs = [
        _Job(table=t, head=head, settings=settings, repeat=repeat, n_folds=n_folds)
        for t in tables
        for head in heads
        for settings in _averaged(chosen[t.name, head])
        for repeat in range(n_choice, n_repeats)
    ]
    scores |= dict(_run(jobs, n_jobs=n_jobs, on_job=on_job))
    return [
        _row(t, head, chosen[t.name, head], scores, n_repeats=n_repeats)
        for t in tables
        for head in heads
    ]


def _configurations(head: str) -> Iterable[str]:
    """Names of the settings that a head is tried with."""
    return {"logistic": LOGISTIC, DEFAULT: (DEFAULT,)}.get(head, CONFIGURATIONS)


def _choices(head: str) -> Iterable[str]:
    names = tuple(_configurations(head))
    return names if head in ("logistic", DEFAULT) else (*names, BOTH)


def _averaged(choice: str) -> Iterable[str]:
    """Settings whose scores a choice averages."""
    return CONFIGURATIONS if choice == BOTH else (choice,)


def _found(scores: Scores, table: Table, head: str, choice: str, *, n_repeats: int) -> Floats:
    """Scores of a choice, shape (repeats, bags)."""
    return np.stack([
        np.mean([scores[table.name, head, name, repeat] for name in _averaged(choice)], axis=0)
        for repeat in range(n_repeats)
    ])  # fmt: skip


def _run(
    jobs: Sequence[_Job], *, n_jobs: int, on_job: Callable[[int, int], None]
) -> Iterator[tuple[tuple[str, str, str, int], Floats]]:
    if n_jobs == 1:
        results: Iterable[Floats] = map(_cross_validate, jobs)
        yield from _counted(jobs, results, on_job)
        return
    with ProcessPoolExecutor(
        n_jobs, mp_context=_FRESH, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield from _counted(jobs, pool.map(_cross_validate, jobs), on_job)


def _counted(
    jobs: Sequence[_Job], results: Iterable[Floats], on_job: Callable[[int, int], None]
) -> Iterator[tuple[tuple[str, str, str, int], Floats]]:
    for number, (job, result) in enumerate(zip(jobs, results, strict=True), start=1):
        on_job(number, len(jobs))
        yield job.key, result


def _cross_validate(job: _Job) -> Floats:
    """Out-of-fold score for label 1 of every bag, shape (bags,); above 0 means 1."""
    folds = patient_folds(job.table.cohort, n_folds=job.n_folds, n_repeats=1, seed=job.repeat)
    splits = [(np.array(f.train_ids, np.int64), np.array(f.test_ids, np.int64)) for f in folds]
    parts = [_standardised(job.table, train, test) for train, test in splits]
    if job.head == DEFAULT:
        return _default(job, folds, parts)
    if job.head == "logistic":
        result = [
            _logistic(train_bags, job.table.labels[train], judged, job.settings)
            for (train, _), (train_bags, judged) in zip(splits, parts, strict=True)
        ]
    else:
        result = _heads(job, folds, parts)
    scores = np.full(len(job.table.bags), np.nan)
    for (_, test), of_fold in zip(splits, result, strict=True):
        scores[test] = of_fold
    return scores


def standardised(table: Table) -> list[npt.NDArray[np.float32]]:
    """Bags standardised over all of them, with outliers cut, each of shape (instances, d)."""
    everything = np.arange(len(table.bags))
    return _standardised(table, everything, everything)[0]


def _standardised(table: Table, train: npt.NDArray[np.int64], test: npt.NDArray[np.int64]) -> _Part:
    """Training and test bags, standardised by the training instances.

    Values beyond three deviations are clipped, and all is standardised again, a few times
    over: two fifths of the features of FOX and TIGER have instances more than ten deviations out,
    beside which the others hardly differ. Constant features are set to 0 in both.
    """
    lengths = np.array([len(bag) for bag in table.bags])
    learned = np.repeat(np.isin(np.arange(len(lengths)), train), lengths)  # (instances,)
    whole = np.concatenate(table.bags).astype(np.float64)
    largest = np.abs(whole[learned]).max(axis=0)  # beside 1, so that squares neither vanish nor end
    scaled = _to_unit_scale(whole / np.where(largest > 0, largest, 1), learned)
    for _ in range(_CUTS):
        scaled = _to_unit_scale(scaled.clip(-_LARGEST, _LARGEST), learned)
    bags = np.split(scaled.astype(np.float32), np.cumsum(lengths)[:-1])
    return [bags[i] for i in train], [bags[i] for i in test]


def _to_unit_scale(features: Floats, learned: npt.NDArray[np.bool_]) -> Floats:
    """Instances by mean and deviation of those that are learned from, shape (instances, d)."""
    seen = features[learned]
    mean, deviation = seen.mean(axis=0), seen.std(axis=0)
    varies = deviation > 1e-9 * np.abs(seen).max(axis=0)
    return (features - mean) * np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def _heads(job: _Job, folds: Sequence[Fold], parts: Sequence[_Part]) -> list[Floats]:
    """Scores of the judged bags of each fold; ensembles of several folds are trained together."""
    labels = {f"{index}": int(label) for index, label in enumerate(job.table.labels)}
    stores = [
        _store(dict(zip(fold.train_ids, train_bags, strict=True)))
        for fold, (train_bags, _) in zip(folds, parts, strict=True)
    ]
    labels_of_fold = [{name: labels[name] for name in fold.train_ids} for fold in folds]
    seeds = [(job.repeat, fold.index) for fold in folds]
    settings = replace(CONFIGURATIONS[job.settings], head=job.head)
    fewest = min(min(Counter(own.values()).values()) for own in labels_of_fold)
    if fewest < MIN_VALIDATION_PER_CLASS * N_INNER_FOLDS:
        settings = replace(settings, early_stopping=False)
    everything = _store({f"{index}": bag for index, bag in enumerate(job.table.bags)})
    at_once = max_parallel_ensembles(everything, settings)
    ensembles = [
        ensemble
        for part in (slice(start, start + at_once) for start in range(0, len(folds), at_once))
        for ensemble in train_ensembles(
            stores[part], labels_of_fold[part], seeds=seeds[part], n_classes=2, config=settings
        )
    ]
    return [
        np.array([_score(ensemble.heads, bag) for bag in judged])
        for ensemble, (_, judged) in zip(ensembles, parts, strict=True)
    ]


def _default(job: _Job, folds: Sequence[Fold], parts: Sequence[_Part]) -> Floats:
    """Cross-fitted log odds of every bag, shape (bags,).

    Each fold has bags of its own, standardised by its training part; the results are put together.
    """
    cohort = job.table.cohort
    config = resolve_components(TrainConfig(), folds)
    fold_ids: Ints = np.full((1, len(cohort.patient_ids)), -1)
    found = []
    for fold, (train_bags, judged) in zip(folds, parts, strict=True):
        of_fold = dict(zip((*fold.train_ids, *fold.test_ids), (*train_bags, *judged), strict=True))
        bags = _store({name: of_fold[name] for name in cohort.patient_ids})
        found.append(cross_validate(bags, cohort, [fold], config=config, seed=job.repeat))
        fold_ids[0, found[-1].fold[0] >= 0] = fold.index
    logits = found[0].logits.copy()
    for other in found[1:]:
        tested = other.fold[0] >= 0
        logits[0, tested] = other.logits[0, tested]
    proba = cross_fit(logits, cohort.labels, fold_ids, calibrator="platt")[0]
    return np.asarray(np.log(proba[:, 1]) - np.log(proba[:, 0]), np.float64)


def _store(bags: Mapping[str, npt.NDArray[np.float32]]) -> PatientBags:
    dim = next(iter(bags.values())).shape[1]
    return PatientBags(features=bags, fingerprint=replace(FINGERPRINT, dim=dim), slides=())


def _score(heads: Sequence[Head], bag: npt.NDArray[np.float32]) -> float:
    logits = predict_members(heads, bag)[0].mean(axis=0)
    return float(logits[1] - logits[0])


def _logistic(
    train_bags: Sequence[npt.NDArray[np.float32]],
    labels: npt.NDArray[np.int64],
    judged: Sequence[npt.NDArray[np.float32]],
    settings: str,
) -> Floats:
    model = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=LOGISTIC[settings], class_weight="balanced", max_iter=5000),
    )
    model.fit(_pooled(train_bags), labels)
    return np.asarray(model.decision_function(_pooled(judged)), np.float64)


def _pooled(bags: Sequence[npt.NDArray[np.float32]]) -> Floats:
    return np.stack([np.concatenate([b.mean(0), b.max(0), b.min(0)]) for b in bags]).astype(float)


def _choose(
    table: Table, head: str, tables: Sequence[Table], scores: Scores, *, n_repeats: int
) -> str:
    """The choice with the largest mean AUROC on the other tables; the first if there are none."""

    def merit(choice: str) -> float:
        areas = [
            _auroc(values, other.labels)
            for other in tables
            if other is not table
            for values in _found(scores, other, head, choice, n_repeats=n_repeats)
        ]
        return float(np.mean(areas)) if areas else 0.0

    return max(_choices(head), key=merit)


def _row(table: Table, head: str, settings: str, scores: Scores, *, n_repeats: int) -> Row:
    result = _found(scores, table, head, settings, n_repeats=n_repeats)
    right = ((result > 0) == table.labels).mean(axis=0)  # (bags,)
    return Row(
        table=table.name,
        head=head,
        accuracy=float(right.mean()),
        standard_error=float(right.std(ddof=1) / np.sqrt(len(right))),
        auroc=float(np.mean([_auroc(values, table.labels) for values in result])),
        settings=settings,
    )


def _auroc(scores: Floats, labels: npt.NDArray[np.int64]) -> float:
    return float(auroc(np.stack([-scores, scores], axis=1), labels))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when done, 1 on a known error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.npz")
    names = [DEFAULT, "logistic", *head_names()]
    parser.add_argument(
        "--head", action="append", choices=["all", *names],
        help="may be repeated; default: the program's default learner",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=10, help="cross-validations")
    parser.add_argument("--folds", type=int, default=10, help="folds of each")
    parser.add_argument("--jobs", type=int, default=CPU_COUNT, help="processes")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.repeats < 1 or given.folds < 2 or given.jobs < 1:
        parser.error("at least 1 repeat, 2 folds and 1 job")
    files = given.files or sorted(Path(os.environ.get("MIL_DATA", "")).glob("mil-tables/*.npz"))
    heads = given.head or [DEFAULT]
    heads = names if "all" in heads else heads
    try:
        rows = score_tables(
            [read_table(path) for path in files],
            heads,
            n_repeats=given.repeats,
            n_folds=given.folds,
            n_jobs=given.jobs,
            on_job=_show,
        )
    except MilError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stderr.write("\n")
    if given.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    else:
        sys.stdout.write(_as_text(rows, n_repeats=given.repeats, n_folds=given.folds) + "\n")
    return 0


def _show(done: int, total: int) -> None:
    sys.stderr.write(f"\r{done} of {total} cross-validations of this stage")


def _as_text(rows: Sequence[Row], *, n_repeats: int, n_folds: int) -> str:
    lines = []
    for table in dict.fromkeys(row.table for row in rows):
        lines.append(f"{table}, {n_repeats} x {n_folds} folds")
        for row in rows:
            if row.table == table:
                lines.append(
                    f"  {row.head:<16} {row.accuracy:.3f} ± {row.standard_error:.3f}"
                    f"   AUROC {row.auroc:.3f}   {row.settings}"
                )
        for name, (accuracy, error) in PUBLISHED.get(table, {}).items():
            lines.append(f"  {name:<16} {accuracy:.3f} ± {error:.3f}   published")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
