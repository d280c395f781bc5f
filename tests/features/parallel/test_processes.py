from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread
from unittest import mock

import pytest

from features.errors import MilError
from features.parallel.base import WorkerFactory
from features.parallel.pool import WorkerPool
from features.parallel.processes import ProcessTransport
from tests.features.parallel.toys import (
    RecordingListener,
    exit_and_count,
    exit_at_once,
    make_late_toy,
    make_toy,
    make_toy_after,
    raise_error,
)


def process_pool(
    *factories: WorkerFactory, warnings: list[str] | None = None, start_first_only: bool = False
) -> WorkerPool:
    transport = ProcessTransport(
        {f"process {number}": factory for number, factory in enumerate(factories)}
    )
    warnings = [] if warnings is None else warnings
    return WorkerPool(transport, start_first_only=start_first_only, on_warning=warnings.append)


def run_until_told(pool: WorkerPool, warnings: list[str], n_warnings: int) -> None:
    """Run jobs until workers have led to so many warnings, a minute at most."""
    end = time.monotonic() + 60
    while len(warnings) < n_warnings:
        assert time.monotonic() < end, warnings
        pool.run([1], RecordingListener(), stop=Event())


@pytest.mark.parametrize("start_first_only", [False, True])
def test_processes_share_jobs(start_first_only: bool) -> None:
    listener = RecordingListener()
    with process_pool(make_toy, make_toy, start_first_only=start_first_only) as executor:
        assert executor.info == "toy"
        executor.run([*range(20), "process id"], listener, stop=Event())
        executor.run([21], listener, stop=Event())
    assert listener.results.pop("process id") != os.getpid()
    assert listener.results == {number: number**2 for number in [*range(20), 21]}


def test_jobs_of_a_dead_worker_run_on_others_with_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    listener = RecordingListener()
    bomb = tmp_path / "bomb"
    with process_pool(make_toy, make_toy, warnings=warnings) as executor:
        executor.run([1, bomb, 2, 3], listener, stop=Event())
    assert set(listener.results) == {1, 2, 3, bomb}
    assert not listener.reasons
    assert len(warnings) == 1
    assert "ended by SIGKILL; jobs queued again: 1" in warnings[0]


def test_a_job_that_kills_every_worker_is_given_up_and_the_others_are_done() -> None:
    warnings: list[str] = []
    listener = RecordingListener()
    with process_pool(make_toy, warnings=warnings) as executor:
        executor.run([1, "deadly", 2], listener, stop=Event())
    assert listener.results == {1: 1, 2: 4}
    assert "SIGKILL" in listener.reasons["deadly"]
    assert len(warnings) == 3


def test_an_unexpected_error_ends_its_worker_only() -> None:
    listener = RecordingListener()
    with process_pool(make_toy) as executor:
        executor.run([1, "impossible", 2], listener, stop=Event())
    assert listener.results == {1: 1, 2: 4}
    assert "ValueError: this cannot be computed" in listener.reasons["impossible"]


def test_workers_that_cannot_start_are_an_error() -> None:
    with pytest.raises(MilError, match="the machine: no room"), process_pool(raise_error):
        pass
    with pytest.raises(MilError, match="ended with code 3, 3 times"), process_pool(exit_at_once):
        pass


def test_a_worker_that_cannot_start_is_left_out_with_a_warning() -> None:
    warnings: list[str] = []
    listener = RecordingListener()
    other = partial(make_toy, "doll")
    with process_pool(
        make_toy, raise_error, other, start_first_only=True, warnings=warnings
    ) as executor:
        run_until_told(executor, warnings, 2)
        executor.run([1, 2], listener, stop=Event())
    assert listener.results == {1: 1, 2: 4}
    first, second = sorted(warnings)
    assert first == "continuing without process 1: the machine: no room"
    assert second.startswith(
        "continuing without process 2: worker process 2: doll; expected toy, as on the other"
    )


def test_a_worker_that_ends_while_it_starts_is_told_each_time_and_then_left_out() -> None:
    warnings: list[str] = []
    with process_pool(make_toy, exit_at_once, warnings=warnings) as executor:
        run_until_told(executor, warnings, 3)
    again = "worker process 1 ended with code 3 while it started; it is started again"
    assert warnings[:2] == [again, again]
    assert warnings[2].startswith("continuing without process 1: worker process 1: ended with code")


