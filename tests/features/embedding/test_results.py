from __future__ import annotations

from pathlib import Path

import pytest

from features.embedding.results import SlideResult, Status, write_results
from features.parallel.locks import shared_locks
from features.utils.tables import read_table


@pytest.mark.parametrize(("earlier", "kept"), [("done", "done"), ("failed", "skipped")])
def test_a_finished_bag_of_which_the_table_says_that_it_failed_is_told_as_skipped(
    tmp_path: Path, earlier: Status, kept: str
) -> None:
    with shared_locks(tmp_path / ".claims") as locks:
        for status in (earlier, "skipped"):
            result = SlideResult(slide_id="s0", status=status, message=f"as {status}")
            write_results(tmp_path, [result], locks)
    (row,) = read_table(tmp_path / "embed.csv").to_dict("records")
    assert (row["status"], row["message"]) == (kept, f"as {kept}")
