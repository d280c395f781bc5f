"""Worker that embeds sources and writes their bags."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from features.bags.bag import Fingerprint
from features.bags.h5 import bag_path, write_bag
from features.embedding.batching import SlideBuffer, decoding_pool, encode_slides
from features.embedding.config import BaseEmbedConfig
from features.embedding.finished import read_finished_bag
from features.embedding.results import SlideResult
from features.embedding.sources import SILENT_S, Source, silence_text
from features.encoders.base import Encoder
from features.encoders.runtime_cache import take_write_error
from features.errors import MilError, OutputError, one_line
from features.parallel.base import Job, JobQueue
from features.parallel.locks import shared_locks
from features.utils.files import OPEN_FILES_HINT, find_temporary_files, make_folder
from features.utils.stage_times import STAGE_TIMES

__all__ = [
    "BatchSizeReduced",
    "EmbeddingWorker",
    "OutputFull",
    "SourceStarted",
    "StagesTimed",
    "TilesDone",
    "Warned",
    "WorkerInfo",
]

_MAX_UNWRITTEN_BAGS = 4
_MESSAGE_INTERVAL_S = 0.5
_MAX_MESSAGES_PER_S = 100


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """Fingerprint of the bags and runtime of the encoder, which all workers of a run share.

    ``preprocessing_source`` says where mean and standard deviation of the channels come from,
    ``cache_error`` why the cache of encoders could not be written here, else nothing.
    """

    fingerprint: Fingerprint
    runtime: str
    preprocessing_source: str = ""
    cache_error: str = field(default="", compare=False)

    @classmethod
    def of(cls, encoder: Encoder, config: BaseEmbedConfig) -> WorkerInfo:
        """Return what a worker with this encoder makes; forgets an error of the cache."""
        return cls(
            fingerprint=config.make_fingerprint(encoder), runtime=encoder.execution,
            preprocessing_source=getattr(encoder, "preprocessing_source", ""),
            cache_error=take_write_error(),
        )  # fmt: skip

    def __str__(self) -> str:
        """Return a short description."""
        made = self.fingerprint
        return f"{made.encoder} with weights {made.weights_sha256[:12]}…, run as {self.runtime!r}"


@dataclass(frozen=True)
class SourceStarted:
    """Message: the number of tiles, or images, of a source is known."""

    bag_id: str
    n_tiles: int


@dataclass(frozen=True)
class TilesDone:
    """Message: tiles finished since the last such message, half a second ago or more."""

    n_tiles: int


@dataclass(frozen=True)
class BatchSizeReduced:
    """Message: the device ran out of memory, and the encoder continues with smaller batches."""

    device: str
    runtime: str


@dataclass(frozen=True)
class StagesTimed:
    """Message: what the stages of the jobs took until the queue was empty, seconds by stage."""

    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Warned:
    """Message: text for the user, e.g. that a process died and was replaced."""

    text: str


@dataclass(frozen=True)
class OutputFull:
    """Message: the folder cannot be written to, so that all other sources would fail too."""

    error: OutputError


@dataclass(frozen=True, kw_only=True, eq=False)
class _OpenSource:
    """A source whose tiles are being embedded; opened at ``started`` on the monotonic clock, s."""

    job: Job
    buffer: SlideBuffer[Any]
    closing: ExitStack
    started: float


class EmbeddingWorker:
    """Worker that writes bags to a folder, which several workers may share.

    The folder is created if missing. The more workers a run has, the less often each reports its
    progress: every 0.5 seconds or more.
    """

    def __init__(
        self, bags_dir: Path, encoder: Encoder, config: BaseEmbedConfig, *, n_workers: int = 1
    ) -> None:
        self.bags_dir, self.encoder, self.config = make_folder(bags_dir), encoder, config
        self.message_interval_s = max(_MESSAGE_INTERVAL_S, n_workers / _MAX_MESSAGES_PER_S)
        self.info = WorkerInfo.of(encoder, config)
        self._stack = ExitStack()
        self.locks = self._stack.enter_context(shared_locks(bags_dir / ".claims"))
        self._leftovers = find_temporary_files(bags_dir)

    def close(self) -> None:
        """Release all locks."""
        self._stack.close()

    def run(self, queue: JobQueue) -> None:
        """Write bags until the queue offers no source; batches span sources."""
        run = _WorkerRun(self, queue)
        before = STAGE_TIMES.as_dict()
        unwritten: deque[Future[None]] = deque()
        with (
            ThreadPoolExecutor(1, thread_name_prefix="writing") as writer,
            decoding_pool(self.encoder, self.config.n_threads) as pool,
            run.watched(),
        ):
            for buffer in encode_slides(
                run.buffers(pool), self.encoder, batch_tiles=self.config.batch_tiles,
                pool=pool, on_tiles=run.count_tiles,
            ):  # fmt: skip
                unwritten.append(writer.submit(run.write, buffer))
                while len(unwritten) > _MAX_UNWRITTEN_BAGS:
                    unwritten.popleft().result()
            while unwritten:
                unwritten.popleft().result()
        run.report_tiles()
        after = STAGE_TIMES.as_dict()
        queue.send_message(StagesTimed({stage: after[stage] - before[stage] for stage in after}))

    def remove_temporary_files(self, bag_id: str, *, rescan: bool) -> None:
        """Remove the temporary files of a killed process for a bag whose lock is held."""
        if rescan:
            self._leftovers = find_temporary_files(self.bags_dir)
        for part in self._leftovers.get(f"{bag_id}.h5", ()):
            part.unlink(missing_ok=True)


class _WorkerRun:
    """One call of :meth:`EmbeddingWorker.run`."""

    def __init__(self, worker: EmbeddingWorker, queue: JobQueue) -> None:
        self._worker, self._queue = worker, queue
        self._open_sources: dict[SlideBuffer[Any], _OpenSource] = {}
        self._lock = Lock()
        self._execution = worker.encoder.execution
        self._n_unreported = 0
        self._reported_at = self._progress_at = time.monotonic()
        self._in_work: dict[str, Path] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Warn during the block when nothing was finished for ten minutes."""
        ended = Event()
        thread = Thread(target=self._watch, args=(ended,), name="watching", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def buffers(self, pool: ThreadPoolExecutor) -> Iterator[SlideBuffer[Any]]:
        """Open sources, the next ones while this one is read; runs in the reading thread.

        The tissue of a large slide must not be awaited when several small ones come before it, and
        it must not keep small ones waiting that are open: the first that is ready comes next.
        The threads that read tiles also open: more threads than cores wait for the interpreter.
        """
        n_ahead = self._worker.config.n_opened_ahead
        ahead: list[Future[_OpenSource | None]] = []
        for job in self._queue.jobs():
            ahead.append(pool.submit(self._open, job))
            if len(ahead) > n_ahead:
                yield from self._start(_pop_ready(ahead))
        while ahead:
            yield from self._start(_pop_ready(ahead))

    def count_tiles(self, n_tiles: int) -> None:
        """Count finished tiles, and report them at intervals."""
        with self._lock:
            self._n_unreported += n_tiles
            self._progress_at = time.monotonic()
        if time.monotonic() - self._reported_at > self._worker.message_interval_s:
            self.report_tiles()

    def report_tiles(self) -> None:
        """Report the tiles finished since the last report, and reduced batch sizes."""
        with self._lock:
            n_tiles, self._n_unreported = self._n_unreported, 0
            self._reported_at = time.monotonic()
        if n_tiles:
            self._queue.send_message(TilesDone(n_tiles))
        encoder = self._worker.encoder
        if encoder.execution != self._execution:
            self._execution = encoder.execution
            self._queue.send_message(BatchSizeReduced(str(encoder.device), encoder.execution))

    def write(self, buffer: SlideBuffer[Any]) -> None:
        """Write the bag of a finished source, or report why there is none."""
        opened = self._open_sources.pop(buffer)
        source: Source[Any] = opened.job.payload
        try:
            with STAGE_TIMES.timed("write"):
                with opened.closing:
                    bag = source.build_bag(buffer, self._worker.encoder)
                write_bag(bag_path(self._worker.bags_dir, source.bag_id), bag)
        except Exception as error:  # noqa: BLE001 - one slide must not stop the others
            self._fail(opened.job, error, seconds=time.monotonic() - opened.started)
            return
        result = SlideResult.of_bag(
            source.path, bag.meta, status="done" if len(bag.features) else "empty",
            seconds=time.monotonic() - opened.started,
            message=next(iter(buffer.failures.values()), ""),
        )  # fmt: skip
        self._finish(opened.job, result)

    def _open(self, job: Job) -> _OpenSource | None:
        """Open a source; None if it is finished, locked by another process, or cannot be opened."""
        started = time.monotonic()
        source: Source[Any] = job.payload
        worker = self._worker
        try:
            if not worker.locks.acquire(source.bag_id):
                self._queue.requeue(job)
                return None
            self._in_work[source.bag_id] = source.path
            if not worker.config.overwrite and (
                meta := read_finished_bag(worker.bags_dir, source.bag_id, worker.info.fingerprint)
            ):
                self._finish(job, SlideResult.of_bag(source.path, meta, status="skipped"))
                return None
            worker.remove_temporary_files(source.bag_id, rescan=job.n_crashes > 0)
            with ExitStack() as stack:  # Closes the source if no buffer can be made.
                buffer = source.make_buffer(
                    stack.enter_context(source.open()), dim=worker.encoder.dim
                )
                return _OpenSource(job=job, buffer=buffer, closing=stack.pop_all(), started=started)
        except Exception as error:  # noqa: BLE001 - one slide must not stop the others
            self._fail(job, error, seconds=time.monotonic() - started)
            return None

    def _start(self, opened: _OpenSource | None) -> Iterator[SlideBuffer[Any]]:
        if opened is not None:
            buffer = opened.buffer
            self._open_sources[buffer] = opened
            bag_id = opened.job.payload.bag_id
            self._queue.send_message(SourceStarted(bag_id, buffer.instances.n_tiles))
            yield buffer

    def _fail(self, job: Job, error: Exception, *, seconds: float) -> None:
        source: Source[Any] = job.payload
        text = str(error)
        if not isinstance(error, MilError):
            text = f"{source.path}: unforeseen {type(error).__name__}: {one_line(text)}"
        if isinstance(error, OutputError):
            self._queue.send_message(OutputFull(error))
        elif os.strerror(errno.EMFILE) in text:  # Every reader library words the rest differently.
            text = f"{text.rstrip('.')}. {OPEN_FILES_HINT}"
        result = SlideResult.of_failure(source.path, text, slide_id=source.bag_id, seconds=seconds)
        if not isinstance(error, OutputError):
            source.record_failure(result.message)
        self._finish(job, result)

    def _watch(self, ended: Event) -> None:
        warned_at = 0.0
        while not ended.wait(SILENT_S / 10):
            since, paths = self._progress_at, self._in_work.copy().values()
            if paths and since != warned_at and time.monotonic() - since > SILENT_S:
                warned_at = since
                self._queue.send_message(Warned(
                    f"{silence_text(paths)} Ctrl-C twice stops the command, and what is finished "
                    "is kept."
                ))  # fmt: skip

    def _finish(self, job: Job, result: SlideResult) -> None:
        self._in_work.pop(job.payload.bag_id, None)
        self._progress_at = time.monotonic()
        self._worker.locks.release(job.payload.bag_id)
        self._queue.finish(job, result)


def _pop_ready(opening: list[Future[_OpenSource | None]]) -> _OpenSource | None:
    """Wait for a source that is open, the earliest if there are several, and take it."""
    wait(opening, return_when=FIRST_COMPLETED)
    return opening.pop(next(i for i, future in enumerate(opening) if future.done())).result()
