"""Reading in a process of its own, for files that may hang or crash the HDF5 library.

The library is written in C: what :mod:`features.bags.safe_hdf5` looks at beforehand need not be all
that can go wrong in it. Such a file costs the reading process, which is ended and replaced, and
nothing else.
"""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from features.bags.bag import Bag, BagRef
from features.bags.h5 import read_bag
from features.errors import BagError

__all__ = ["IsolatedReader"]

_LEAST_BYTES_PER_S = 10e6
"""Slowest storage that is waited for."""


class IsolatedReader:
    """Reads bags as :func:`features.bags.h5.read_bag` does, but in another process.

    Use it as a context manager.

    Parameters
    ----------
    seconds
        How long one bag may take, besides 1 s for each 10 MB of it.
    """

    def __init__(self, *, seconds: float = 30.0) -> None:
        self._seconds = seconds
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def read(self, path: BagRef) -> Bag:
        """Read one bag; what is no HDF5 file, but packed, in this process.

        Raises
        ------
        BagError
            As :func:`features.bags.h5.read_bag`; besides, if reading does not end or crashes.
        """
        if not isinstance(path, Path):
            return read_bag(path)
        pipe = self._pipe or self._start()
        allowed_s = self._seconds
        with suppress(OSError):  # gone meanwhile, which the reading process tells
            allowed_s += path.stat().st_size / _LEAST_BYTES_PER_S
        try:
            pipe.send(path)
            if not pipe.poll(allowed_s):
                self._stop()
                raise BagError(path, actual=f"not read within {allowed_s:.0f} s")
            answer: Bag | BagError = pipe.recv()
        except (EOFError, OSError) as error:
            self._stop()
            raise BagError(path, actual="reading it ends the program that reads") from error
        if isinstance(answer, BagError):
            raise answer
        return answer

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self._pipe

    def _stop(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None


def _serve(pipe: Connection) -> None:
    """Read what is asked for until nobody asks."""
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            path = pipe.recv()
            try:
                answer: Bag | BagError = read_bag(path)
            except BagError as error:
                answer = error
            pipe.send(answer)