def test_a_stop_finishes_started_jobs() -> None:
    stop = Event()
    listener = RecordingListener(on_result=lambda payload: stop.set())
    with process_pool(make_toy) as executor:
        executor.run(range(50), listener, stop=stop)
    assert 0 < len(listener.results) <= 2


def test_workers_are_closed_at_the_end(tmp_path: Path) -> None:
    with process_pool(partial(make_toy, closed_dir=tmp_path)) as executor:
        executor.run([1, 2, 3], RecordingListener(), stop=Event())
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupt_ends_the_workers_before_it_leaves_the_run() -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with process_pool(make_toy) as executor:
        workers = multiprocessing.active_children()
        with pytest.raises(KeyboardInterrupt):
            executor.run(range(50), RecordingListener(on_result=interrupt), stop=Event())
        assert workers
        assert not any(worker.is_alive() for worker in workers)


def test_an_interrupt_while_a_worker_starts_leaves_no_process() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    started = BaseProcess.start
    ended = Event()
    thread = Thread(target=ended.wait)  # It takes the signal where the main thread blocks it.

    def start(process: BaseProcess) -> None:
        started(process)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # until the thread has taken it

    thread.start()
    try:
        with (
            mock.patch.object(BaseProcess, "start", start),
            pytest.raises(KeyboardInterrupt) as interrupted,
            process_pool(make_toy),
        ):
            pass
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGINT, before)
        ended.set()
        thread.join()
    # The traceback keeps the pipe open, whose end would end the worker too.
    assert interrupted.type is KeyboardInterrupt
    assert not any(worker.is_alive() for worker in multiprocessing.active_children())


def test_a_worker_that_dies_at_each_start_is_left_out_though_no_other_is_ready_yet(
    tmp_path: Path,
) -> None:
    warnings: list[str] = []
    listener = RecordingListener()
    factories = partial(exit_and_count, tmp_path), partial(make_toy_after, tmp_path, 3)
    with process_pool(*factories, warnings=warnings) as executor:
        executor.run(range(3), listener, stop=Event())
    assert len(listener.results) == 3
    assert ["it is started again" in text for text in warnings] == [True, True, False]
    assert warnings[2].startswith("continuing without process 0: worker process 0: ended with code")


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EMFILE, "ulimit -n 4096"), (errno.EAGAIN, "fewer --workers")]
)
def test_no_room_for_a_process_is_an_error_with_advice(number: int, hint: str) -> None:
    error = OSError(number, os.strerror(number))
    with (
        mock.patch.object(BaseProcess, "start", side_effect=error),
        pytest.raises(MilError, match="worker process 0: its process cannot be started") as caught,
        process_pool(make_toy),
    ):
        pass
    assert hint in caught.value.hint


def test_without_room_for_a_replacement_the_other_workers_go_on(tmp_path: Path) -> None:
    warnings: list[str] = []
    listener = RecordingListener()
    with process_pool(make_toy, make_toy, warnings=warnings) as executor:
        error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        with mock.patch.object(BaseProcess, "start", side_effect=error):
            executor.run([tmp_path / "crash", *range(5)], listener, stop=Event())
    assert len(listener.results) == 6
    assert [text for text in warnings if "continuing without" in text and "Cannot alloc" in text]


class Unloadable:
    """A job that no other process can load."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


def test_a_job_that_cannot_be_loaded_in_its_process_is_given_up_with_the_reason() -> None:
    listener = RecordingListener()
    job = Unloadable()
    with process_pool(make_toy) as executor:
        executor.run([1, job, 2], listener, stop=Event())
    assert listener.results == {1: 1, 2: 4}
    assert "ValueError: invalid literal" in listener.reasons[job]


def test_messages_after_the_last_job_are_waited_for() -> None:
    with process_pool(make_late_toy, make_late_toy) as executor:
        for n_jobs in (1, 3):
            listener = RecordingListener()
            executor.run(range(n_jobs), listener, stop=Event())
            assert 1 <= listener.messages.count("ended") <= 2
            assert len(listener.results) == n_jobs
