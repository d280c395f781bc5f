from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from features.errors import OutputError
from features.pinning import pin_execution, pinned_execution


def test_the_first_choice_of_a_folder_stands(tmp_path: Path) -> None:
    assert pinned_execution(tmp_path) is None
    assert pin_execution(tmp_path, "onnx float32 batch 64") == "onnx float32 batch 64"
    assert pin_execution(tmp_path, "eager float32 batch 8") == "onnx float32 batch 64"
    assert pinned_execution(tmp_path) == "onnx float32 batch 64"
    assert [path.name for path in tmp_path.iterdir()] == ["execution.txt"]


def test_many_that_choose_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:  # one thread a process: the part is named by the process
        found = list(pool.map(lambda n: pin_execution(tmp_path, f"way {n}"), range(5)))
    assert set(found) == {"way 0"}


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        pin_execution(tmp_path / "gone", "eager")
