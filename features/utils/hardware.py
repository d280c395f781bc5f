"""How many cores and how much memory this process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["CPU_COUNT", "available_memory"]

CPU_COUNT = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
"""Cores this process may use, which may be fewer than the machine has."""

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes of memory that are free for this process.

    On Linux what the kernel says is available, or what is left of the container's limit if that is
    less; elsewhere half of the machine's memory.
    """
    known = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        known.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # the limit reads "max" where there is none
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        known.append(limit - int((_CGROUP / "memory.current").read_text(encoding="ascii")))
    if not known:
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(known))
