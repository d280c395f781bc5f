"""The work of embedding in one process: sources opened, read, embedded, and their bags written."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Generic, Protocol, TypeVar

from features.bags.bag import Bag, BagMeta, Fingerprint, check_fingerprint
from features.bags.h5 import bag_path, read_meta, write_bag
from features.embedding.batching import Instances, SlideBuffer, encode_slides
from features.embedding.results import SlideResult, Status
from features.encoders.encoder import Encoder
from features.errors import BagError, MilError, OutputError
from features.parallel.base import Job, JobQueue
from features.parallel.locks import FolderLocks
from features.utils.files import OPEN_FILES_HINT, find_temporary_files, make_folder

__all__ = [
    "BatchSizeReduced",
    "EmbeddingWorker",
    "OutputFull",
    "Source",
    "SourceStarted",
    "TilesDone",
    "WorkerInfo",
    "read_finished_bag",
]

_SURVEYS_AHEAD = 1
_BAGS_BEHIND = 4
_SECONDS_BETWEEN_NEWS = 0.5
_MOST_NEWS_PER_S = 100

S = TypeVar("S", bound=Instances)


class Source(Protocol[S]):
    """What becomes one bag: a slide, or a series of images; survives pickling."""

    @property
    def bag_id(self) -> str:
        """Name of the bag."""
        ...

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    def open(self) -> AbstractContextManager[S]:
        """Open it and find what is to be embedded."""
        ...

    def work_on(self, opened: S, *, dim: int) -> SlideBuffer[S]:
        """What is to be done with it now that it is open, for embeddings of length ``dim``."""
        ...

    def build_bag(self, work: SlideBuffer[S], encoder: Encoder) -> Bag:
        """The bag, once everything is dealt with.

        Raises
        ------
        MilError
            If more of it failed than may.
        """
        ...

    def note_failure(self, message: str) -> None:
        """Called where no bag could be made of it."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """What all embedders of a run have in common."""

    fingerprint: Fingerprint
    """How their bags say they were made."""
    execution: str
    """How the backbone runs."""

    def __str__(self) -> str:
        """In a few words."""
        made = self.fingerprint
        return f"{made.encoder} of weights {made.weights_sha256[:12]}…, run as {self.execution!r}"


@dataclass(frozen=True)
class SourceStarted:
    """News: what is to be embedded of a source is known."""

    bag_id: str
    """Name of its bag."""
    n_tiles: int
    """How many tiles, or images."""


@dataclass(frozen=True)
class TilesDone:
    """News: tiles were dealt with."""

    n_tiles: int
    """How many since the last such news."""


@dataclass(frozen=True)
class BatchSizeReduced:
    """News: the device had not the memory for a batch, and the backbone now sees fewer tiles."""

    device: str
    """Which device."""
    execution: str
    """How the backbone runs now."""


@dataclass(frozen=True)
class OutputFull:
    """News: nothing more can be written, and every other source would end the same way."""

    error: OutputError
    """Why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job(Generic[S]):
    """A source in work."""

    deal: Job
    """Where it came from."""
    work: SlideBuffer[S]
    """What is known of it so far."""
    opened: ExitStack
    """Closes it."""
    started: float
    """When it was opened, on the monotonic clock, s."""

    @property
    def source(self) -> Source[S]:
        """What becomes a bag."""
        source: Source[S] = self.deal.payload
        return source

    @classmethod
    def open(cls, deal: Job, *, dim: int) -> _Job[S]:
        """Open a source for embeddings of length ``dim``."""
        started = time.monotonic()
        with ExitStack() as opened:  # closed at once where the work cannot be prepared
            work = deal.payload.work_on(opened.enter_context(deal.payload.open()), dim=dim)
            return cls(deal=deal, work=work, opened=opened.pop_all(), started=started)


class EmbeddingWorker:
    """A worker that makes bags in a folder; several may share it, each bag is made by one.

    Parameters
    ----------
    bags_dir
        Folder of the bags; made if missing.
    encoder
        The backbone.
    fingerprint
        How the bags will say they were made.
    batch_tiles
        Tiles through the backbone at once.
    n_workers
        Threads that decode.
    overwrite
        Embed again what has a bag.
    n_embedders
        How many work at the same time; many tell of their tiles less often.
    """

    def __init__(
        self,
        bags_dir: Path,
        encoder: Encoder,
        *,
        fingerprint: Fingerprint,
        batch_tiles: int,
        n_workers: int,
        overwrite: bool,
        n_embedders: int = 1,
    ) -> None:
        self.bags_dir, self.encoder = make_folder(bags_dir), encoder
        self.batch_tiles, self.n_workers = batch_tiles, n_workers
        self.overwrite = overwrite
        self.seconds_between_news = max(_SECONDS_BETWEEN_NEWS, n_embedders / _MOST_NEWS_PER_S)
        self.info = WorkerInfo(fingerprint=fingerprint, execution=encoder.execution)
        self.locks = FolderLocks(bags_dir / ".claims").__enter__()
        self._leftovers = find_temporary_files(bags_dir)

    def close(self) -> None:
        """Give back what is claimed."""
        self.locks.__exit__(None, None, None)

    def run(self, queue: JobQueue) -> None:
        """Make bags until there is no source for now; batches do not stop at a source's border."""
        shift = _WorkerRun(self, queue)
        behind: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="writing") as writer:
            for work in encode_slides(
                shift.works(), self.encoder, batch_tiles=self.batch_tiles,
                n_workers=self.n_workers, on_tiles=shift.count,
            ):  # fmt: skip
                behind.append(writer.submit(shift.finish, work))
                while len(behind) > _BAGS_BEHIND:
                    behind.popleft().result()
            while behind:
                behind.popleft().result()
        shift.tell_of_tiles()

    def remove_temporary_files(self, bag_id: str, *, look_again: bool) -> None:
        """Remove what was left of a bag by a process that was killed; its claim must be ours."""
        if look_again:
            self._leftovers = find_temporary_files(self.bags_dir)
        for part in self._leftovers.get(f"{bag_id}.h5", ()):
            part.unlink(missing_ok=True)


