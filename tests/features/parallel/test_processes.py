from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread
from unittest import mock

import psutil
import pytest

from features.errors import MilError
from features.parallel.base import WorkerFactory
from features.parallel.pool import WorkerPool
from features.parallel.processes import ProcessTransport, load_ahead
from tests.features.parallel.toys import (
    RecordingListener,
    exit_and_count,
    exit_at_once,
    make_late_toy,
    make_toy,
    make_toy_after,
    raise_error,
)

forks = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked only on Linux")
MODULES = ("tests.features.parallel.toys",)


def process_pool(
    *factories: WorkerFactory, warnings: list[str] | None = None, start_first_only: bool = False,
    modules: Sequence[str] = (),
) -> WorkerPool:  # fmt: skip
    transport = ProcessTransport(
        {f"process {number}": factory for number, factory in enumerate(factories)}, modules=modules
    )
    warnings = [] if warnings is None else warnings
    return WorkerPool(transport, start_first_only=start_first_only, on_warning=warnings.append)


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
        while len(warnings) < 2:
            executor.run([1], RecordingListener(), stop=Event())
        executor.run([1, 2], listener, stop=Event())
    assert listener.results == {1: 1, 2: 4}
    first, second = sorted(warnings)
    assert first == "continuing without process 1: the machine: no room"
    assert second.startswith(
        "continuing without process 2: worker process 2: doll; expected toy, as on the other"
    )


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
    assert warnings[0].startswith("continuing without process 0: worker process 0: ended with code")


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


def test_processes_that_load_ahead_share_jobs_and_are_replaced(tmp_path: Path) -> None:
    warnings: list[str] = []
    listener = RecordingListener()
    with process_pool(make_toy, make_toy, warnings=warnings, modules=MODULES) as executor:
        executor.run([*range(9), "deadly", "process id"], listener, stop=Event())
    assert listener.results.pop("process id") != os.getpid()
    assert listener.results == {number: number**2 for number in range(9)}
    assert listener.reasons == {"deadly": "every worker that ran it ended by SIGKILL"}
    assert len(warnings) == 3


@forks
def test_processes_are_forked_from_one_started_before_and_leave_signals_to_the_command() -> None:
    load_ahead(MODULES)
    children = {child.pid for child in psutil.Process().children()}
    listener = RecordingListener()
    with process_pool(make_toy, modules=MODULES) as executor:
        executor.run(["process id"], listener, stop=Event())
        worker = psutil.Process(listener.results["process id"])
        assert worker.ppid() in children
        for number in (signal.SIGINT, signal.SIGTERM):  # as of a terminal or scheduler, to all
            worker.send_signal(number)
        executor.run([3], listener, stop=Event())
        assert listener.results[3] == 9
        assert worker.is_running()


@forks
def test_without_room_for_a_fork_is_an_error_with_advice() -> None:
    error = EOFError("unexpected EOF")  # as where the process that forks has ended
    with (
        mock.patch.object(BaseProcess, "start", side_effect=error),
        pytest.raises(MilError, match="its process cannot be started") as caught,
        process_pool(make_toy, modules=MODULES),
    ):
        pass
    assert "fewer --workers" in caught.value.hint


_LOAD_AHEAD = """
import os, psutil, signal, sys
from features.parallel.processes import load_ahead
load_ahead(["tests.features.parallel.toys"])
print(*[child.pid for child in psutil.Process().children()], flush=True)
{end}
"""


@forks
@pytest.mark.parametrize(
    "end", ["", "os._exit(130)", "os.kill(os.getpid(), signal.SIGKILL)", "os.killpg(0, signal.{})"]
)
def test_what_loads_ahead_ends_with_the_command(end: str) -> None:
    for name in ("SIGINT", "SIGTERM") if "{}" in end else ("",):
        done = subprocess.run(
            [sys.executable, "-c", _LOAD_AHEAD.format(end=end.format(name))], capture_output=True,
            text=True, timeout=60, check=False, start_new_session=True,
        )  # fmt: skip
        pids = [int(pid) for pid in done.stdout.split()]
        assert pids
        psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], 30)
        assert not any(map(psutil.pid_exists, pids))


def test_messages_after_the_last_job_are_waited_for() -> None:
    with process_pool(make_late_toy, make_late_toy) as executor:
        for n_jobs in (1, 3):
            listener = RecordingListener()
            executor.run(range(n_jobs), listener, stop=Event())
            assert 1 <= listener.messages.count("ended") <= 2
            assert len(listener.results) == n_jobs
