"""Workers as actors of a Ray cluster."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

from features.errors import MilError
from features.parallel.base import Hire
from features.parallel.messages import Shutdown, StartFailed, WorkerDied
from features.parallel.worker_loop import run_worker

__all__ = ["ActorResources", "RayTransport", "plan_actors", "ray_connection"]

_SECONDS_TO_LEAVE = 20.0
_SECONDS_TO_ANSWER = 10.0
_LONGEST_REASON = 160


@dataclass(frozen=True, kw_only=True)
class ActorResources:
    """What each actor takes of a cluster."""

    n_actors: int
    """Actors."""
    n_cpus: int
    """Cores of each."""
    n_gpus: int
    """GPUs of each, 0 or 1."""


@contextmanager
def ray_connection(address: str | None) -> Iterator[None]:
    """Be connected to a Ray cluster.

    Ray reports statistics of its use to its makers unless told not to: it is told not to, where
    the environment does not say otherwise.

    Parameters
    ----------
    address
        ``host:port`` of the cluster; None for what ``RAY_ADDRESS`` names, else the cluster this
        machine is part of, else a new one on this machine alone.

    Raises
    ------
    MilError
        If Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = f"Ray cluster {address}" if address else "Ray cluster"
    if importlib.util.find_spec("ray") is None:
        raise MilError(
            where, actual="Ray is not installed", hint="Install it: pip install 'mil-slides[ray]'"
        )
    if address is not None and "://" in address:
        raise MilError(
            where, actual="an address for Ray's client", expected="host:port of the cluster itself",
            hint="Run this on a node of the cluster.",
        )  # fmt: skip
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    try:
        _check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise MilError(
            where,
            actual=f"no connection ({_last_line(error)})",
            hint="'ray status' on a node of the cluster tells whether it runs; this command has "
            "to run on one of its nodes.",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def plan_actors(*, device: str, n_cpus: int | None) -> ActorResources:
    """How a cluster is shared out: an actor a GPU, or where there is none, an actor a node.

    Parameters
    ----------
    device
        ``auto``, ``cuda`` or ``cpu``.
    n_cpus
        Cores of an actor; None for a GPU's part of its node, or all cores of a node.

    Raises
    ------
    MilError
        If no node has so much.
    """
    ray = _ray()
    nodes = [
        (int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    if device not in {"auto", "cpu", "cuda"}:
        raise MilError(
            f"device {device!r}", actual="one device of one machine",
            expected="auto, cpu or cuda on a Ray cluster",
        )  # fmt: skip
    with_gpus = [(cpus, gpus) for cpus, gpus in nodes if gpus]
    if device != "cpu" and with_gpus:
        n_cpus = n_cpus or max(1, min(cpus // gpus for cpus, gpus in with_gpus))
        n_actors = sum(min(gpus, cpus // n_cpus) for cpus, gpus in with_gpus)
        share = ActorResources(n_actors=n_actors, n_cpus=n_cpus, n_gpus=1)
    elif device == "cuda":
        share = ActorResources(n_actors=0, n_cpus=1, n_gpus=1)
    else:
        n_cpus = n_cpus or min((cpus for cpus, _ in nodes if cpus), default=1)
        share = ActorResources(
            n_actors=sum(cpus // n_cpus for cpus, _ in nodes), n_cpus=n_cpus, n_gpus=0
        )
    if not share.n_actors:
        raise MilError(
            "Ray cluster",
            actual=f"{len(nodes)} nodes, the largest with {max(nodes, default=(0, 0))[0]} "
            "cores and "
            f"{max((gpus for _, gpus in nodes), default=0)} GPUs",
            expected=f"one with {share.n_cpus} cores" + " and a GPU" * share.n_gpus,
            hint="Name fewer cores with --workers, or --device cpu.",
        )
    return share


class RayTransport:
    """Workers as actors of the cluster that this process is connected to.

    Parameters
    ----------
    hire
        What makes a worker.
    share
        How many, and what each takes.
    """

    def __init__(self, hire: Hire, share: ActorResources) -> None:
        ray = _ray()
        self._ray = ray
        self._hire = self._ray.put(hire)  # it may be large, and is fetched once a machine
        self._kind = self._ray.remote(
            num_cpus=share.n_cpus, num_gpus=share.n_gpus, max_concurrency=2, max_restarts=0,
            scheduling_strategy="SPREAD",
        )(_Actor)  # fmt: skip
        self._places = tuple(f"actor {number}" for number in range(1, share.n_actors + 1))
        self._actors: dict[str, Any] = {}
        self._streams: dict[Any, str] = {}

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the places."""
        return self._places

    def start(self, place: str) -> None:
        """Start the worker of a place, or another after one that died; it waits for its share."""
        actor = self._kind.remote(self._hire)
        self._actors[place] = actor
        stream = actor.messages.options(num_returns="streaming").remote()
        self._streams[stream] = place

    def send(self, place: str, message: object) -> None:
        """Send a message to a worker; one that is dead gets none."""
        if place in self._actors:
            self._actors[place].give.remote(message)

    def receive(self, *, timeout_s: float) -> list[tuple[str, object]]:
        """What workers have sent since, each with its place; waits for something to come."""
        streams = list(self._streams)
        if not streams:
            time.sleep(timeout_s)
            return []
        self._ray.wait(streams, num_returns=1, timeout=timeout_s, fetch_local=False)
        ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0, fetch_local=False)
        return [self._next(stream) for stream in ready]

    def close(self, *, sent_home: Collection[str]) -> None:
        """Send the workers of these places home, and end all others."""
        for place in sent_home:
            self.send(place, Shutdown())
        until = time.monotonic() + _SECONDS_TO_LEAVE
        while time.monotonic() < until and set(self._actors) & set(sent_home):
            self.receive(timeout_s=1.0)
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._streams.clear()

    def _next(self, stream: Any) -> tuple[str, object]:
        """The next message of a worker; with the last one it is dismissed."""
        place = self._streams[stream]
        try:
            message = self._ray.get(next(stream))
        except StopIteration:
            message = WorkerDied("went home")
        except self._ray.exceptions.RayError as error:
            message = WorkerDied(f"died ({_last_line(error)})")
        if isinstance(message, (WorkerDied, StartFailed)):
            del self._streams[stream]
            self._ray.kill(self._actors.pop(place))
        return place, message


class _Actor:
    """What runs on the cluster: a worker in a thread of its own, and its two lines."""

    def __init__(self, hire: Hire) -> None:
        self._inbox: SimpleQueue[object] = SimpleQueue()
        self._outbox: SimpleQueue[object] = SimpleQueue()
        Thread(target=self._work, args=(hire,), name="worker", daemon=True).start()

    def give(self, message: object) -> None:
        self._inbox.put(message)

    def messages(self) -> Iterator[object]:
        while (message := self._outbox.get()) is not None:
            yield message

    def _work(self, hire: Hire) -> None:
        run_worker(hire, self._outbox.put, self._inbox.get)
        self._outbox.put(None)


def _check_reachable(address: str) -> None:
    """Raise at once where nobody listens; Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


def _ray() -> Any:
    """The package: an extra, and heavy."""
    return importlib.import_module("ray")


def _last_line(error: BaseException) -> str:
    """What went wrong in the end; Ray tells whole stories."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:_LONGEST_REASON]
