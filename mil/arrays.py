"""Types of arrays; their shapes are stated wherever they are taken or returned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Bools", "Float32s", "Floats", "Ints"]

Bools = npt.NDArray[np.bool_]
Float32s = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
