"""The benchmark beside other programs: which are skipped, and what it prints of those that run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.peers import Run, compare, find_peers


def environment(folder: Path, *, exits: int) -> Path:
    """Return a new environment whose Python ends with this status, whatever it is told."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {exits}\n")
    python.chmod(0o755)
    return folder


def test_a_peer_that_is_absent_is_skipped_with_the_reason(tmp_path: Path) -> None:
    there, broken = (environment(tmp_path / name, exits=exits) for name, exits in
                     (("there", 0), ("broken", 1)))  # fmt: skip
    pythons, skipped = find_peers(
        [f"clam={there}", f"trident={broken}", f"tiatoolbox={tmp_path / 'none'}"]
    )
    assert pythons == {"clam": there / "bin" / "python"}
    assert skipped == {
        "lazyslide": "not named with --peer",
        "trident": f"cannot be imported by {broken / 'bin' / 'python'}",
        "tiatoolbox": f"cannot be imported by {tmp_path / 'none' / 'bin' / 'python'}",
    }
    with pytest.raises(SystemExit, match="expected one of lazyslide, tiatoolbox, trident, clam"):
        find_peers([f"other={there}"])


def stand_in(n_found: int, cpu_s: list[float]) -> Run:
    """A program that finds so many tiles, and needs these seconds in turn."""
    seconds = iter(cpu_s)

    def run(slide: Path, out: Path, n_tiles: int) -> dict[str, float]:
        n_tiles = min(n_found, n_tiles)
        return {"n_tiles": n_tiles, "cpu_s": next(seconds), "peak_rss_gib": 0.5}

    return run


def test_ratios_are_of_the_same_round_and_each_run_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report: dict[str, Any] = {"n_runs": 3}
    runs = {"mil": stand_in(40, [9, 1, 2, 30]), "clam": stand_in(20, [9, 10, 4, 60])}
    compare(report, tmp_path / "s.tif", tmp_path / "real", runs, n_runs=3, most_tiles=30)
    assert report["real"] == {
        "mil": {"tiles_found": 30, "cpu_s_per_tile": 0.1, "peak_rss_gib": 0.5},
        "clam": {"tiles_found": 20, "cpu_s_per_tile": 0.5, "peak_rss_gib": 0.5},
        "n_tiles": 20,
        "mil_over_clam": 0.5,  # the median of 0.1, 0.5 and 0.5
    }
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(told) == 8
    assert told[-1] == report
    assert told[3]["real"]["mil_over_clam"] == 0.1
