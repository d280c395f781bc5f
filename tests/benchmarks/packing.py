"""Reading bags from a packed store compared with HDF5, one file per slide.

Both sides read the same bags in one process, in turn, run by run: all of them as a training does
that keeps them in memory (whole bags in the order of the table), their features alone in the order
of the table, and their features in a random order, as a training does that does not keep them.
Every bag is read once before anything is timed, so that both sides read from the page cache: what
is compared is the readers, not the disk. ``zarr`` is the same rows by zarr's own reader. Prints one
JSON object; times are medians in seconds, and ``speedup`` is HDF5's time over ours, of the medians.
Then the time to learn what every bag says about itself.

    python -m tests.benchmarks.packing --bags 300 --runs 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import zarr

from features.bags.bag import BagRef
from features.bags.h5 import find_bags, read_bag, read_bag_info, read_features, write_bag
from features.bags.store import BagStore
from features.bags.store_writer import write_store
from features.utils.hardware import CPU_COUNT
from tests.fakes import make_bag

DIM = 1280
MOST_TILES = 1500

Read = Callable[[str], object]


def write_bags(folder: Path, n_bags: int) -> None:
    """Bags of 1 to 1,500 tiles."""
    rng = np.random.default_rng(0)
    for number in range(n_bags):
        name = f"s{number:05d}"
        bag = make_bag(name, n_tiles=int(rng.integers(1, MOST_TILES)), dim=DIM)
        write_bag(folder / f"{name}.h5", bag)


def seconds(read: Read, names: Sequence[str]) -> float:
    started = time.perf_counter()
    for name in names:
        read(name)
    return time.perf_counter() - started


def compare(sides: Mapping[str, Read], names: Sequence[str], n_runs: int) -> dict[str, float]:
    """All sides in turn, each run in the other order."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for run in range(n_runs):
        for side in list(sides)[:: 1 if run % 2 else -1]:
            times[side].append(seconds(sides[side], names))
    result = {f"{side}_s": round(median(values), 3) for side, values in times.items()}
    result["speedup"] = round(median(times["hdf5"]) / median(times["packed"]), 2)
    return result


def by_zarr(store: Path, packed: BagStore) -> Read:
    """The rows of a bag by zarr's own reader."""
    features = zarr.open_group(store, mode="r")["features"]
    assert isinstance(features, zarr.Array)
    rows = {
        name: slice(bag.first_row, bag.first_row + bag.info.n_tiles) for name, bag in packed.items()
    }
    return lambda name: features[rows[name]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bags", type=int, default=300, help="bags, 1.9 MB each on average")
    parser.add_argument("--runs", type=int, default=5, help="runs a side")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name) / "bags", Path(name) / "bags.zarr"
        folder.mkdir()
        write_bags(folder, asked.bags)
        started = time.perf_counter()
        done = write_store(folder, store, overwrite=False, on_bag=lambda n_done, n_all: None)
        pack_s = time.perf_counter() - started
        files: Mapping[str, BagRef] = find_bags(folder)
        packed = BagStore(store)
        in_order = list(files)
        shuffled = np.random.default_rng(1).permutation(in_order).tolist()
        for each in in_order:
            read_bag(files[each])
            read_bag(packed[each])
        features: dict[str, Read] = {
            "hdf5": lambda name: read_features(files[name]),
            "packed": lambda name: read_features(packed[name]),
            "zarr": by_zarr(store, packed),
        }
        bags: dict[str, Read] = {
            "hdf5": lambda name: read_bag(files[name]),
            "packed": lambda name: read_bag(packed[name]),
        }
        heads: dict[str, Read] = {
            "hdf5": lambda name: read_bag_info(files[name]),
            "packed": lambda name: read_bag_info(packed[name]),
        }
        opened = [seconds(lambda _: BagStore(store), [""]) for _ in range(asked.runs)]
        report = {
            "n_cores": CPU_COUNT, "n_runs": asked.runs, "n_bags": done.n_bags,
            "n_tiles": done.n_tiles, "dim": DIM, "gb": round(done.n_bytes / 1e9, 3),
            "h5py": h5py.__version__, "zarr": zarr.__version__,
            "pack_s": round(pack_s, 2), "open_s": round(median(opened), 4),
            "whole_bags_in_order": compare(bags, in_order, asked.runs),
            "features_in_order": compare(features, in_order, asked.runs),
            "features_at_random": compare(features, shuffled, asked.runs),
            "heads_in_order": compare(heads, in_order, asked.runs),
        }  # fmt: skip
    print(json.dumps(report, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
