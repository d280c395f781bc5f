"""The default learner beside simple ones, on kinds of cohorts from dense to no signal.

Every cohort is trained, calibrated and scored by :func:`mil.training_run.train_run` as ``mil
train`` does it; the baselines are those of its report. ``gated`` is the stack's own attention by
itself, which is what ``--head gated`` trains: it costs no second training. 200 new patients of the
same world are then predicted by what is deployed: the run's bundle, or the heads or baseline fitted
on all patients with the calibrator of all their out-of-fold logits. Kinds:

``dense``, ``20%``, ``5%``, ``1%``
    30 to 90 patients as in :mod:`tests.benchmarks.few_patients`, whose second class differs in
    all of the tiles, a fifth, a twentieth, or a hundredth of them.
``none``
    The same without any difference.
``weak``
    632 patients, 28 % of the second class, which differs a little in all tiles.
``30``, ``60``, ``120``, ``250``
    That many patients. The cohorts of one seed are of one world with one of the three first
    kinds of signal, and the larger ones contain the smaller.

Apart from those, the cohorts of one seed have nothing in common: each kind draws its own.

Each cohort is divided into folds, and everything trained, three times (``--repeats``), and a score
is the mean of the three. Of three cohorts, the difference of the default to the best other method
had a standard deviation of .02 to .03 between divisions, so that the worst of sixty cohorts would
tell of an unlucky division.

A table is an ``.npz`` file as :mod:`tests.benchmarks.mil_tables` reads it; its features are
standardised, with outliers cut, over all bags and without labels, and it has no new patients.

Seeds 40000 to 40999 are for reporting: no setting of the program was chosen on any of them.

    python -m tests.benchmarks.learner_suite --kinds dense,5%,none --seeds 40000-40005
    python -m tests.benchmarks.learner_suite musk1.npz --json

Prints tables, or with ``--json`` a list of objects, one a cohort and method: ``cohort``, ``kind``,
``method``, ``weighted_log_loss`` and ``auroc`` (cross-fitted), ``new_patients_log_loss`` (null for
a table). Differences are paired by cohort; ``oracle`` is the best of ``gated`` and the baselines,
picked per cohort afterwards.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from features.bags.h5 import write_bag
from features.errors import MilError
from mil.arrays import Floats, Ints
from mil.calibration import build_calibrator, cross_fit
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.features import Features
from mil.data.splits import patient_folds
from mil.evaluation.baseline_models import baseline_logits, pool_embeddings
from mil.evaluation.metrics import auroc, weighted_log_loss
from mil.heads import Head
from mil.heads.ensemble import predict_members
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import TrainingSummary, load_training_bags, train_run
from tests.benchmarks.few_patients import Kind
from tests.benchmarks.mil_tables import Table, read_table, standardised
from tests.benchmarks.training import generate
from tests.fakes import make_bag

__all__ = [
    "KINDS", "METHODS", "Score", "World", "format_scores", "main", "make_world", "measure",
    "measure_repeatedly", "parse_seeds",
]  # fmt: skip

BASELINES = ("mean + logistic", "min-max logistic")
METHODS = ("default", "gated", *BASELINES)
"""Rows, in order."""

_N_NEW = 200
_N_FOLDS = 5
_N_REPEATS = 3
_DIM = 256
_CALIBRATOR = "platt"
_REPORTING_SEEDS = range(40_000, 40_006)
_SHARES = {"dense": 1.0, "20%": 0.2, "5%": 0.05, "1%": 0.01}
_WEAK = Kind(n_patients=632, n_tiles=40, share=1.0, signal=0.22, n_moved=32, every=4)
_SIZES = {"30": 30, "60": 60, "120": 120, "250": 250}

KINDS = (*_SHARES, "none", "weak", *_SIZES)
"""Kinds of generated cohorts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Patients to train on, and new patients of the same kind; embeddings of shape (tiles, dim)."""

    name: str
    kind: str
    train: Cohort
    new: Cohort | None
    features: dict[str, Features]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Scores of a method on a cohort, or their means over divisions into folds; losses in nats."""

    cohort: str
    kind: str
    method: str
    weighted_log_loss: float
    auroc: float
    new_patients_log_loss: float | None


