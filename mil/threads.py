"""Several small problems of linear algebra at once, each with one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

__all__ = ["map_single_threaded"]

_MOST_AT_ONCE = 4  # each needs memory
_LOCK = Lock()

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_single_threaded(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the result of each item, computed by one thread, at most four of them at once.

    Threads that share a small decomposition wait for each other at every block of it: with two, it
    takes as long on an idle machine, and several times as long on a busy one. How many items are
    computed at once depends on torch's number of threads, and changes no result.
    """
    n_torch = torch.get_num_threads()
    n_threads = max(1, min(len(items), n_torch, _MOST_AT_ONCE))
    # The limit of BLAS is that of the process: calls that overlap would restore each other's.
    with _LOCK, threadpool_limits(1, user_api="blas"):
        try:
            if n_threads == 1:  # another thread would ask the system for its memory anew
                torch.set_num_threads(1)
                return [function(item) for item in items]
            with ThreadPoolExecutor(
                n_threads, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                return list(pool.map(function, items))
        finally:
            torch.set_num_threads(n_torch)  # also that of threads to come, which the pool has set
