"""A cohort larger than memory: bags are left in their files, and training stays within a limit.

Bags are generated and written first. Then a fresh process, whose own memory is limited by the
kernel (its anonymous memory, which is all but file caches), reads the cohort, runs over all bags
once more, and trains one ensemble for a few epochs. Prints one JSON object; rates are bytes of
embeddings, with whatever the machine still caches of the files.

    python -m tests.benchmarks.streaming --patients 10000 --tiles 200 --memory-gib 4
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from features.bags.h5 import find_bags, write_bag
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.data.features import OnDiskFeatures
from mil.training.config import TrainConfig
from mil.training.ensemble import train_ensemble
from tests.fakes import make_bag

__all__ = ["main"]


def generate(folder: Path, *, n_patients: int, n_tiles: int, dim: int) -> None:
    """Bags of one slide per patient, and their table; a third of the patients is shifted."""
    (folder / "bags").mkdir()
    rng = np.random.default_rng(0)
    tile = rng.standard_normal((n_tiles, dim), np.float32)
    rows = ["image_id,patient_id,label"]
    for number in range(n_patients):
        name, label = f"{number:06d}", number % 3 == 0
        bag = make_bag(name, n_tiles=n_tiles, dim=1)
        # The same noise moved along: other bytes a bag at no cost of drawing them.
        features = np.roll(tile, int(rng.integers(tile.size))) + 0.05 * label
        meta = replace(bag.meta, fingerprint=replace(bag.meta.fingerprint, dim=dim))
        write_bag(
            folder / "bags" / f"{name}.h5",
            replace(bag, features=features.astype(np.float16), meta=meta),
        )
        rows.append(f"{name},{name},{'AB'[label]}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")


def peak_bytes() -> int:
    """Largest resident memory of this process.

    Not ``ru_maxrss``: on Linux a new program inherits there what its parent held.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def train(folder: Path, *, memory_gib: float, n_epochs: int) -> dict[str, object]:
    """What the limited process does."""
    limit = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    cohort = read_cohort(folder / "train.csv", labelled=True)
    started = time.perf_counter()
    bags = load_patient_bags(cohort, find_bags(folder / "bags"), most_bytes=limit // 4)
    loaded = time.perf_counter()
    n_bytes = sum(tiles.nbytes for tiles in bags.features.values())
    read = time.perf_counter()
    ensemble = train_ensemble(
        bags,
        dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True)),
        n_classes=2,
        config=TrainConfig(n_members=1, early_stopping=True, max_epochs=n_epochs),
        seed=(0,),
    )
    trained = time.perf_counter()
    return {
        "n_patients": len(cohort.patients),
        "embeddings_gib": n_bytes / 2**30,
        "limit_gib": memory_gib,
        "peak_gib": peak_bytes() / 2**30,
        "in_files": isinstance(bags.features, OnDiskFeatures),
        "check_mib_per_s": n_bytes / 2**20 / (loaded - started),
        "read_mib_per_s": n_bytes / 2**20 / (read - loaded),
        "train_s": trained - read,
        "n_epochs": n_epochs,
        "stop_loss": [record.val_loss for record in ensemble.history],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--tiles", type=int, default=200, help="tiles of a patient")
    parser.add_argument("--dim", type=int, default=1280, help="length of an embedding")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="limit of the process")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.folder:
        result = train(given.folder, memory_gib=given.memory_gib, n_epochs=given.epochs)
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, n_patients=given.patients, n_tiles=given.tiles, dim=given.dim)
        options = ["--folder", name, "--memory-gib", str(given.memory_gib)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.streaming", *options,
             "--epochs", str(given.epochs)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    sys.stdout.write(json.dumps(json.loads(done.stdout), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
