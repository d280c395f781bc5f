"""The default learner beside simple ones on the demo's painted cohort, and on three others.

Paints and embeds the slides of ``mil demo --seed S`` for each seed, if that is not done yet, and
compares the methods of :mod:`tests.benchmarks.learner_suite` on them: embeddings of painted slides,
60 patients cross-fitted and 30 held-out ones, by what is deployed. Seed 0 is the one shipped.
Painting and embedding take some two minutes a seed on two cores, the comparison half a minute.

    python -m tests.benchmarks.demo_cohorts --seeds 0-3 --out demo-cohorts
    python -m tests.benchmarks.demo_cohorts --seeds 0-3 --signal 0 --out demo-cohorts

Prints tables, or with ``--json`` the list of objects of that benchmark; the held-out patients are
the ``new_patients``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cli.commands.demo import N_TEST_PATIENTS, N_TRAIN_PATIENTS, TARGET_MPP
from features.bags.store import open_bags
from features.slides.synthetic import make_cohort, write_synthetic_cohort
from features.utils.hardware import CPU_COUNT
from mil.data.bags import load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from tests.benchmarks.learner_suite import World, format_scores, measure, parse_seeds

__all__ = ["main", "painted_world"]


def painted_world(folder: Path, seed: int, *, signal: float) -> World:
    """Return the cohort of a seed, painted and embedded in a folder unless it is there already."""
    if not (folder / "bags" / "embed.csv").is_file():
        plan = make_cohort(n_patients=N_TRAIN_PATIENTS + N_TEST_PATIENTS, seed=seed, signal=signal)
        write_synthetic_cohort(
            folder, plan, n_test_patients=N_TEST_PATIENTS, n_workers=CPU_COUNT,
            on_slide=lambda: None,
        )  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "cli", "embed", str(folder / "slides"), "--bags",
             str(folder / "bags"), "--mpp", str(TARGET_MPP)],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
    cohorts = [
        read_cohort(folder / name, labelled=True) for name in ("train.csv", "test_labels.csv")
    ]
    features = {}
    for cohort in cohorts:
        features |= dict(load_patient_bags(cohort, open_bags(folder / "bags")).features)
    train, test = map(_one_bag_per_patient, cohorts)
    return World(name=f"demo-{seed}", kind="demo", train=train, new=test, features=features)


def _one_bag_per_patient(cohort: Cohort) -> Cohort:
    patients = (replace(p, slide_ids=(p.patient_id,)) for p in cohort.patients)
    return replace(cohort, patients=tuple(patients))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=parse_seeds, default=range(4), metavar="FIRST-LAST")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-cohorts"), metavar="FOLDER",
        help="one folder a seed and signal, 1 GB each; kept for the next call",
    )  # fmt: skip
    parser.add_argument("--signal", type=float, default=1.0, metavar="SHARE", help="as of mil demo")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    scores = []
    for seed in given.seeds:
        folder = given.out / f"seed-{seed}-signal-{given.signal:g}"
        world = painted_world(folder, seed, signal=given.signal)
        scores += measure(world, seed=seed)
        losses = ", ".join(f"{s.method} {s.weighted_log_loss:.3f}" for s in scores[-4:])
        sys.stderr.write(f"{world.name}: {losses}\n")
    text = json.dumps([asdict(s) for s in scores], indent=2) if given.json else None
    sys.stdout.write((text or format_scores(scores)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