def make_world(kind: str, seed: int, *, n_new: int = _N_NEW) -> World:
    """Generate a cohort of a kind of :data:`KINDS`, and new patients of the same world."""
    stream = "sizes" if kind in _SIZES else kind
    own_seed = int(np.random.SeedSequence((seed, *stream.encode())).generate_state(1)[0])
    drawn = Kind.draw(own_seed)
    n_drawn = drawn.n_patients
    if kind in _SHARES:
        drawn = _with_share(drawn, _SHARES[kind], own_seed)
    elif kind == "none":
        drawn = replace(drawn, signal=0.0)
    elif kind == "weak":
        drawn, n_drawn = _WEAK, _WEAK.n_patients
    else:
        drawn, n_drawn = replace(drawn, n_patients=max(_SIZES.values())), _SIZES[kind]
    bags, cohort = generate(
        n_patients=drawn.n_patients + n_new, n_tiles=drawn.n_tiles, dim=_DIM, seed=own_seed,
        signal=drawn.signal, share=drawn.share, n_moved=drawn.n_moved, every=drawn.every,
    )  # fmt: skip
    train, new = cohort.patients[:n_drawn], cohort.patients[drawn.n_patients :]
    return World(
        name=f"{kind}-{seed}",
        kind=kind,
        train=replace(cohort, patients=train),
        new=replace(cohort, patients=new),
        features={p.patient_id: bags.features[p.patient_id] for p in (*train, *new)},
    )


def _with_share(drawn: Kind, share: float, seed: int) -> Kind:
    """Return the kind with another share of tiles, and a signal that suits it."""
    rng = np.random.default_rng((seed, 11))
    low, high = {1.0: (0.4, 1.2), 0.2: (1.5, 3.5), 0.05: (3.0, 5.0), 0.01: (3.0, 5.0)}[share]
    n_tiles = 100 if share == 0.01 else drawn.n_tiles
    return replace(drawn, share=share, signal=float(rng.uniform(low, high)), n_tiles=n_tiles)


def table_world(table: Table) -> World:
    """Return a MIL table as a cohort without new patients."""
    bags = standardised(table)
    cohort = table.cohort
    return World(
        name=table.name, kind="table", train=cohort, new=None,
        features=dict(zip(cohort.patient_ids, bags, strict=True)),
    )  # fmt: skip


def measure(
    world: World,
    *,
    methods: Sequence[str] = METHODS,
    config: TrainConfig | None = None,
    seed: int = 0,
) -> list[Score]:
    """Train, score and deploy the methods on a cohort.

    Parameters
    ----------
    world
        The cohort.
    methods
        Some of :data:`METHODS`.
    config
        Hyper-parameters of the stack; the default ones by default.
    seed
        Seed of folds and training, as of ``mil train``.
    """
    with tempfile.TemporaryDirectory() as folder:
        bags_dir, run_dir = Path(folder) / "bags", Path(folder) / "run"
        _write_bags(world, bags_dir)
        bags = load_training_bags(world.train, bags_dir)
        summary = bundle = None
        if not {"default", "gated"}.isdisjoint(methods):
            summary = train_run(
                world.train, bags, run_dir, config=config, n_folds=_N_FOLDS,
                calibrator=_CALIBRATOR, seed=seed, n_resamples=2, report=False,
            )  # fmt: skip
            bundle = load_bundle(run_dir)
        scores = []
        for method in methods:
            if method == "default" and summary is not None and bundle is not None:
                scores.append(_run_score(world, summary, bundle, bags_dir))
            elif method == "gated" and bundle is not None:
                logits = _head_logits(world, bundle, seed=seed)
                scores.append(_logit_score(world, method, *logits, seed=seed))
            else:
                logits = _baseline_logits(world, method, bags, seed=seed)
                scores.append(_logit_score(world, method, *logits, seed=seed))
        return scores


def measure_repeatedly(world: World, *, n_repeats: int) -> list[Score]:
    """Return the means of :func:`measure` over so many divisions into folds."""
    rounds = [measure(world, seed=seed) for seed in range(n_repeats)]
    return [_mean_score(own) for own in zip(*rounds, strict=True)]


