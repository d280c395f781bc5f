"""Names of the runtimes in which a network runs, without loading torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from features.errors import EncoderError

__all__ = ["EAGER", "LARGEST_ERROR", "ONNX", "Runtime", "parse_execution"]

_ENGINES = ("eager", "onnx", "compile")

LARGEST_ERROR = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-2}
"""Largest relative distance of an embedding from eager float32. Half precision rounds every
product to 3e-4 (float16) or 2e-3 (bfloat16), of which 1 % of an embedding's length may remain."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Engine and precision in which a network runs.

    The engine is ``eager`` (torch as it is), ``compile`` (torch.compile) or ``onnx`` (ONNX Runtime,
    on the CPU). ``float16`` and ``bfloat16`` are autocast.
    """

    engine: str
    precision: str = "float32"

    def __str__(self) -> str:
        """Return the stored form, e.g. ``onnx float32``."""
        return f"{self.engine} {self.precision}"


EAGER = Runtime(engine="eager")
"""The reference for all other runtimes."""
ONNX = Runtime(engine="onnx")
"""ONNX Runtime, whose exports the cache keeps."""


def parse_execution(text: str) -> tuple[Runtime, int | None]:
    """Parse a text such as ``onnx``, ``compile float16`` or ``eager float32 batch 64``.

    The batch size, tiles, is None if the text states none.

    Raises
    ------
    EncoderError
        If there is no such runtime.
    """
    match = re.fullmatch(r"(\w+)(?: (\w+))?(?: batch (\d+))?", text)
    if match is None or match[1] not in _ENGINES or (match[2] or "float32") not in LARGEST_ERROR:
        raise EncoderError(
            f"execution {text!r}",
            actual="no such runtime",
            expected=f"auto, {', '.join(_ENGINES)}, or one of these with a precision "
            f"({', '.join(LARGEST_ERROR)})",
        )
    batch_tiles = int(match[3]) if match[3] else None
    return Runtime(engine=match[1], precision=match[2] or "float32"), batch_tiles
