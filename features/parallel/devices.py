"""Choice of the devices on which models run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from features.errors import MilError
from features.utils.hardware import are_gpus_hidden, may_have_gpu

if TYPE_CHECKING:
    import torch

__all__ = ["choose_device", "device_type", "parse_devices"]


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA, else CPU.

    Apple's MPS is used only if it is named: it has no float64, which whitening needs, and is not
    tested. Raises MilError if this machine has no such device.
    """
    import torch  # noqa: PLC0415 - heavy

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MilError(
            f"device {name!r}",
            actual=next(iter(str(error).splitlines()), type(error).__name__),
            expected="auto, cpu, cuda or cuda:N that this machine has",
            hint=_hint_for(name),
        ) from error
    return device


def device_type(name: str) -> str:
    """Return the type of the device of a name, such as ``cuda``, which need not be there.

    Torch is not loaded where it surely finds no GPU for ``auto``.
    """
    if name == "auto":
        return "cpu" if not may_have_gpu() else choose_device(name).type
    return name.partition(":")[0]


def parse_devices(text: str) -> tuple[str, ...]:
    """Return the names of the devices that a text lists.

    ``auto`` is every GPU where there are several, else as for :func:`choose_device`. Devices are
    separated by commas, and a number stands for another of the same kind: ``cuda:0,1`` is
    ``cuda:0,cuda:1``. A device may be named several times. Raises MilError for a device of a list
    that this machine does not have.

    Examples
    --------
    >>> parse_devices("cpu,cpu")
    ('cpu', 'cpu')
    """
    if text == "cpu" or (text == "auto" and not may_have_gpu()):
        return (text,)

    import torch  # noqa: PLC0415 - heavy

    n_gpus = torch.cuda.device_count()
    if text == "auto":
        return tuple(f"cuda:{index}" for index in range(n_gpus)) if n_gpus > 1 else (text,)
    names: list[str] = []
    for part in text.split(","):
        kind = names[-1].partition(":")[0] if names else ""
        names.append(f"{kind}:{part}" if part.isdecimal() else part.strip())
    known = {"cpu", *(f"cuda:{index}" for index in range(n_gpus))}
    unknown = [name for name in names if name not in known]
    if len(names) > 1 and unknown:
        raise MilError(
            f"device {unknown[0]!r} of {text!r}",
            actual=f"this machine has {', '.join(sorted(known))}",
            expected="one of them, or auto for all GPUs",
            hint=_hint_for(unknown[0]),
        )
    return tuple(names)


def _hint_for(name: str) -> str:
    """Advice for a device that this machine does not seem to have."""
    if name.startswith("cuda") and are_gpus_hidden():
        return "CUDA_VISIBLE_DEVICES hides all GPUs: unset it, or give --device cpu."
    return ""
