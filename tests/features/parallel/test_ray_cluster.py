from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from features.errors import MilError
from features.parallel.pool import WorkerPool
from features.parallel.ray_cluster import ActorResources, RayTransport, plan_actors, ray_connection
from tests.features.parallel.toys import Notebook, hire_nobody, hire_toy

SHARE = ActorResources(n_actors=2, n_cpus=1, n_gpus=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of two cores on this machine, for this module alone."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_actors_share_jobs_and_take_over_from_those_that_die(cluster: None, tmp_path: Path) -> None:
    notes: list[str] = []
    notebook = Notebook()
    bomb = tmp_path / "bomb"
    lines = RayTransport(hire_toy, SHARE)
    with ray_connection(None), WorkerPool(lines, first_alone=True, on_note=notes.append) as engine:
        assert engine.card == "toy"
        engine.run([1, bomb, 2, "deadly", 3, "impossible", 4], notebook, stop=Event())
    assert set(notebook.results) == {1, 2, 3, 4, bomb}
    assert set(notebook.reasons) == {"deadly", "impossible"}
    assert "ValueError: nobody can do this" in notebook.reasons["impossible"]
    assert "died" in notebook.reasons["deadly"]
    assert "began 1" in notebook.news
    assert any("taken over from it: 1" in note for note in notes)


@pytest.mark.slow
def test_an_actor_that_cannot_begin_says_why(cluster: None) -> None:
    crew = WorkerPool(RayTransport(hire_nobody, SHARE), first_alone=False, on_note=print)
    with pytest.raises(MilError, match="the machine: no room"), crew:
        pass


@pytest.mark.slow
def test_a_cluster_is_shared_out_by_gpus_or_cores(cluster: None) -> None:
    assert plan_actors(device="auto", n_cpus=None) == ActorResources(n_actors=1, n_cpus=2, n_gpus=0)
    assert plan_actors(device="cpu", n_cpus=1) == SHARE
    with pytest.raises(MilError, match="the largest with 2 cores and 0 GPUs"):
        plan_actors(device="cpu", n_cpus=3)
    with pytest.raises(MilError, match="expected one with 1 cores and a GPU"):
        plan_actors(device="cuda", n_cpus=None)
    with pytest.raises(MilError, match="one device of one machine"):
        plan_actors(device="cuda:1", n_cpus=None)


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else real(name)
    )
    with pytest.raises(MilError, match=r"not installed.*mil-slides\[ray\]"), ray_connection(None):
        pass


def test_an_address_of_a_client_is_refused() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    with (
        pytest.raises(MilError, match="on a node of the cluster"),
        ray_connection("ray://head:10001"),
    ):
        pass
