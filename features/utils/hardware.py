"""Cores, memory and GPUs available to this process, without loading torch."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

__all__ = [
    "CPU_COUNT",
    "are_gpus_hidden",
    "available_memory",
    "available_shared_memory",
    "may_have_gpu",
    "physical_core_count",
]

CPU_COUNT = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
"""Cores that this process may use, perhaps fewer than the machine has."""

_CGROUP = Path("/sys/fs/cgroup")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only its size is asked for
_CPUS = Path("/sys/devices/system/cpu")


def physical_core_count() -> int:
    """Return the cores that this process may use, those that share their units counted once.

    Only Linux tells; elsewhere all that :data:`CPU_COUNT` counts.
    """
    cores = set()
    with suppress(OSError, AttributeError):
        for cpu in os.sched_getaffinity(0):
            cores.add((_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text("ascii"))
        return len(cores)
    return CPU_COUNT


def available_memory() -> int:
    """Return the memory available to this process, in bytes.

    On Linux the kernel's estimate, or the rest of the container's limit if that is less; elsewhere
    half of the machine's memory.
    """
    candidates = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        candidates.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # the file holds "max" where there is no limit
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        candidates.append(limit - int((_CGROUP / "memory.current").read_text(encoding="ascii")))
    if not candidates:
        candidates.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(candidates))


def available_shared_memory() -> int:
    """Return the memory that processes may share, in bytes: what is free where it is kept."""
    folders = [_SHARED_MEMORY, Path(tempfile.gettempdir())]
    return max(shutil.disk_usage(folder).free for folder in folders if folder.is_dir())


def are_gpus_hidden() -> bool:
    """Return whether the environment hides all CUDA devices from torch."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def may_have_gpu() -> bool:
    """Return False if torch surely finds no CUDA device here: none, all hidden, or by its build."""
    if are_gpus_hidden():
        return False
    with suppress(metadata.PackageNotFoundError):
        if metadata.version("torch").endswith("+cpu"):
            return False
    if platform.system() == "Linux":
        names = ("nvidia0", "nvidiactl", "dxg", "kfd", "nvhost-gpu", "nvmap")
        return any(Path("/dev", name).exists() for name in names)
    return platform.system() != "Darwin"
