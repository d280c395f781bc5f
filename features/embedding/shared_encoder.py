"""Worker whose processes read tiles side by side for one encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from features.embedding.config import BaseEmbedConfig
from features.embedding.results import SlideResult
from features.embedding.sources import Source, record_crash
from features.embedding.worker import (
    BatchSizeReduced,
    EmbeddingWorker,
    StagesTimed,
    Warned,
    WorkerInfo,
)
from features.encoders.base import Encoder
from features.encoders.serving import EncoderAddress, EncoderServer, RemoteEncoder
from features.parallel.base import Job, JobQueue
from features.parallel.pool import WorkerPool
from features.parallel.processes import ProcessTransport, no_room_error
from features.utils.hardware import available_memory, available_shared_memory
from features.utils.stage_times import DEVICE_STAGES, STAGE_TIMES

__all__ = ["SharedEncoderWorker", "reading_processes"]

_MAX_PROCESSES = 16
_MAX_SHARED_BYTES = 1 << 30
_PROCESS_BYTES = 1 << 30
"""Twice what a process takes for slides of 12,000 px square."""
_FEW_TILES = 1_000
"""Tiles that are read in less time than starting processes would save."""


def reading_processes(
    device_type: str,
    config: BaseEmbedConfig,
    *,
    n_tiles_expected: int | None,
    n_sources: int | None = None,
    n_workers: int = 1,
) -> int:
    """Return how many processes should read tiles for a device; 1 for this one's threads alone.

    Threads of one process wait for its interpreter, so that two of them hardly read more tiles than
    one. Beside an encoder on the CPU, which takes nearly all of the time, there is nothing to gain,
    and few tiles are read before other processes have started. A slide is read by one process, so
    there are no more than ``n_sources``; ``n_workers`` share them and the memory.
    """
    is_small = n_tiles_expected is not None and n_tiles_expected < _FEW_TILES
    if device_type == "cpu" or is_small:
        return 1
    shared_bytes = min(_MAX_SHARED_BYTES, available_shared_memory() // n_workers)
    n_shared = shared_bytes // EncoderServer.shared_bytes(_batch_shape(config))
    n_in_memory = available_memory() // n_workers // _PROCESS_BYTES
    n_parts = _MAX_PROCESSES if n_sources is None else -(-n_sources // n_workers)
    return max(1, min(config.n_threads, _MAX_PROCESSES, n_parts, n_shared, n_in_memory))


class SharedEncoderWorker:
    """Worker with ``n_processes`` further processes, which read tiles and write bags.

    They are embedding workers, each with slides of its own, whose batches the encoder of this
    process embeds. They start while ``load_encoder`` loads it. One that dies is replaced, and its
    slides are read again.
    """

    def __init__(
        self, bags_dir: Path, load_encoder: Callable[[], Encoder], config: BaseEmbedConfig, *,
        n_processes: int, n_workers: int = 1,
    ) -> None:  # fmt: skip
        self._queue: JobQueue | None = None
        self._warnings: list[str] = []
        remote = config.without_encoder()
        n_threads, n_more = divmod(config.n_threads, n_processes)
        try:
            server = EncoderServer(batch_shape=_batch_shape(config), n_clients=n_processes)
        except OSError as error:
            raise no_room_error(
                "reading processes", "the encoder cannot be shared with them", error
            ) from error
        with ExitStack() as stack:
            self._server = stack.enter_context(server)
            factories = {
                f"reading process {address.client + 1}": _ReadingWorkerFactory(
                    bags_dir=bags_dir, address=address, n_workers=n_workers * n_processes,
                    config=replace(remote, n_workers=n_threads + (address.client < n_more)),
                )
                for address in self._server.addresses
            }  # fmt: skip
            self._pool = stack.enter_context(
                WorkerPool(
                    ProcessTransport(factories, import_main=False),
                    start_first_only=False, on_warning=self._warn, wait_for_first=False,
                )
            )  # fmt: skip
            encoder = load_encoder()
            server.serve(encoder)
            self.info = WorkerInfo.of(encoder, config)
            self._stack = stack.pop_all()

    def run(self, queue: JobQueue) -> None:
        """Write bags until the queue offers no source."""
        self._server.restart_clock()
        before = STAGE_TIMES.as_dict()
        self._queue = queue
        while self._warnings:
            self._warn(self._warnings.pop(0))
        listener = _Listener(queue)
        self._pool.run(listener.sources(), listener, stop=Event(), on_requeue=listener.requeue)
        after = STAGE_TIMES.as_dict()
        queue.send_message(
            StagesTimed({stage: after[stage] - before[stage] for stage in DEVICE_STAGES})
        )

    def close(self) -> None:
        """End the processes."""
        self._stack.close()

    def _warn(self, text: str) -> None:
        """Pass a warning of the pool on at once, or as soon as there are slides."""
        if self._queue is None:
            self._warnings.append(text)
        else:
            self._queue.send_message(Warned(text))


def _batch_shape(config: BaseEmbedConfig) -> tuple[int, int, int, int]:
    """Shape of a batch, (n, height, width, 3) in px."""
    return config.batch_tiles, config.side_px, config.side_px, 3


@dataclass(frozen=True, kw_only=True)
class _ReadingWorkerFactory:
    """Builds a worker whose encoder is in another process; picklable while it is started."""

    bags_dir: Path
    config: BaseEmbedConfig
    address: EncoderAddress
    n_workers: int

    def __call__(self) -> EmbeddingWorker:
        encoder = RemoteEncoder(self.address)
        return EmbeddingWorker(self.bags_dir, encoder, self.config, n_workers=self.n_workers)


class _Listener:
    """Passes what the processes report on to the queue from which their slides come."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._jobs: dict[str, Job] = {}
        self._runtimes: set[str] = set()

    def sources(self) -> Iterator[Source[Any]]:
        """Yield sources of the queue while it offers any."""
        for job in self._queue.jobs():
            self._jobs[job.payload.bag_id] = job
            yield job.payload.without_encoder()

    def requeue(self, payload: Source[Any]) -> None:
        """Return a source that another command is embedding."""
        self._queue.requeue(self._jobs.pop(payload.bag_id))

    def on_done(self, payload: Source[Any], result: SlideResult) -> None:
        """Report the result of a source."""
        self._queue.finish(self._jobs.pop(payload.bag_id), result)

    def on_failed(self, payload: Source[Any], reason: str) -> None:
        """Report that a source crashed every process that read it."""
        self.on_done(payload, record_crash(payload, reason))

    def on_message(self, message: object) -> None:
        """Pass a message on, unless it is about the encoder, of which there is only one."""
        if isinstance(message, StagesTimed):
            seconds = {s: value for s, value in message.seconds.items() if s not in DEVICE_STAGES}
            message = StagesTimed(seconds)
        elif isinstance(message, BatchSizeReduced):
            if message.runtime in self._runtimes:
                return
            self._runtimes.add(message.runtime)
        self._queue.send_message(message)
