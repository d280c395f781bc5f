"""Full and read-only disks and low limits, as far as the user of the tests may set them up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["few_handles", "full_after", "read_only", "small_disk"]


@contextmanager
def few_handles(*, n_left: int) -> Iterator[None]:
    """Allow this process ``n_left`` more open files; skip where there is no such limit."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # the lowest free number
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + n_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def full_after(monkeypatch: pytest.MonkeyPatch, n_files: int, *, number: int, text: str) -> None:
    """Let ``n_files`` files be written, and fail all later ones with an error of the system."""
    fsync: Callable[[int], None] = os.fsync
    done: list[int] = []

    def refuse(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > n_files:
            raise OSError(number, text)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)


@contextmanager
def small_disk(folder: Path, *, n_bytes: int) -> Iterator[Path]:
    """Mount a disk in memory; skip where that is not allowed."""
    with _mounted(folder, ["-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs"]) as mounted:
        yield mounted


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Mount the folder read-only, even for root; skip where that is not allowed."""
    with _mounted(folder, ["--bind", "-o", "ro", str(folder)]) as mounted:
        yield mounted


@contextmanager
def _mounted(folder: Path, options: list[str]) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount disks")
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
