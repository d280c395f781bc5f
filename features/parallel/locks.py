"""Who works on which slide, when several processes share one folder of bags."""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from features.errors import OutputError
from features.utils.files import make_folder, write_error

__all__ = ["FolderLocks"]

_BEAT_S = 10.0
_DEAD_S = 90.0


class FolderLocks:
    """Claims on names in a folder, kept alive by a heartbeat, taken over from the dead.

    A claim is a small file, made with a call that fails where it exists (``O_EXCL``), which file
    systems on one machine and NFS from version 3 on do in one step. While its owner lives, a thread
    touches it every ten seconds. A claim is dead when it was not touched for ninety seconds, by the
    clock of the file system itself: clocks of machines may differ by hours. Where owner and asker
    run in the same process namespace of the same boot, a process that is gone is dead at once, so
    that work goes on at once after a kill. A touch in the future counts by its distance, too: the
    clock was set back since, and the next touch of a living owner tells the new time.

    Were a claim ever taken from a living owner that slept for longer than that (a suspended
    machine), or whose clock jumped between two touches, both would write the same bytes, each
    whole: work is lost, nothing else.

    Parameters
    ----------
    folder
        Where the claims lie; made if missing.
    beat_s
        Seconds between touches.
    dead_s
        Seconds without a touch after which a claim is dead.
    """

    def __init__(self, folder: Path, *, beat_s: float = _BEAT_S, dead_s: float = _DEAD_S) -> None:
        make_folder(folder)
        self._folder = folder
        self._beat_s = beat_s
        self._dead_s = dead_s
        self._token = uuid.uuid4().hex
        self._clock = folder / f".clock-{self._token}"
        self._mine: set[Path] = set()
        self._stop = Event()
        self._thread = Thread(target=self._heartbeat, name="claims", daemon=True)

    def __enter__(self) -> FolderLocks:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for path in list(self._mine):
            self._unlink(path)
        self._remove_stale()
        self._unlink(self._clock)
        with suppress(OSError):  # not empty: others still work
            self._folder.rmdir()

    def take(self, name: str) -> bool:
        """Claim a name; False where somebody alive has it.

        Raises
        ------
        OutputError
            If the folder cannot be written to.
        """
        try:
            return self._take(name)
        except OSError as error:
            raise write_error(self._folder, error) from error

    def _take(self, name: str) -> bool:
        path = self._folder / f"{name}.claim"
        if self._create(path):
            self._mine.add(path)
            return True
        if not self._is_stale(path):
            return False
        # Only who holds this second file may replace a dead claim, and only after one more look.
        guard = path.with_suffix(".takeover")
        if not self._create(guard):
            if self._is_stale(guard):
                self._unlink(guard)
            return False
        try:
            if not self._is_stale(path):
                return False
            beside = path.with_suffix(f".{self._token}")
            beside.write_text(self._owner_record())
            beside.replace(path)
            self._mine.add(path)
            return True
        finally:
            self._unlink(guard)

    def release(self, name: str) -> None:
        """Give a name back; what others have claimed stays theirs."""
        path = self._folder / f"{name}.claim"
        if path in self._mine:
            self._mine.discard(path)
            self._unlink(path)

    def _remove_stale(self) -> None:
        """Remove what the dead left behind."""
        with suppress(OSError, OutputError):
            left = [path for path in self._folder.iterdir() if path != self._clock]
            # A dead guard would keep its claim from being taken over: claims come last.
            for path in sorted(left, key=lambda path: path.suffix == ".claim"):
                if path.suffix == ".claim":  # by way of taking it over: it may just come alive
                    if self._is_stale(path) and self.take(path.stem):
                        self.release(path.stem)
                elif self._is_stale(path):
                    self._unlink(path)

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        except FileNotFoundError:  # others who left took the empty folder with them
            self._folder.mkdir(exist_ok=True)  # without its parent, which nobody but the user takes
            return self._create(path)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self._owner_record())
        except OSError:  # a full disk: an empty claim would look alive for a while
            self._unlink(path)
            raise
        return True

    def _owner_record(self) -> str:
        return json.dumps({"token": self._token, "pid": os.getpid(), "where": _namespace()})

    def _is_stale(self, path: Path) -> bool:
        try:
            age_s = abs(self._now() - path.stat().st_mtime)
            card = json.loads(path.read_text())
            where, pid = card["where"], int(card["pid"])
        except FileNotFoundError:
            return False  # given back just now
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            return age_s > self._dead_s  # not written yet, or by another program
        return age_s > self._dead_s or (where == _namespace() and not _is_alive(pid))

    def _now(self) -> float:
        """Seconds by the clock of the file system."""
        self._clock.write_text(self._owner_record())
        return self._clock.stat().st_mtime

    def _heartbeat(self) -> None:
        while not self._stop.wait(self._beat_s):
            for path in list(self._mine):
                with suppress(OSError):
                    os.utime(path)

    @staticmethod
    def _unlink(path: Path) -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _namespace() -> str:
    """Names the set of processes among which a process number means one process."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    # Without both, two containers of one name may hold different processes: then only time tells.
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
    """A killed process that nobody has asked for yet still answers, but does nothing."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
