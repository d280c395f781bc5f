from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from features.errors import MilError
from features.parallel.base import Hire
from features.parallel.pool import WorkerPool
from features.parallel.processes import ProcessTransport
from tests.features.parallel.toys import Notebook, hire_dead, hire_nobody, hire_toy

AS_THE_OTHERS = "as the others. Install the same versions and weights everywhere."


def crew(*hires: Hire, notes: list[str] | None = None, first_alone: bool = False) -> WorkerPool:
    lines = ProcessTransport({f"place {number}": hire for number, hire in enumerate(hires)})
    told = [] if notes is None else notes
    return WorkerPool(lines, first_alone=first_alone, on_note=told.append)


@pytest.mark.parametrize("first_alone", [False, True])
def test_jobs_are_shared_by_processes(first_alone: bool) -> None:
    notebook = Notebook()
    with crew(hire_toy, hire_toy, first_alone=first_alone) as engine:
        assert engine.card == "toy"
        engine.run([*range(20), "who"], notebook, stop=Event())
        engine.run([21], notebook, stop=Event())
    assert notebook.results.pop("who") != os.getpid()
    assert notebook.results == {number: number**2 for number in [*range(20), 21]}


def test_what_a_dying_worker_had_in_hand_is_done_by_others_and_told(tmp_path: Path) -> None:
    notes: list[str] = []
    notebook = Notebook()
    bomb = tmp_path / "bomb"
    with crew(hire_toy, hire_toy, notes=notes) as engine:
        engine.run([1, bomb, 2, 3], notebook, stop=Event())
    assert set(notebook.results) == {1, 2, 3, bomb}
    assert not notebook.reasons
    assert len(notes) == 1
    assert "ended by SIGKILL; taken over from it: 1" in notes[0]


def test_a_job_that_kills_every_worker_is_given_up_and_the_others_are_done() -> None:
    notes: list[str] = []
    notebook = Notebook()
    with crew(hire_toy, notes=notes) as engine:
        engine.run([1, "deadly", 2], notebook, stop=Event())
    assert notebook.results == {1: 1, 2: 4}
    assert "SIGKILL" in notebook.reasons["deadly"]
    assert len(notes) == 3


def test_an_unforeseen_error_of_a_worker_is_told_and_ends_that_worker_only() -> None:
    notebook = Notebook()
    with crew(hire_toy) as engine:
        engine.run([1, "impossible", 2], notebook, stop=Event())
    assert notebook.results == {1: 1, 2: 4}
    assert "ValueError: nobody can do this" in notebook.reasons["impossible"]


def test_workers_that_cannot_begin_are_an_error_that_says_why() -> None:
    with pytest.raises(MilError, match="the machine: no room"), crew(hire_nobody):
        pass
    with pytest.raises(MilError, match="ended with code 3, 3 times"), crew(hire_dead):
        pass


def test_a_place_where_none_can_begin_is_left_out_and_told() -> None:
    notes: list[str] = []
    notebook = Notebook()
    with crew(hire_toy, hire_nobody, partial(hire_toy, "doll"), first_alone=True,
              notes=notes) as engine:  # fmt: skip
        while len(notes) < 2:
            engine.run([1], Notebook(), stop=Event())
        engine.run([1, 2], notebook, stop=Event())
    assert notebook.results == {1: 1, 2: 4}
    assert sorted(notes) == [
        "going on without place 1: the machine: no room",
        f"going on without place 2: the worker on place 2: doll; expected toy, {AS_THE_OTHERS}",
    ]


def test_a_stop_finishes_what_was_begun() -> None:
    stop = Event()
    notebook = Notebook(on_done=lambda job: stop.set())
    with crew(hire_toy) as engine:
        engine.run(range(50), notebook, stop=stop)
    assert 0 < len(notebook.results) <= 2


def test_workers_let_go_of_what_they_hold_when_they_are_sent_home(tmp_path: Path) -> None:
    hire = partial(hire_toy, farewells=tmp_path)
    with crew(hire) as engine:
        engine.run([1, 2, 3], Notebook(), stop=Event())
    assert len(list(tmp_path.iterdir())) == 1
