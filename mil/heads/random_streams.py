"""Random numbers of heads that are taught side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Generator, Tensor

__all__ = ["RandomStreams"]

_Draw = Callable[[int, Generator | None], Tensor]


class RandomStreams:
    """Random numbers by row: as many rows for the first head, then for the second, and so on.

    The heads of an ensemble draw from a stream of their own, so that what they are dealt does not
    depend on the ensembles beside them.

    Parameters
    ----------
    streams
        The stream of each head, those of an ensemble one after another; None is torch's own.
    """

    def __init__(self, streams: Sequence[Generator | None] = (None,)) -> None:
        self._streams = list(streams)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these heads only."""
        self._streams = [self._streams[place] for place in places]

    def uniform(self, n_rows: int, n: int, *, device: torch.device) -> Tensor:
        """From 0 to below 1, shape (n_rows, n), float32."""
        return self._draw(
            n_rows, lambda rows, stream: torch.rand(rows, n, generator=stream, device=device)
        )

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, in the shape of ``like`` and where it is."""
        shape, device = like.shape[1:], like.device
        return self._draw(
            len(like),
            lambda rows, stream: torch.randn(rows, *shape, generator=stream, device=device),
        )

    def integers(self, most: int, n_rows: int, n: int, *, device: torch.device) -> Tensor:
        """From 0 to below ``most``, shape (n_rows, n), int64."""
        return self._draw(
            n_rows,
            lambda rows, stream: torch.randint(most, (rows, n), generator=stream, device=device),
        )

    def bytes(self, like: Tensor) -> Tensor:
        """From 0 to 255, in the shape of ``like`` and where it is, uint8."""
        n_of_row, shape, device = like[0].numel(), like.shape[1:], like.device

        def draw(rows: int, stream: Generator | None) -> Tensor:
            eights = torch.empty(-(-rows * n_of_row // 8), dtype=torch.int64, device=device)
            eights.random_(-(2**63), None, generator=stream)
            return eights.view(torch.uint8)[: rows * n_of_row].view(rows, *shape)

        return self._draw(len(like), draw)

    def _draw(self, n_rows: int, draw: _Draw) -> Tensor:
        of_head = n_rows // len(self._streams)
        parts = [draw(of_head * len(list(own)), stream) for stream, own in groupby(self._streams)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
