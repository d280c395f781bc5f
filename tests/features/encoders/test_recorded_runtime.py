from __future__ import annotations

import errno
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from features.encoders.config import record_runtime, recorded_runtime
from features.errors import OutputError


def test_the_first_choice_of_a_folder_stands(tmp_path: Path) -> None:
    assert recorded_runtime(tmp_path) is None
    assert record_runtime(tmp_path, "onnx float32 batch 64") == "onnx float32 batch 64"
    assert record_runtime(tmp_path, "eager float32 batch 8") == "onnx float32 batch 64"
    assert recorded_runtime(tmp_path) == "onnx float32 batch 64"
    assert [path.name for path in tmp_path.iterdir()] == ["execution.txt"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links_keeps_the_first_choice_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    assert record_runtime(tmp_path, "eager float32 batch 8") == "eager float32 batch 8"
    assert record_runtime(tmp_path, "onnx float32 batch 64") == "eager float32 batch 8"
    assert [path.name for path in tmp_path.iterdir()] == ["execution.txt"]


@pytest.mark.ci
def test_processes_that_choose_at_once_agree(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        recorded = list(pool.map(partial(record_runtime, tmp_path), map(str, range(20))))
    assert set(recorded) == {recorded_runtime(tmp_path)}


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        record_runtime(tmp_path / "gone", "eager")
