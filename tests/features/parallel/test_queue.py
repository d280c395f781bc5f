from __future__ import annotations

import pytest

from features.parallel import queue as module
from features.parallel.queue import CrashAwareQueue


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REQUEUE_DELAY_S", 0.0)


def pop_jobs(queue: CrashAwareQueue, worker_id: str, n_jobs: int) -> list[object]:
    jobs = [queue.pop_for(worker_id) for _ in range(n_jobs)]
    return [job and job.payload for job in jobs]


def test_workers_receive_jobs_in_order() -> None:
    queue = CrashAwareQueue("abc")
    assert pop_jobs(queue, "one", 2) == ["a", "b"]
    assert pop_jobs(queue, "two", 2) == ["c", None]
    assert (queue.has_waiting, queue.n_running) == (False, 3)
    assert queue.finish("one", 1) == "b"
    assert (queue.has_waiting, queue.n_running) == (False, 2)


def test_a_requeued_job_is_offered_again() -> None:
    queue = CrashAwareQueue("ab")
    queue.pop_for("one")
    queue.requeue("one", 0)
    assert queue.has_waiting
    assert pop_jobs(queue, "two", 3) == ["b", "a", None]


def test_jobs_of_a_dead_worker_run_alone() -> None:
    queue = CrashAwareQueue("abcd")
    pop_jobs(queue, "one", 2)
    assert queue.requeue_crashed("one") == (2, [])
    assert pop_jobs(queue, "one", 2) == ["a", None]
    assert pop_jobs(queue, "two", 2) == ["b", None]
    queue.finish("two", 1)
    assert pop_jobs(queue, "two", 3) == ["c", "d", None]


def test_a_busy_worker_receives_no_job_of_a_dead_worker() -> None:
    queue = CrashAwareQueue("abc")
    queue.pop_for("one")
    queue.pop_for("two")
    queue.requeue_crashed("one")
    assert pop_jobs(queue, "two", 2) == ["c", None]
    assert pop_jobs(queue, "three", 1) == ["a"]


def test_a_job_is_given_up_after_three_crashes_and_the_one_run_with_it_is_not() -> None:
    queue = CrashAwareQueue("ab")
    pop_jobs(queue, "one", 2)
    queue.requeue_crashed("one")
    assert pop_jobs(queue, "two", 1) == ["a"]
    assert pop_jobs(queue, "three", 1) == ["b"]
    assert queue.requeue_crashed("two") == (1, [])
    assert pop_jobs(queue, "two", 1) == ["a"]
    assert queue.requeue_crashed("two") == (0, ["a"])
    assert queue.finish("three", 1) == "b"
    assert pop_jobs(queue, "three", 1) == [None]
    assert (queue.has_waiting, queue.n_running) == (False, 0)


def test_a_payload_is_taken_when_a_worker_is_free_for_it() -> None:
    taken = []
    queue = CrashAwareQueue(taken.append(name) or name for name in "abc")
    assert queue.has_waiting
    assert not taken
    assert pop_jobs(queue, "one", 2) == ["a", "b"]
    assert taken == ["a", "b"]
    queue.requeue("one", 0)
    assert pop_jobs(queue, "two", 3) == ["c", "a", None]
    assert not queue.has_waiting


def test_a_job_that_cannot_run_now_may_be_handed_back() -> None:
    returned: list[str] = []
    queue = CrashAwareQueue("ab", on_requeue=returned.append)
    assert pop_jobs(queue, "one", 3) == ["a", "b", None]
    queue.requeue("one", 0)
    assert returned == ["a"]
    assert (queue.has_waiting, queue.n_running) == (False, 1)
