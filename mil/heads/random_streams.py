"""Random numbers for heads that are trained together, reproducible per ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Generator, Tensor

__all__ = ["RandomStreams"]


class RandomStreams:
    """Random numbers of shape (rows, ...), equally many rows for each head in turn.

    Each ensemble has a generator of its own, so that its numbers do not depend on the ensembles
    that are trained at the same time. ``streams`` holds the generator of each head, those of an
    ensemble consecutive; None is torch's global one.
    """

    def __init__(self, streams: Sequence[Generator | None] = (None,)) -> None:
        self._streams = list(streams)

    def select(self, indices: Sequence[int]) -> None:
        """Keep only these heads."""
        self._streams = [self._streams[index] for index in indices]

    def uniform(self, n_rows: int, n: int, *, device: torch.device) -> Tensor:
        """Return numbers from 0 to below 1, shape (n_rows, n), float32."""
        return self._draw(
            n_rows, lambda rows, stream: torch.rand(rows, n, generator=stream, device=device)
        )

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers with the shape and device of ``like``."""
        shape, device = like.shape[1:], like.device
        return self._draw(
            len(like),
            lambda rows, stream: torch.randn(rows, *shape, generator=stream, device=device),
        )

    def integers(self, high: int, n_rows: int, n: int, *, device: torch.device) -> Tensor:
        """Return integers from 0 to below ``high``, shape (n_rows, n), int64."""
        return self._draw(
            n_rows,
            lambda rows, stream: torch.randint(high, (rows, n), generator=stream, device=device),
        )

    def bytes(self, like: Tensor) -> Tensor:
        """Return integers from 0 to 255 with the shape and device of ``like``, uint8."""
        row_size, shape, device = like[0].numel(), like.shape[1:], like.device

        def draw(rows: int, stream: Generator | None) -> Tensor:
            words = torch.empty(-(-rows * row_size // 8), dtype=torch.int64, device=device)
            words.random_(-(2**63), None, generator=stream)
            return words.view(torch.uint8)[: rows * row_size].view(rows, *shape)

        return self._draw(len(like), draw)

    def _draw(self, n_rows: int, draw: Callable[[int, Generator | None], Tensor]) -> Tensor:
        rows_per_head = n_rows // len(self._streams)
        parts = [
            draw(rows_per_head * len(list(heads)), stream)
            for stream, heads in groupby(self._streams)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
