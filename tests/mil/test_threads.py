from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from threadpoolctl import threadpool_info

from mil.threads import map_single_threaded


def blas_threads() -> list[int]:
    return [own["num_threads"] for own in threadpool_info() if own["user_api"] == "blas"]


@pytest.mark.parametrize("n_items", [0, 1, 7])
def test_each_item_has_one_thread_and_results_are_in_order(n_items: int) -> None:
    before = blas_threads(), torch.get_num_threads()

    def threads_of(item: int) -> tuple[int, set[int], int]:
        return item, set(blas_threads()), torch.get_num_threads()

    found = map_single_threaded(threads_of, range(n_items))
    assert [item for item, _, _ in found] == list(range(n_items))
    assert all(blas <= {1} and own == 1 for _, blas, own in found)
    assert (blas_threads(), torch.get_num_threads()) == before


def test_threads_that_begin_afterwards_have_as_many_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        map_single_threaded(lambda item: item, range(3))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_calls_that_overlap_leave_the_limits_as_they_were() -> None:
    before = blas_threads()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: map_single_threaded(lambda i: time.sleep(0.002 * i), range(4)),
                      range(8)))  # fmt: skip
    assert blas_threads() == before


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        map_single_threaded(lambda item: 1 / item, [1, 0])
