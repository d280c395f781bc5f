"""Transport to workers that are actors of a Ray cluster."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread, current_thread, main_thread
from typing import Any

from features.errors import MilError
from features.parallel.base import WorkerFactory
from features.parallel.messages import Signal, StartFailed, WorkerDied
from features.parallel.worker_loop import run_worker

__all__ = ["ActorResources", "RayTransport", "plan_actors", "ray_connection"]

_SHUTDOWN_S = 20.0
_CONNECT_TIMEOUT_S = 10.0
_MAX_REASON_CHARS = 160


@dataclass(frozen=True, kw_only=True)
class ActorResources:
    """Number of actors, and cores and GPUs (0 or 1) of each."""

    n_actors: int
    n_cpus: int
    n_gpus: int


@contextmanager
def ray_connection(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster for the duration of the block.

    ``address`` is ``host:port`` of the cluster; None for ``RAY_ADDRESS``, else the cluster to which
    this machine belongs, else a new one on this machine alone. Ray's usage statistics are switched
    off, unless the environment sets them. Raises MilError if Ray is not installed, or no cluster
    answers at the address within 10 seconds.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = f"Ray cluster {address}" if address else "Ray cluster"
    if importlib.util.find_spec("ray") is None:
        raise MilError(
            where, actual="Ray is not installed", hint="Install it: pip install 'mil-slides[ray]'"
        )
    if address is not None and "://" in address:
        raise MilError(
            where, actual="an address of a Ray client server", expected="host:port of the cluster",
            hint="Run this command on a node of the cluster.",
        )  # fmt: skip
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    try:
        _check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
        with _keep_sigterm():
            ray.init(
                address=address, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise MilError(
            where,
            actual=f"no connection ({_last_line(error)})",
            hint="Run this command on a node of the cluster; 'ray status' shows whether it is up.",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def plan_actors(*, device: str, n_cpus: int | None, fewer_by: str = "--workers") -> ActorResources:
    """Return how many actors fit the cluster: one per GPU, or without GPUs, one per node.

    ``device`` is ``auto``, ``cuda`` or ``cpu``; ``n_cpus`` is the number of cores per actor, None
    for an even part of a node's cores per GPU, or all of a node's cores; ``fewer_by`` is how a user
    asks for fewer. Raises MilError if no node is large enough.
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
        resources = ActorResources(n_actors=n_actors, n_cpus=n_cpus, n_gpus=1)
    elif device == "cuda":
        resources = ActorResources(n_actors=0, n_cpus=1, n_gpus=1)
    else:
        n_cpus = n_cpus or min((cpus for cpus, _ in nodes if cpus), default=1)
        resources = ActorResources(
            n_actors=sum(cpus // n_cpus for cpus, _ in nodes), n_cpus=n_cpus, n_gpus=0
        )
    if not resources.n_actors:
        most_cpus, most_gpus = (max(counts) for counts in zip((0, 0), *nodes, strict=True))
        raise MilError(
            "Ray cluster",
            actual=f"{len(nodes)} nodes, the largest with {most_cpus} cores and {most_gpus} GPUs",
            expected=f"a node with {resources.n_cpus} cores" + " and a GPU" * resources.n_gpus,
            hint=f"Ask for fewer cores by {fewer_by}, or for --device cpu.",
        )
    return resources


class RayTransport:
    """Transport to workers, built by a factory, that are actors of the connected cluster."""

    def __init__(self, factory: WorkerFactory, resources: ActorResources) -> None:
        self._ray = _ray()
        self._factory = self._ray.put(factory)  # It may be large: each machine fetches it once.
        self._actor_class = self._ray.remote(
            num_cpus=resources.n_cpus, num_gpus=resources.n_gpus, max_concurrency=2, max_restarts=0,
            scheduling_strategy="SPREAD",
        )(_Actor)  # fmt: skip
        self.worker_ids = tuple(f"actor {number}" for number in range(1, resources.n_actors + 1))
        self._actors: dict[str, Any] = {}
        self._streams: dict[Any, str] = {}

    def start(self, worker_id: str) -> None:
        """Start a worker, or its replacement after it died, once its resources are free."""
        actor = self._actor_class.remote(self._factory)
        self._actors[worker_id] = actor
        stream = actor.messages.options(num_returns="streaming").remote()
        self._streams[stream] = worker_id

    def send(self, worker_id: str, message: object) -> None:
        """Send a message to a worker; ignored if it is dead."""
        if worker_id in self._actors:
            self._actors[worker_id].receive.remote(message)

    def receive(self, *, timeout_s: float) -> list[tuple[str, object]]:
        """Return new messages with the ids of their workers; wait up to ``timeout_s`` seconds."""
        streams = list(self._streams)
        if not streams:
            time.sleep(timeout_s)
            return []
        self._ray.wait(streams, num_returns=1, timeout=timeout_s, fetch_local=False)
        ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0, fetch_local=False)
        return [self._next(stream) for stream in ready]

    def close(self, *, shutdown: Collection[str]) -> None:
        """Shut down these workers within 20 seconds, and kill all others and any late ones."""
        for worker_id in shutdown:
            self.send(worker_id, Signal.SHUTDOWN)
        until = time.monotonic() + _SHUTDOWN_S
        while time.monotonic() < until and set(self._actors) & set(shutdown):
            self.receive(timeout_s=1.0)
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._streams.clear()

    def _next(self, stream: Any) -> tuple[str, object]:
        """Return the next message of a worker; after the last one, its actor is killed."""
        worker_id = self._streams[stream]
        try:
            message = self._ray.get(next(stream))
        except StopIteration:
            message = WorkerDied("ended")
        except self._ray.exceptions.RayError as error:
            message = WorkerDied(f"died ({_last_line(error)})")
        if isinstance(message, (WorkerDied, StartFailed)):
            del self._streams[stream]
            self._ray.kill(self._actors.pop(worker_id))
        return worker_id, message


class _Actor:
    """Actor with a worker in a thread, and one queue in each direction."""

    def __init__(self, factory: WorkerFactory) -> None:
        self._inbox: SimpleQueue[object] = SimpleQueue()
        self._outbox: SimpleQueue[object] = SimpleQueue()
        Thread(target=self._run, args=(factory,), name="worker", daemon=True).start()

    def receive(self, message: object) -> None:
        self._inbox.put(message)

    def messages(self) -> Iterator[object]:
        while (message := self._outbox.get()) is not None:
            yield message

    def _run(self, factory: WorkerFactory) -> None:
        run_worker(factory, self._outbox.put, self._inbox.get)
        self._outbox.put(None)


@contextmanager
def _keep_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which Ray replaces, and the signal from Ray's own.

    A scheduler sends SIGTERM to all processes of a job, but this one lets the workers finish.
    """
    if current_thread() is not main_thread():  # Ray then leaves the handler as it is.
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _check_reachable(address: str) -> None:
    """Raise at once if nothing listens at the address; Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _ray() -> Any:
    """Import Ray, which is an optional and slow import."""
    return importlib.import_module("ray")


def _last_line(error: BaseException) -> str:
    """Return the last line of an error message; Ray's have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:_MAX_REASON_CHARS]
