from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mil.heads import whitening


@pytest.mark.parametrize("shape", [(0, 6), (10, 6), (2, 11, 6)])
def test_many_tiles_are_whitened_in_blocks_as_they_are_at_once(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    affine = whitening.Whitening(6, 3)
    affine.mean.copy_(torch.randn(6, generator=generator))
    affine.matrix.copy_(torch.randn(6, 3, generator=generator))
    tiles = torch.randn(shape, generator=generator)
    expected = (tiles - affine.mean) @ affine.matrix
    centred: list[int] = []

    def multiply(one: Tensor, other: Tensor) -> Tensor:
        centred.append(one.shape[-2])
        return one @ other

    monkeypatch.setattr(whitening.torch, "matmul", multiply)
    monkeypatch.setattr(whitening, "_TILES_PER_BLOCK", 4)
    torch.testing.assert_close(affine(tiles), expected)
    assert max(centred) <= 4
