from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from features.claims import Claims


def test_a_name_is_claimed_once_and_again_when_given_back(tmp_path: Path) -> None:
    with Claims(tmp_path / "c") as one, Claims(tmp_path / "c") as other:
        assert one.take("a")
        assert not other.take("a")
        assert other.take("b")
        one.release("a")
        assert other.take("a")
    assert not (tmp_path / "c").exists()


def test_a_claim_not_touched_for_long_is_taken_over_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with Claims(folder, dead_s=5) as one, Claims(folder, dead_s=5) as other:
        (folder / "a.claim").write_text('{"token": "x", "pid": 1, "where": "elsewhere"}')
        assert not one.take("a")
        past = time.time() - 60
        os.utime(folder / "a.claim", (past, past))
        assert one.take("a")
        assert not other.take("a")


def test_an_unreadable_claim_counts_as_alive_until_it_is_old(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with Claims(folder, dead_s=5) as one:
        (folder / "a.claim").write_text("")
        assert not one.take("a")
        past = time.time() - 60
        os.utime(folder / "a.claim", (past, past))
        assert one.take("a")


def test_a_heartbeat_keeps_a_claim_alive(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with Claims(folder, beat_s=0.05, dead_s=0.5) as one, Claims(folder, dead_s=0.5) as other:
        assert one.take("a")
        time.sleep(1.0)
        assert not other.take("a")


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs process namespaces")
def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    code = (
        "import sys, time; from pathlib import Path; from features.claims import Claims\n"
        "claims = Claims(Path(sys.argv[1])).__enter__()\n"
        "print(claims.take('a'), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    with holder, Claims(folder) as other:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not other.take("a")
        holder.kill()
        holder.wait()
        assert other.take("a")


def test_what_dead_processes_left_is_swept_up_and_what_others_hold_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    gone = '{"token": "x", "pid": 1, "where": "elsewhere"}'
    past = time.time() - 60
    with Claims(folder, dead_s=5) as one:
        for name in ("a.claim", "a.takeover", "b.0123", ".clock-x"):
            (folder / name).write_text(gone)
            os.utime(folder / name, (past, past))
        with Claims(folder, dead_s=5) as other:
            assert one.take("mine")
            assert not other.take("mine")
            other.release("mine")
        left = {path.name for path in folder.iterdir()}
        assert "mine.claim" in left
        assert not left & {"a.claim", "a.takeover", "b.0123", ".clock-x"}
    assert not folder.exists()


def test_a_folder_that_others_took_away_is_made_again(tmp_path: Path) -> None:
    with Claims(tmp_path / "c") as one:
        with Claims(tmp_path / "c"):
            pass
        assert not (tmp_path / "c").exists()
        assert one.take("a")
