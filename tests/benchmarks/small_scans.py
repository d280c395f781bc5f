"""Whether the defaults suit small cohorts of scans: heads and settings side by side.

Cohorts of grey JPEG scans of 20 to 40 slices are painted, with bleeds of five kinds on two to six
slices each, and embedded by the default backbone. Each setting learns every label from the labels
of scans alone, on each cohort, and is judged on new scans. Prints one JSON object, by setting:

``auroc``
    On the new scans: by label, and the ``mean`` over labels; means over cohorts.
``attention``
    On those of them that have the label: mean AUROC of the attention for the slices that show it,
    and the share (``hits``) whose most attended slice does.
``seconds``
    Of training, per label and cohort.

    python -m tests.benchmarks.small_scans --work /tmp/scans

Decision 14 was taken on ``--first-seed 0``, when heads learned for 60 steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from cli.app import app
from features.bags.store import open_bags
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.instance_labels import read_instance_labels
from mil.data.splits import Fold
from mil.heads.ensemble import predict_members
from mil.multilabel.table import LabelTable, read_label_table
from mil.training.config import TrainConfig
from mil.training.cross_validation import resolve_components
from mil.training.ensemble import train_ensemble
from tests.heads_in_jpeg import LABELS, write_cohort

__all__ = ["Setting", "World", "load", "main", "measure", "paint", "settings"]

_TO_NEW = 9  # from the seed of the first cohort to that of the new scans


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is compared."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """How heads are trained; the number of patients decides the rest, as in a run."""
    n_components: int | None = None
    """Components kept, whatever the number of patients; None leaves it to that."""
    taught: bool = False
    """Whether labels of slices teach the attention besides."""


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Scans with labels of scans and of slices."""

    table: LabelTable
    """The scans."""
    bags: PatientBags
    """Theirs."""
    taught: Mapping[str, PatientBags]
    """By label: the same with labels of slices."""


def settings() -> dict[str, Setting]:
    """What is compared by default."""
    heads = ("gated", "ordered", "mean", "max", "lse", "additive")
    some = {head: Setting(train=TrainConfig(head=head)) for head in heads}
    for head in ("gated", "ordered"):
        for n_components in (26, 128):  # 26: a third as many as scans
            some[f"{head}, {n_components} components"] = replace(
                some[head], n_components=n_components
            )
        longer = TrainConfig(head=head, fixed_steps=240)
        some[f"{head}, 240 steps"] = Setting(train=longer)
        some[f"{head}, 26 components, 240 steps"] = Setting(train=longer, n_components=26)
        some[f"{head}, taught by slices"] = replace(some[head], taught=True)
        some[f"{head}, 26 components, taught by slices"] = Setting(
            train=TrainConfig(head=head), n_components=26, taught=True
        )
    return some


def paint(
    work: Path, seeds: Sequence[int], *, n_scans: int, n_new: int, side_px: int = 650
) -> None:
    """Paint and embed cohorts to learn from and new scans, unless it is done."""
    for seed, n in (*((seed, n_scans) for seed in seeds), (seeds[0] + _TO_NEW, n_new)):
        if not (work / str(seed)).exists():
            write_cohort(work / str(seed), n_scans=n, seed=seed, side_px=side_px)
        arguments = ["embed", "--series", work / str(seed) / "series.csv", "--bags", work / "bags"]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exit_code:
            raise SystemExit(result.output)


def load(work: Path, seed: int) -> World:
    """A cohort that :func:`paint` made."""
    file = work / str(seed) / "slices.csv"
    table = read_label_table(file, LABELS)
    bags = load_patient_bags(table.patients, open_bags(work / "bags"))
    taught = {
        name: bags.with_instance_labels(read_instance_labels(file, [name])) for name in LABELS
    }
    return World(table=table, bags=bags, taught=taught)


def measure(setting: Setting, worlds: Sequence[World], new: World) -> dict[str, object]:
    """Learn every label on every cohort, and judge the new scans."""
    aurocs: list[list[float]] = []
    looked: list[tuple[float, float]] = []
    started = time.perf_counter()
    for number, world in enumerate(worlds):
        aurocs.append([])
        for place, name in enumerate(LABELS):
            auroc, seen = _judge(setting, world, new, place=place, name=name, seed=number)
            aurocs[-1].append(auroc)
            looked += seen
    by_label = np.mean(aurocs, axis=0)
    attention, hits = np.mean(looked, axis=0)
    seconds = (time.perf_counter() - started) / (len(worlds) * len(LABELS))
    return {
        "auroc": {
            "mean": round(float(by_label.mean()), 3),
            "by cohort": [round(float(np.mean(each)), 3) for each in aurocs],
            **{n: round(float(v), 3) for n, v in zip(LABELS, by_label, strict=True)},
        },
        "attention": {"auroc": round(float(attention), 3), "hits": round(float(hits), 3)},
        "seconds": round(seconds, 1),
    }


def _judge(
    setting: Setting, world: World, new: World, *, place: int, name: str, seed: int
) -> tuple[float, list[tuple[float, float]]]:
    """AUROC of one label, and of the attention of each new scan that has it."""
    cohort = world.table.cohort_of(name)
    fold = Fold(repeat=0, index=0, train_ids=cohort.patient_ids, test_ids=())
    n_images = sum(world.bags.n_tiles.values())
    train = resolve_components(setting.train, [fold], n_images=n_images)
    if setting.n_components:
        train = replace(train, n_components=setting.n_components)
    ensemble = train_ensemble(
        world.taught[name] if setting.taught else world.bags,
        dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True)),
        n_classes=2, config=train, seed=(seed,),
    )  # fmt: skip
    scores, seen = [], []
    truth = new.table.truth[:, place]
    for patient, has_it in zip(new.table.patients.patient_ids, truth.tolist(), strict=True):
        logits, attention = predict_members(ensemble.heads, new.bags.features[patient])
        scores.append(float((logits[:, 1] - logits[:, 0]).mean()))
        if has_it:
            marks, weights = new.taught[name].instance_labels[patient], attention.mean(axis=0)
            seen.append((float(roc_auc_score(marks, weights)), float(marks[weights.argmax()])))
    return float(roc_auc_score(truth, scores)), seen


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, help="kept; by default a folder that is removed")
    parser.add_argument("--cohorts", type=int, default=2, help=f"at most {_TO_NEW}")
    parser.add_argument("--first-seed", type=int, default=20, help="of the first cohort")
    parser.add_argument("--scans", type=int, default=80)
    parser.add_argument("--new", type=int, default=90)
    parser.add_argument("--side-px", type=int, default=650)
    parser.add_argument("--only", help="settings, joined by ;")
    asked = parser.parse_args(arguments)
    if asked.cohorts > _TO_NEW:
        parser.error(f"at most {_TO_NEW} cohorts")
    seeds = range(asked.first_seed, asked.first_seed + asked.cohorts)
    known = settings()
    chosen = asked.only.split(";") if asked.only else list(known)
    with tempfile.TemporaryDirectory() as beside:
        work = asked.work or Path(beside)
        paint(work, seeds, n_scans=asked.scans, n_new=asked.new, side_px=asked.side_px)
        worlds = [load(work, seed) for seed in seeds]
        new = load(work, seeds[0] + _TO_NEW)
        for name in chosen:
            sys.stdout.write(json.dumps({name: measure(known[name], worlds, new)}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
