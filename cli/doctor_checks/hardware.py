"""Devices, cores, memory, disks and open files."""

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
_LEAST_MEMORY_GB = 2.0
_LEAST_DISK_GB = 1.0
_LEAST_SHARED_GB = 1.0
_LEAST_FILES = 1024
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to


def check() -> list[CheckResult]:
    """Cores, memory, GPUs, disks, shared memory, and the limit of open files."""
    free_gb = available_memory() / _GB
    findings = [
        _finding("cores", f"{CPU_COUNT} for this process, {torch.get_num_threads()} used by torch"),
        _finding(
            "memory", f"{free_gb:.1f} GB free",
            status="ok" if free_gb >= _LEAST_MEMORY_GB else "note",
            advice=f"Below {_LEAST_MEMORY_GB:g} GB: give fewer --workers and a smaller --batch.",
        ),
        *_devices(),
        _disk("working folder", Path.cwd()),
        _disk("folder for temporary files", Path(tempfile.gettempdir())),
    ]  # fmt: skip
    if _SHARED_MEMORY.is_dir():
        findings.append(_shared_memory())
    if sys.platform != "win32":
        findings.append(_open_files())
    return findings


def _devices() -> list[CheckResult]:
    """A line for each GPU, after a sum on it; or why there is none."""
    if torch.backends.mps.is_available():
        return [run_check("machine", "mps", _mps, advice="Use --device cpu.")]
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} sees none"
        if _NVIDIA_DRIVER.exists():
            return [
                _finding(
                    "GPU", f"there is one, but {built}", status="failed",
                    advice="Install torch for the driver's CUDA version (nvidia-smi tells it; "
                    "https://pytorch.org says how), or use --device cpu.",
                )
            ]  # fmt: skip
        return [
            _finding("GPU", f"none ({built})", status="note", advice="The CPU does the work.")
        ]  # fmt: skip
    return [
        run_check(
            "machine", f"cuda:{index}", partial(_cuda, index),
            advice="Update its driver, or torch; until then leave it out with --device.",
        )
        for index in range(torch.cuda.device_count())
    ]  # fmt: skip


def _mps() -> str:
    _add_on("mps")
    return "a GPU of Apple; auto takes the CPU, as nothing was tried on mps"


def _cuda(index: int) -> str:
    _add_on(f"cuda:{index}")
    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return f"{name}, {free / _GB:.1f} of {total / _GB:.1f} GB free, CUDA {torch.version.cuda}"


def _add_on(device: str) -> None:
    """Add on a device, which only then shows whether it works."""
    if float((torch.ones(2, device=device) + 1).sum()) != 4.0:
        raise ArithmeticError("1 + 1 is not 2 on it")


def _disk(name: str, folder: Path) -> CheckResult:
    """Room in a folder, and whether one may write there."""

    def look() -> str:
        with tempfile.TemporaryFile(dir=folder):
            free_gb = shutil.disk_usage(folder).free / _GB
        if free_gb < _LEAST_DISK_GB:
            raise OSError(f"{folder}: {free_gb:.2f} GB free")
        return f"{folder}: {free_gb:,.0f} GB free"

    return run_check(
        "machine", name, look,
        advice=f"Free {_LEAST_DISK_GB:g} GB, or work in a folder that can be written to; TMPDIR "
        "names the one for temporary files.",
    )  # fmt: skip


def _shared_memory() -> CheckResult:
    free_gb = shutil.disk_usage(_SHARED_MEMORY).free / _GB
    return _finding(
        "shared memory", f"{free_gb:.1f} GB free",
        status="ok" if free_gb >= _LEAST_SHARED_GB else "note",
        advice="Ray needs more; in a container: docker run --shm-size=8g.",
    )  # fmt: skip


def _open_files() -> CheckResult:
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_unlimited = limit == resource.RLIM_INFINITY
    return _finding(
        "open files", "no limit" if is_unlimited else f"{limit:,} at most",
        status="ok" if is_unlimited or limit >= _LEAST_FILES else "note",
        advice="Raise the limit with 'ulimit -n 4096'.",
    )  # fmt: skip


def _finding(name: str, found: str, *, status: Status = "ok", advice: str = "") -> CheckResult:
    return CheckResult(
        part="machine", name=name, status=status, found=found,
        advice="" if status == "ok" else advice,
    )  # fmt: skip
