from __future__ import annotations

from threading import Event

import pytest

from features.parallel import local as module
from features.parallel.base import JobQueue
from features.parallel.local import LocalExecutor
from tests.features.parallel.toys import Notebook, Toy


def test_jobs_are_done_in_this_process() -> None:
    notebook = Notebook()
    engine = LocalExecutor(Toy())
    engine.run([1, 2, 3], notebook, stop=Event())
    assert engine.card == "toy"
    assert notebook.results == {1: 1, 2: 4, 3: 9}
    assert notebook.news == ["began 1", "began 2", "began 3"]


def test_nothing_new_is_begun_after_a_stop() -> None:
    stop = Event()
    notebook = Notebook(on_done=lambda job: stop.set())
    LocalExecutor(Toy()).run([1, 2, 3], notebook, stop=stop)
    assert notebook.results == {1: 1}


def test_what_is_put_back_is_done_in_another_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LOOKS", 0.0)

    class Shy(Toy):
        rounds = 0

        def work(self, desk: JobQueue) -> None:
            Shy.rounds += 1
            for deal in desk.deals():
                if deal.job == 2 and Shy.rounds == 1:
                    desk.requeue(deal)
                else:
                    desk.done(deal, Shy.rounds)

    notebook = Notebook()
    LocalExecutor(Shy()).run([1, 2, 3], notebook, stop=Event())
    assert notebook.results == {1: 1, 2: 2, 3: 1}
