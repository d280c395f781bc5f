from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from features.errors import KnownError
from features.parallel.pool import Crew
from features.parallel.ray_cluster import RayActors, Share, connected, shares_of_cluster
from tests.features.parallel.toys import Notebook, hire_nobody, hire_toy

SHARE = Share(n_actors=2, n_cpus=1, n_gpus=0)


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
    lines = RayActors(hire_toy, SHARE)
    with connected(None), Crew(lines, first_alone=True, on_note=notes.append) as engine:
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
    crew = Crew(RayActors(hire_nobody, SHARE), first_alone=False, on_note=print)
    with pytest.raises(KnownError, match="the machine: no room"), crew:
        pass


@pytest.mark.slow
def test_a_cluster_is_shared_out_by_gpus_or_cores(cluster: None) -> None:
    assert shares_of_cluster(device="auto", n_cpus=None) == Share(n_actors=1, n_cpus=2, n_gpus=0)
    assert shares_of_cluster(device="cpu", n_cpus=1) == SHARE
    with pytest.raises(KnownError, match="the largest with 2 cores and 0 GPUs"):
        shares_of_cluster(device="cpu", n_cpus=3)
    with pytest.raises(KnownError, match="expected one with 1 cores and a GPU"):
        shares_of_cluster(device="cuda", n_cpus=None)
    with pytest.raises(KnownError, match="one device of one machine"):
        shares_of_cluster(device="cuda:1", n_cpus=None)


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else real(name)
    )
    with pytest.raises(KnownError, match=r"not installed.*mil-slides\[ray\]"), connected(None):
        pass


def test_an_address_of_a_client_is_refused() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    with pytest.raises(KnownError, match="on a node of the cluster"), connected("ray://head:10001"):
        pass
