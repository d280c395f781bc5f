"""Folders of very many slides, and runs that never seem to end."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from features.slides.manifest import check_unique_ids
from features.slides.search import find_slides
from tests.features.slides.test_search import write_dicom

N_SLIDES = 50_000


@pytest.mark.slow
def test_fifty_thousand_slides_are_found_in_little_memory(tmp_path: Path) -> None:
    for number in range(N_SLIDES):
        (tmp_path / f"{number:06d}.tif").touch()  # empty: whoever opened one would fail
    tracemalloc.start()
    try:
        slides = find_slides([tmp_path])
        check_unique_ids(slides, option="--bags")
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(slides) == N_SLIDES
    assert most_bytes < 2000 * N_SLIDES


def test_the_files_of_one_dicom_slide_are_not_taken_for_slides_however_many_they_are(
    tmp_path: Path,
) -> None:
    first = write_dicom(tmp_path / "000000.dcm", "1.2")
    for number in range(1, 2000):
        (tmp_path / f"{number:06d}.dcm").hardlink_to(first)
    assert find_slides([tmp_path]) == [tmp_path / "000000.dcm"]


@pytest.mark.slow
def test_memory_and_open_files_stay_flat_over_many_slides() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.endurance", "--slides", "400", "--every", "50"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    report = json.loads(done.stdout)
    samples = report["samples"]
    assert report["n_tiles"] >= 400
    early, late = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    for what in ("n_files", "n_threads"):
        assert max(s[what] for s in late) <= max(s[what] for s in early) + 8
    assert late[-1]["rss_mb"] - early[1]["rss_mb"] < 30
