"""Checks of cores, memory, devices, disks and open files."""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from cli.doctor_checks.base import CheckResult, Status, run_check
from features.utils.hardware import CPU_COUNT, available_memory

__all__ = ["check"]

_GB = 1e9
_MIN_MEMORY_GB = 2.0
_MIN_DISK_GB = 1.0
_MIN_SHARED_GB = 1.0
_MIN_FILES = 1024
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only its size is read


def check() -> list[CheckResult]:
    """Check cores, GPUs, memory, disks and shared memory in GB, and the limit of open files."""
    free_gb = available_memory() / _GB
    results = [
        _result("cores", f"{CPU_COUNT} for this process, {torch.get_num_threads()} used by torch"),
        _result(
            "memory", f"{free_gb:.1f} GB free",
            status="ok" if free_gb >= _MIN_MEMORY_GB else "note",
            advice=f"Below {_MIN_MEMORY_GB:g} GB: give fewer --workers and a smaller --batch.",
        ),
        *_devices(),
        _disk("working folder", Path.cwd()),
        _disk("folder for temporary files", Path(tempfile.gettempdir())),
    ]  # fmt: skip
    if _SHARED_MEMORY.is_dir():
        results.append(_shared_memory())
    if sys.platform != "win32":
        results.append(_open_files())
    return results


def _devices() -> list[CheckResult]:
    """Check each GPU by an addition; without any, report why."""
    if torch.backends.mps.is_available():
        return [run_check("machine", "mps", _mps, advice="Use --device cpu.")]
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} sees none"
        if _NVIDIA_DRIVER.exists():
            return [
                _result(
                    "GPU", f"there is one, but {built}", status="failed",
                    advice="Install torch for the driver's CUDA version (shown by nvidia-smi; "
                    "see https://pytorch.org), or use --device cpu.",
                )
            ]  # fmt: skip
        return [_result("GPU", f"none ({built})", status="note", advice="The CPU is used.")]
    return [
        run_check(
            "machine", f"cuda:{index}", partial(_cuda, index),
            advice="Update its driver, or torch; until then leave it out with --device.",
        )
        for index in range(torch.cuda.device_count())
    ]  # fmt: skip


def _mps() -> str:
    _add_on("mps")
    return "an Apple GPU; auto chooses the CPU, as mps is not tested"


def _cuda(index: int) -> str:
    _add_on(f"cuda:{index}")
    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return f"{name}, {free / _GB:.1f} of {total / _GB:.1f} GB free, CUDA {torch.version.cuda}"


def _add_on(device: str) -> None:
    """Add two numbers on a device; only a computation shows whether it works."""
    if float((torch.ones(2, device=device) + 1).sum()) != 4.0:
        raise ArithmeticError("1 + 1 is not 2 on it")


def _disk(name: str, folder: Path) -> CheckResult:
    """Check that a folder has free space and can be written to."""

    def check_folder() -> str:
        with tempfile.TemporaryFile(dir=folder):
            free_gb = shutil.disk_usage(folder).free / _GB
        if free_gb < _MIN_DISK_GB:
            raise OSError(f"{folder}: {free_gb:.2f} GB free")
        return f"{folder}: {free_gb:,.0f} GB free"

    return run_check(
        "machine", name, check_folder,
        advice=f"Free {_MIN_DISK_GB:g} GB, or work in a folder that can be written to; TMPDIR "
        "sets the one for temporary files.",
    )  # fmt: skip


def _shared_memory() -> CheckResult:
    free_gb = shutil.disk_usage(_SHARED_MEMORY).free / _GB
    return _result(
        "shared memory", f"{free_gb:.1f} GB free",
        status="ok" if free_gb >= _MIN_SHARED_GB else "note",
        advice="Ray needs more; in a container: docker run --shm-size=8g.",
    )  # fmt: skip


def _open_files() -> CheckResult:
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_unlimited = limit == resource.RLIM_INFINITY
    return _result(
        "open files", "no limit" if is_unlimited else f"{limit:,} at most",
        status="ok" if is_unlimited or limit >= _MIN_FILES else "note",
        advice="Raise the limit with 'ulimit -n 4096'.",
    )  # fmt: skip


def _result(name: str, found: str, *, status: Status = "ok", advice: str = "") -> CheckResult:
    return CheckResult(
        part="machine", name=name, status=status, found=found,
        advice="" if status == "ok" else advice,
    )  # fmt: skip
