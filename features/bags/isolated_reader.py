"""Reading bags in a separate process, for files that may hang or crash the HDF5 library.

The library is written in C and may fail in ways that :mod:`features.bags.safe_hdf5` does not check.
Such a file then ends only the reading process, which is replaced.
"""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

from features.bags.bag import Bag, BagRef
from features.bags.h5 import read_bag
from features.errors import BagError

__all__ = ["IsolatedReader"]

_MIN_BYTES_PER_S = 10e6
"""Throughput of the slowest storage that does not count as hanging, bytes per second."""


class IsolatedReader:
    """Context manager that reads bags as :func:`features.bags.h5.read_bag`, in another process.

    The time limit for one bag is ``timeout_s`` seconds, and 1 s per 10 MB of its file.
    """

    def __init__(self, *, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, bag_ref: BagRef) -> Bag:
        """Read one bag; those of a packed store, which need no HDF5, are read in this process.

        Raises BagError as :func:`features.bags.h5.read_bag`, and if reading crashes or does not end
        within the limit of seconds.
        """
        if not isinstance(bag_ref, Path):
            return read_bag(bag_ref)
        pipe = self._pipe or self._start()
        limit_s = self._timeout_s
        with suppress(OSError):  # The reading process reports a missing file.
            limit_s += bag_ref.stat().st_size / _MIN_BYTES_PER_S
        try:
            pipe.send(bag_ref)
            if not pipe.poll(limit_s):
                self._stop()
                raise BagError(bag_ref, actual=f"not read within {limit_s:.0f} s")
            result: Bag | BagError = pipe.recv()
        except (EOFError, OSError) as error:
            self._stop()
            raise BagError(bag_ref, actual="reading it crashes the reading process") from error
        if isinstance(result, BagError):
            raise result
        return result

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe,), daemon=True)
        self._process.start()
        child_pipe.close()
        return self._pipe

    def _stop(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None


def _serve(pipe: Connection) -> None:
    """Read the bags whose paths arrive through the pipe until it is closed."""
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            path = pipe.recv()
            try:
                result: Bag | BagError = read_bag(path)
            except BagError as error:
                result = error
            pipe.send(result)
