from __future__ import annotations

from threading import Event

import pytest

from features.parallel import local as module
from features.parallel.base import JobQueue
from features.parallel.local import LocalExecutor
from tests.features.parallel.toys import RecordingListener, ToyWorker


def test_jobs_run_in_this_process() -> None:
    listener = RecordingListener()
    executor = LocalExecutor(ToyWorker())
    executor.run([1, 2, 3], listener, stop=Event())
    assert executor.info == "toy"
    assert listener.results == {1: 1, 2: 4, 3: 9}
    assert listener.messages == ["started 1", "started 2", "started 3"]


def test_no_job_starts_after_a_stop() -> None:
    stop = Event()
    listener = RecordingListener(on_result=lambda payload: stop.set())
    LocalExecutor(ToyWorker()).run([1, 2, 3], listener, stop=stop)
    assert listener.results == {1: 1}


def test_requeued_jobs_run_in_another_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REQUEUE_DELAY_S", 0.0)

    class RequeuingWorker(ToyWorker):
        rounds = 0

        def run(self, queue: JobQueue) -> None:
            RequeuingWorker.rounds += 1
            for job in queue.jobs():
                if job.payload == 2 and RequeuingWorker.rounds == 1:
                    queue.requeue(job)
                else:
                    queue.finish(job, RequeuingWorker.rounds)

    listener = RecordingListener()
    LocalExecutor(RequeuingWorker()).run([1, 2, 3], listener, stop=Event())
    assert listener.results == {1: 1, 2: 2, 3: 1}
