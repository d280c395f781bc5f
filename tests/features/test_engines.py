from __future__ import annotations

import pytest
import torch

from features.engines import choose_device
from features.errors import KnownError


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(KnownError, match="device 'warp'"):
        choose_device("warp")
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
