"""Where work runs."""

from __future__ import annotations

import torch

from features.errors import MilError

__all__ = ["choose_device", "parse_devices"]


def choose_device(name: str) -> torch.device:
    """Device of that name; ``auto`` is CUDA, else CPU.

    Apple's MPS is used only where it is asked for by name: it has no float64, which whitening
    computes in, and nothing was tried on it.

    Raises
    ------
    MilError
        If the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MilError(
            f"device {name!r}",
            actual=str(error).splitlines()[0],
            expected="auto, cpu, cuda or cuda:N that this machine has",
        ) from error
    return device


def parse_devices(text: str) -> tuple[str, ...]:
    """Names of the devices of this machine that a text names.

    ``auto`` is every GPU where there are several, else as for :func:`choose_device`. Devices are
    separated by commas, and a number stands for another of the same kind: ``cuda:0,1`` is
    ``cuda:0,cuda:1``. A device may be named several times.

    Raises
    ------
    MilError
        If a device does not exist here.

    Examples
    --------
    >>> parse_devices("cpu,cpu")
    ('cpu', 'cpu')
    """
    if text == "auto":
        n_gpus = torch.cuda.device_count()
        return tuple(f"cuda:{index}" for index in range(n_gpus)) if n_gpus > 1 else (text,)
    names: list[str] = []
    for part in text.split(","):
        kind = names[-1].partition(":")[0] if names else ""
        names.append(f"{kind}:{part}" if part.isdecimal() else part.strip())
    if len(names) > 1:
        for name in names:
            _require(name, text)
    return tuple(names)


def _require(name: str, text: str) -> None:
    """Refuse a device of a list that is not here, without touching the device."""
    known = {"cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))}
    if name not in known:
        raise MilError(
            f"device {name!r} of {text!r}",
            actual=f"this machine has {', '.join(sorted(known))}",
            expected="one of them, or auto for all GPUs",
        )
