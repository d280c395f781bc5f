from __future__ import annotations

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


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        map_single_threaded(lambda item: 1 / item, [1, 0])
