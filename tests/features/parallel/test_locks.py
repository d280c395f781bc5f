from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from features.errors import OutputError
from features.parallel.locks import FolderLocks


def test_a_name_is_locked_once_and_again_when_released(tmp_path: Path) -> None:
    with FolderLocks(tmp_path / "c") as one, FolderLocks(tmp_path / "c") as other:
        assert one.acquire("a")
        assert not other.acquire("a")
        assert other.acquire("b")
        one.release("a")
        assert other.acquire("a")
    assert not (tmp_path / "c").exists()


def test_a_folder_in_which_none_can_be_made_is_named_and_not_that_of_the_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_: object) -> None:
        if self.name == ".claims":
            raise PermissionError(errno.EACCES, "Permission denied")

    stat = Path.stat

    def refuse_stat(self: Path, **options: bool) -> os.stat_result:
        refuse(self)
        return stat(self, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "stat", refuse_stat)  # as of a folder that may not be searched
    with pytest.raises(OutputError, match=r"Make the folder writable") as caught:
        FolderLocks(tmp_path / ".claims")
    assert str(caught.value).startswith(f"{tmp_path}: cannot be written (Permission denied)")
    monkeypatch.undo()
    (tmp_path / ".claims").touch()
    with pytest.raises(OutputError, match=r"\.claims: cannot be written \(File exists\)"):
        FolderLocks(tmp_path / ".claims")


def test_a_lock_not_touched_for_long_is_taken_over_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with FolderLocks(folder) as one, FolderLocks(folder) as other:
        (folder / "a.claim").write_text('{"token": "x", "pid": 1, "where": "elsewhere"}')
        assert not one.acquire("a")
        past = time.time() - 600
        os.utime(folder / "a.claim", (past, past))
        assert one.acquire("a")
        assert not other.acquire("a")


@pytest.mark.parametrize("content", ["", "5", "[]", '{"pid": null, "where": ""}', "{}"])
def test_an_unreadable_lock_counts_as_alive_until_it_is_old(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "c"
    with FolderLocks(folder) as one:
        (folder / "a.claim").write_text(content)
        assert not one.acquire("a")
        past = time.time() - 600
        os.utime(folder / "a.claim", (past, past))
        assert one.acquire("a")


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs process namespaces")
def test_the_lock_of_a_killed_process_is_free_at_once(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "c"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from features.parallel.locks import FolderLocks\n"
        "locks = FolderLocks(Path(sys.argv[1])).__enter__()\n"
        "print(locks.acquire('a'), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    processes.append(holder)
    with FolderLocks(folder) as other:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not other.acquire("a")
        holder.kill()
        holder.wait()
        assert other.acquire("a")


def test_what_dead_processes_left_is_removed_and_what_others_hold_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    gone = '{"token": "x", "pid": 1, "where": "elsewhere"}'
    past = time.time() - 600
    with FolderLocks(folder) as one:
        for name in ("a.claim", "a.takeover", "b.0123", ".clock-x"):
            (folder / name).write_text(gone)
            os.utime(folder / name, (past, past))
        with FolderLocks(folder) as other:
            assert one.acquire("mine")
            assert not other.acquire("mine")
            other.release("mine")
        left = {path.name for path in folder.iterdir()}
        assert "mine.claim" in left
        assert not left & {"a.claim", "a.takeover", "b.0123", ".clock-x"}
    assert not folder.exists()


def test_a_folder_that_others_took_away_is_made_again(tmp_path: Path) -> None:
    with FolderLocks(tmp_path / "c") as one:
        with FolderLocks(tmp_path / "c"):
            pass
        assert not (tmp_path / "c").exists()
        assert one.acquire("a")


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_a_clock_that_jumps_keeps_no_lock_of_the_dead_alive(tmp_path: Path, jump_s: int) -> None:
    folder = tmp_path / "c"
    with FolderLocks(folder) as one:
        (folder / "a.claim").write_text('{"token": "x", "pid": 1, "where": "elsewhere"}')
        touched_at = time.time() - jump_s  # as if the clock had jumped since
        os.utime(folder / "a.claim", (touched_at, touched_at))
        assert one.acquire("a")


@pytest.mark.parametrize("jump_s", [-86_400, 600, 86_400])
def test_a_heartbeat_keeps_a_lock_alive_also_when_the_clock_jumps(
    tmp_path: Path, jump_s: int
) -> None:
    folder = tmp_path / "c"
    with FolderLocks(folder, heartbeat_s=0.05) as one, FolderLocks(folder) as other:
        assert one.acquire("a")
        touched_at = time.time() - jump_s
        os.utime(folder / "a.claim", (touched_at, touched_at))
        waited_until = time.monotonic() + 30
        while abs((folder / "a.claim").stat().st_mtime - time.time()) > 30:
            assert time.monotonic() < waited_until
            time.sleep(0.05)
        assert not other.acquire("a")


def test_locks_make_no_folder_anew_that_was_taken_away(tmp_path: Path) -> None:
    (tmp_path / "bags").mkdir()
    with FolderLocks(tmp_path / "bags" / ".claims") as locks:
        shutil.rmtree(tmp_path / "bags")
        with pytest.raises(OutputError, match=r"cannot be written \(No such file.*Bring the fold"):
            locks.acquire("a")
    assert not (tmp_path / "bags").exists()
