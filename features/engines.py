"""Where work runs."""

from __future__ import annotations

import torch

from features.errors import KnownError

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """Device of that name; ``auto`` is CUDA, else Apple's MPS, else CPU.

    Raises
    ------
    KnownError
        If the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise KnownError(
            f"device {name!r}",
            found=str(error).splitlines()[0],
            expected="auto, cpu, cuda or cuda:N that this machine has",
        ) from error
    return device
