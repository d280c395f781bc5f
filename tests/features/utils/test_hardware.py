"""What this process may use of a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from features.utils import hardware
from features.utils.hardware import CPU_COUNT, physical_core_count


@pytest.mark.parametrize(("allowed", "n_cores"), [({0, 1, 2, 3}, 2), ({0, 2}, 1), ({1}, 1)])
def test_threads_of_one_core_count_once(
    allowed: set[int], n_cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu in range(4):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0,2\n" if cpu % 2 == 0 else "1,3\n")
    monkeypatch.setattr(hardware, "_CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    assert physical_core_count() == n_cores


def test_all_processors_count_where_the_machine_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_CPUS", tmp_path)
    assert physical_core_count() == CPU_COUNT
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert physical_core_count() == CPU_COUNT