def _mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean of scores of one method on one cohort."""
    news = [s.new_patients_log_loss for s in scores if s.new_patients_log_loss is not None]
    return replace(
        scores[0],
        weighted_log_loss=float(np.mean([score.weighted_log_loss for score in scores])),
        auroc=float(np.mean([score.auroc for score in scores])),
        new_patients_log_loss=float(np.mean(news)) if news else None,
    )


def _write_bags(world: World, bags_dir: Path) -> None:
    bags_dir.mkdir()
    for name, tiles in world.features.items():
        bag = make_bag(name, n_tiles=len(tiles), dim=tiles.shape[1])
        write_bag(bags_dir / f"{name}.h5", replace(bag, features=tiles))


def _run_score(
    world: World, summary: TrainingSummary, bundle: ModelBundle, bags_dir: Path
) -> Score:
    """Return the scores of a run, and of what its bundle predicts for the new patients."""
    new_loss = None
    if world.new is not None:
        predicted = predict(bundle, world.new, bags_dir, prior="balanced")
        proba = np.stack([patient.probabilities for patient in predicted])
        new_loss = weighted_log_loss(proba, world.new.labels)
    scores = summary.scores["calibrated"]
    return Score(
        cohort=world.name, kind=world.kind, method="default",
        weighted_log_loss=scores["weighted_log_loss"].value, auroc=scores["auroc"].value,
        new_patients_log_loss=new_loss,
    )  # fmt: skip


def _head_logits(world: World, bundle: ModelBundle, *, seed: int) -> tuple[Floats, Floats | None]:
    """Return logits of the heads of a stack by themselves, out-of-fold and of new patients.

    They are those of a run with ``--head gated`` on the same folds: its heads have the same seeds.
    """

    def logits_of(heads: Sequence[Head], name: str) -> Floats:
        return np.asarray(predict_members(heads, world.features[name])[0].mean(axis=0))

    folds = _fold_of_patients(world.train, seed=seed).tolist()
    own = zip(folds, world.train.patient_ids, strict=True)
    logits = np.stack([logits_of(bundle.sets.heads[fold], name) for fold, name in own])
    if world.new is None:
        return logits, None
    return logits, np.stack([logits_of(bundle.heads, name) for name in world.new.patient_ids])


def _baseline_logits(
    world: World, method: str, bags: PatientBags, *, seed: int
) -> tuple[Floats, Floats | None]:
    """Return logits of a baseline on the folds of the run, and, fitted on all, of new patients."""
    names, labels = world.train.patient_ids, world.train.labels
    dim = bags.fingerprint.dim
    pooled = pool_embeddings(bags.features, names, dim=dim)
    folds = _fold_of_patients(world.train, seed=seed)
    logits = np.full((len(names), len(world.train.classes)), np.nan)
    for fold in np.unique(folds):
        train, test = (
            {pooling: values[rows] for pooling, values in pooled.items()}
            for rows in (folds != fold, folds == fold)
        )
        logits[folds == fold] = baseline_logits(
            method, train, labels[folds != fold], test, seed=seed
        )
    if world.new is None:
        return logits, None
    others = pool_embeddings(world.features, world.new.patient_ids, dim=dim)
    return logits, baseline_logits(method, pooled, labels, others, seed=seed)


def _logit_score(
    world: World, method: str, logits: Floats, new_logits: Floats | None, *, seed: int
) -> Score:
    """Cross-fit out-of-fold logits, and calibrate those of new patients by all of them."""
    labels, folds = world.train.labels, _fold_of_patients(world.train, seed=seed)
    proba = cross_fit(logits[None], labels, folds[None], calibrator=_CALIBRATOR)[0]
    new_loss = None
    if world.new is not None and new_logits is not None:
        deployed = build_calibrator(_CALIBRATOR).fit(logits, labels)
        new_loss = weighted_log_loss(deployed.predict_proba(new_logits), world.new.labels)
    return Score(
        cohort=world.name, kind=world.kind, method=method,
        weighted_log_loss=weighted_log_loss(proba, labels), auroc=auroc(proba, labels),
        new_patients_log_loss=new_loss,
    )  # fmt: skip


def _fold_of_patients(cohort: Cohort, *, seed: int) -> Ints:
    """Return the test fold of each patient in the runs, shape (patients,)."""
    folds = patient_folds(cohort, n_folds=_N_FOLDS, n_repeats=1, seed=seed)
    fold_of = {name: fold.index for fold in folds for name in fold.test_ids}
    return np.array([fold_of[name] for name in cohort.patient_ids], np.int64)


def format_scores(scores: Sequence[Score]) -> str:
    """Return a table of means by kind and method, and one of paired differences."""
    kinds = list(dict.fromkeys(score.kind for score in scores))
    lines = ["weighted log loss / AUROC, cross-fitted; loss of new patients"]
    for kind in kinds:
        of_kind = [score for score in scores if score.kind == kind]
        n_cohorts = len({score.cohort for score in of_kind})
        lines.append(f"{kind}, {n_cohorts} cohorts")
        for method in METHODS:
            own = [score for score in of_kind if score.method == method]
            loss = np.mean([score.weighted_log_loss for score in own])
            area = np.mean([score.auroc for score in own])
            news = [s.new_patients_log_loss for s in own if s.new_patients_log_loss is not None]
            new_text = f"   {np.mean(news):.3f}" if news else ""
            lines.append(f"  {method:<18} {loss:.3f} / {area:.3f}{new_text}")
    lines.append("default minus the other, mean ± standard error over cohorts (worst cohort)")
    for kind in [*kinds, *(["all"] * (len(kinds) > 1))]:
        of_kind = [score for score in scores if kind in (score.kind, "all")]
        lines.append(f"{kind}")
        for other, methods in (
            ("oracle", METHODS[1:]),
            ("best baseline", BASELINES),
            *((method, (method,)) for method in METHODS[1:]),
        ):
            parts = [
                f"{words}{_difference(of_kind, methods, loss)}"
                for words, loss in (
                    ("", lambda score: score.weighted_log_loss),
                    ("   new patients ", lambda score: score.new_patients_log_loss),
                )
                if loss(of_kind[0]) is not None
            ]
            lines.append(f"  {other:<18}{''.join(parts)}")
    return "\n".join(lines)


def _difference(
    scores: Sequence[Score], others: Sequence[str], loss: Callable[[Score], float | None]
) -> str:
    """Return the paired difference of the default to the best of others, as text."""
    by_cohort: dict[str, dict[str, float]] = {}
    for score in scores:
        if (value := loss(score)) is not None:
            by_cohort.setdefault(score.cohort, {})[score.method] = value
    differences = np.array([
        own["default"] - min(own[method] for method in others) for own in by_cohort.values()
    ])  # fmt: skip
    error = differences.std(ddof=1) / len(differences) ** 0.5 if len(differences) > 1 else np.nan
    return f"{differences.mean():+.3f} ± {error:.3f} ({differences.max():+.3f})"


def _worlds(kinds: Sequence[str], seeds: Sequence[int], tables: Sequence[Table]) -> Iterator[World]:
    for kind in kinds:
        for seed in seeds:
            yield make_world(kind, seed)
    yield from map(table_world, tables)


def _parse_kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(part.strip().replace(" ", "") for part in text.split(","))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return kinds


def parse_seeds(text: str) -> range:
    """Return the seeds of the text ``FIRST-LAST`` or of one seed."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST-LAST, such as 40000-40005")
    return range(first, last + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when done, 1 on a known error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.npz", help="MIL tables")
    parser.add_argument(
        "--kinds", type=_parse_kinds, metavar="K,K",
        help=f"some of {', '.join(KINDS).replace('%', '%%')}; default: all, or none with tables",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=parse_seeds, default=_REPORTING_SEEDS, metavar="FIRST-LAST",
        help="one cohort of each kind for every seed; default: 40000-40005",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, default=_N_REPEATS, metavar="N",
        help="divisions of each cohort into folds, whose scores are averaged; default: 3",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats}: expected 1 or more")
    kinds = given.kinds or (() if given.files else KINDS)
    scores: list[Score] = []
    try:
        tables = [read_table(path) for path in given.files]
        n_worlds = len(kinds) * len(given.seeds) + len(tables)
        for number, world in enumerate(_worlds(kinds, given.seeds, tables), start=1):
            started = time.monotonic()
            scores += measure_repeatedly(world, n_repeats=given.repeats)
            losses = ", ".join(f"{s.method} {s.weighted_log_loss:.3f}" for s in scores[-4:])
            sys.stderr.write(
                f"{number} of {n_worlds}: {world.name} ({time.monotonic() - started:.0f} s): "
                f"{losses}\n"
            )
    except MilError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if given.json:
        sys.stdout.write(json.dumps([asdict(score) for score in scores], indent=2) + "\n")
    else:
        sys.stdout.write(format_scores(scores) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
