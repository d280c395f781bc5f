from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest

from features.errors import MilError
from features.parallel import ray_cluster
from features.parallel.pool import WorkerPool
from features.parallel.ray_cluster import ActorResources, RayTransport, plan_actors, ray_connection
from tests.features.parallel.toys import RecordingListener, make_toy, raise_error

RESOURCES = ActorResources(n_actors=2, n_cpus=1, n_gpus=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of two cores on this machine, for this module alone."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_actors_share_jobs_and_those_of_dead_actors(cluster: None, tmp_path: Path) -> None:
    warnings: list[str] = []
    listener = RecordingListener()
    bomb = tmp_path / "bomb"
    transport = RayTransport(make_toy, RESOURCES)
    pool = WorkerPool(transport, start_first_only=True, on_warning=warnings.append)
    with ray_connection(None), pool as executor:
        assert executor.info == "toy"
        executor.run([1, bomb, 2, "deadly", 3, "impossible", 4], listener, stop=Event())
    assert set(listener.results) == {1, 2, 3, 4, bomb}
    assert set(listener.reasons) == {"deadly", "impossible"}
    assert "ValueError: this cannot be computed" in listener.reasons["impossible"]
    assert "died" in listener.reasons["deadly"]
    assert "started 1" in listener.messages
    assert any("jobs queued again: 1" in warning for warning in warnings)


@pytest.mark.slow
def test_an_actor_that_cannot_start_gives_the_reason(cluster: None) -> None:
    transport = RayTransport(raise_error, RESOURCES)
    pool = WorkerPool(transport, start_first_only=False, on_warning=print)
    with pytest.raises(MilError, match="the machine: no room"), pool:
        pass


@pytest.mark.parametrize("fewer_by", ["--workers", "OMP_NUM_THREADS=N"])
def test_a_cluster_without_room_says_how_to_ask_for_less(
    fewer_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray_cluster, "_ray", lambda: SimpleNamespace(nodes=lambda: [node]))
    with pytest.raises(MilError, match=f"Ask for fewer cores by {fewer_by}, or for --device cpu"):
        plan_actors(device="cuda", n_cpus=3, fewer_by=fewer_by)
    assert plan_actors(device="cpu", n_cpus=2, fewer_by=fewer_by).n_actors == 1


@pytest.mark.slow
def test_actors_are_planned_by_gpus_or_cores(cluster: None) -> None:
    assert plan_actors(device="auto", n_cpus=None) == ActorResources(n_actors=1, n_cpus=2, n_gpus=0)
    assert plan_actors(device="cpu", n_cpus=1) == RESOURCES
    with pytest.raises(MilError, match="the largest with 2 cores and 0 GPUs"):
        plan_actors(device="cpu", n_cpus=3)
    with pytest.raises(MilError, match="expected a node with 1 cores and a GPU"):
        plan_actors(device="cuda", n_cpus=None)
    with pytest.raises(MilError, match="one device of one machine"):
        plan_actors(device="cuda:1", n_cpus=None)


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else real(name)
    )
    with pytest.raises(MilError, match=r"not installed.*mil-slides\[ray\]"), ray_connection(None):
        pass


def test_an_address_of_a_client_server_is_refused() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    with (
        pytest.raises(MilError, match="on a node of the cluster"),
        ray_connection("ray://head:10001"),
    ):
        pass