class _WorkerRun:
    """What an embedder does from a desk's first job until there is none for now."""

    def __init__(self, embedder: EmbeddingWorker, queue: JobQueue) -> None:
        self._embedder, self._queue = embedder, queue
        self._jobs: dict[SlideBuffer[Instances], _Job[Instances]] = {}
        self._lock = Lock()
        self._execution = embedder.encoder.execution
        self._n_untold = 0
        self._told_at = time.monotonic()

    def works(self) -> Iterator[SlideBuffer[Instances]]:
        """Open sources, the next one while this one is read; runs in the thread that reads."""
        ahead: deque[Future[_Job[Instances] | None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="survey") as pool:
            for deal in self._queue.jobs():
                ahead.append(pool.submit(self._open, deal))
                if len(ahead) > _SURVEYS_AHEAD:
                    yield from self._opened(ahead.popleft().result())
            while ahead:
                yield from self._opened(ahead.popleft().result())

    def count(self, n_tiles: int) -> None:
        """Count tiles that were dealt with, and tell of them now and then."""
        with self._lock:
            self._n_untold += n_tiles
        if time.monotonic() - self._told_at > self._embedder.seconds_between_news:
            self.tell_of_tiles()

    def tell_of_tiles(self) -> None:
        """Tell of the tiles that were counted since it was told last, and of halved batches."""
        with self._lock:
            n_tiles, self._n_untold = self._n_untold, 0
            self._told_at = time.monotonic()
        if n_tiles:
            self._queue.send_message(TilesDone(n_tiles))
        encoder = self._embedder.encoder
        if encoder.execution != self._execution:
            self._execution = encoder.execution
            self._queue.send_message(BatchSizeReduced(str(encoder.device), encoder.execution))

    def finish(self, work: SlideBuffer[Instances]) -> None:
        """Write the bag of a source; whatever is wrong with it stays with it."""
        job = self._jobs.pop(work)
        source = job.source
        try:
            with job.opened:
                bag = source.build_bag(work, self._embedder.encoder)
            write_bag(bag_path(self._embedder.bags_dir, source.bag_id), bag)
        except Exception as error:  # noqa: BLE001 - the one boundary: no slide may stop the others
            self._fail(job.deal, error, seconds=time.monotonic() - job.started)
            return
        status: Status = "done" if len(bag.features) else "empty"
        outcome = SlideResult.of_bag(
            source.path, bag.meta, status=status, seconds=time.monotonic() - job.started,
            message=next(iter(work.failures.values()), ""),
        )  # fmt: skip
        self._end(job.deal, outcome)

    def _open(self, deal: Job) -> _Job[Instances] | None:
        """A source ready to be read; None where it is done, held by others, or cannot be opened."""
        started = time.monotonic()
        source: Source[Instances] = deal.payload
        embedder = self._embedder
        try:
            if not embedder.locks.acquire(source.bag_id):
                self._queue.requeue(deal)
                return None
            if not embedder.overwrite and (
                meta := read_finished_bag(
                    embedder.bags_dir, source.bag_id, embedder.info.fingerprint
                )
            ):
                self._end(deal, SlideResult.of_bag(source.path, meta, status="skipped"))
                return None
            embedder.remove_temporary_files(source.bag_id, look_again=deal.n_crashes > 0)
            return _Job.open(deal, dim=embedder.encoder.dim)
        except Exception as error:  # noqa: BLE001 - the one boundary: no slide may stop the others
            self._fail(deal, error, seconds=time.monotonic() - started)
            return None

    def _opened(self, job: _Job[Instances] | None) -> Iterator[SlideBuffer[Instances]]:
        if job is not None:
            self._jobs[job.work] = job
            self._queue.send_message(SourceStarted(job.source.bag_id, job.work.survey.n_tiles))
            yield job.work

    def _fail(self, deal: Job, error: Exception, *, seconds: float) -> None:
        source: Source[Instances] = deal.payload
        text = str(error)
        if not isinstance(error, MilError):
            text = f"{source.path}: unforeseen {type(error).__name__}: {error}"
        if isinstance(error, OutputError):
            self._queue.send_message(OutputFull(error))
        elif os.strerror(errno.EMFILE) in text:  # said by readers in as many ways as there are
            text = f"{text.rstrip('.')}. {OPEN_FILES_HINT}"
        outcome = SlideResult.of_failure(source.path, text, slide_id=source.bag_id, seconds=seconds)
        if not isinstance(error, OutputError):  # which is no fault of the source
            source.note_failure(outcome.message)
        self._end(deal, outcome)

    def _end(self, deal: Job, outcome: SlideResult) -> None:
        self._embedder.locks.release(deal.payload.bag_id)
        self._queue.finish(deal, outcome)


def read_finished_bag(bags_dir: Path, bag_id: str, fingerprint: Fingerprint) -> BagMeta | None:
    """What a whole bag says of itself; None where there is none, or a damaged one.

    Raises
    ------
    BagError
        If it was made with other settings than ``fingerprint`` tells.
    """
    path = bag_path(bags_dir, bag_id)
    try:
        meta = read_meta(path)
    except BagError:
        return None
    check_fingerprint(
        fingerprint,
        [(path, meta.fingerprint)],
        source="the settings asked for (--overwrite embeds again, --bags names another folder)",
    )
    return meta
