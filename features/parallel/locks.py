"""Locks on names in a folder that several processes and machines share."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread

from features.errors import OutputError
from features.utils.files import make_folder, path_exists, write_error

__all__ = ["FolderLocks", "release_shared_locks", "shared_locks"]

_STALE_S = 90.0


class FolderLocks:
    """Locks on names in a folder, kept alive by a heartbeat and taken over when stale.

    A lock is a small file, created with a call that fails if it exists (``O_EXCL``); local file
    systems, and NFS from version 3, do this in one step. While its owner lives, a thread touches it
    every ten seconds. A lock is stale if it was not touched for ninety seconds by the clock of the
    file system, as clocks of machines may differ by hours. If owner and requester run in the same
    process namespace of the same boot, the lock of a process that has ended is stale at once. A
    touch in the future counts by its distance too: the clock was set back since then, and the next
    touch of a living owner carries the new time.

    If a lock is ever taken from a living owner, e.g. on a machine that was suspended for longer,
    both write the same whole files: work is lost, nothing else.

    Use it as a context manager: the heartbeat runs within the block. The folder is created if it is
    missing.
    """

    def __init__(self, folder: Path, *, heartbeat_s: float = 10.0) -> None:
        make_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:  # A folder that the user did not name is of no use in a message.
            raise write_error(folder if path_exists(folder) else folder.parent, error) from error
        self._folder = folder
        self._heartbeat_s = heartbeat_s
        self._token = uuid.uuid4().hex
        self._clock = folder / f".clock-{self._token}"
        self._owned: set[Path] = set()
        self._stop = Event()
        self._thread = Thread(target=self._heartbeat, name="heartbeat", daemon=True)

    def __enter__(self) -> FolderLocks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for path in list(self._owned):
            self._unlink(path)
        self._remove_stale()
        self._unlink(self._clock)
        with suppress(OSError):  # It is not empty while others work.
            self._folder.rmdir()

    def acquire(self, name: str) -> bool:
        """Acquire the lock on a name; return False if a process alive within 90 seconds has it.

        Raises OutputError if the folder cannot be written to.
        """
        try:
            return self._acquire(name)
        except OSError as error:
            raise write_error(self._folder, error) from error

    def _acquire(self, name: str) -> bool:
        path = self._folder / f"{name}.claim"
        if self._create(path):
            self._owned.add(path)
            return True
        if not self._is_stale(path):
            return False
        # Only the owner of this second file may replace a stale lock, after checking once more.
        guard = path.with_suffix(".takeover")
        if not self._create(guard):
            if self._is_stale(guard):
                self._unlink(guard)
            return False
        try:
            if not self._is_stale(path):
                return False
            temporary = path.with_suffix(f".{self._token}")
            temporary.write_text(self._owner_record())
            temporary.replace(path)
            self._owned.add(path)
            return True
        finally:
            self._unlink(guard)

    def release(self, name: str) -> None:
        """Release the lock on a name; locks of others stay."""
        path = self._folder / f"{name}.claim"
        if path in self._owned:
            self._owned.discard(path)
            self._unlink(path)

    def _remove_stale(self) -> None:
        """Remove the files of processes that have ended."""
        with suppress(OSError, OutputError):
            left = [path for path in self._folder.iterdir() if path != self._clock]
            # A stale guard would block the takeover of its lock, so locks come last.
            for path in sorted(left, key=lambda path: path.suffix == ".claim"):
                if path.suffix == ".claim":  # Acquired first, as its owner may just wake up.
                    if self._is_stale(path) and self.acquire(path.stem):
                        self.release(path.stem)
                elif self._is_stale(path):
                    self._unlink(path)

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        except FileNotFoundError:  # Another process removed the empty folder.
            self._folder.mkdir(exist_ok=True)  # Not its parent: only the user removes that.
            return self._create(path)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self._owner_record())
        except OSError:  # The disk is full: an empty file would count as a living lock.
            self._unlink(path)
            raise
        return True

    def _owner_record(self) -> str:
        return json.dumps({"token": self._token, "pid": os.getpid(), "where": _namespace()})

    def _is_stale(self, path: Path) -> bool:
        try:
            age_s = abs(self._now() - path.stat().st_mtime)
            owner = json.loads(path.read_text())
            namespace, pid = owner["where"], int(owner["pid"])
        except FileNotFoundError:
            return False  # It was just released.
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            return age_s > _STALE_S  # It is not written yet, or another program's.
        return age_s > _STALE_S or (namespace == _namespace() and not _is_alive(pid))

    def _now(self) -> float:
        """Return the time by the clock of the file system, s."""
        self._clock.write_text(self._owner_record())
        return self._clock.stat().st_mtime

    def _heartbeat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            for path in list(self._owned):
                with suppress(OSError):
                    os.utime(path)

    @staticmethod
    def _unlink(path: Path) -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


_SHARED: dict[Path, tuple[FolderLocks, int]] = {}
"""Open locks of this process and their number of users, by folder."""
_SHARED_GUARD = Lock()


@contextmanager
def shared_locks(folder: Path) -> Iterator[FolderLocks]:
    """Open the locks of a folder, or share those that this process has open."""
    key = folder.absolute()
    with _SHARED_GUARD:
        locks, n_users = _SHARED.get(key) or (FolderLocks(folder).__enter__(), 0)
        _SHARED[key] = (locks, n_users + 1)
    try:
        yield locks
    finally:
        with _SHARED_GUARD:
            locks, n_users = _SHARED.pop(key)
            if n_users > 1:
                _SHARED[key] = (locks, n_users - 1)
            else:
                locks.__exit__(None, None, None)


def release_shared_locks() -> None:
    """Release all locks of this process, which is about to end without closing them."""
    for locks, _ in list(_SHARED.values()):
        locks.__exit__(None, None, None)


def _namespace() -> str:
    """Return the name of the set of processes within which a process number is unique."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    # Without both, containers of one name may hold different processes: then only time decides.
    return "/".join(parts) if len(parts) == 3 else f"{uuid.uuid4()}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Return whether a process has ended but is not reaped, and so still accepts signals."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
