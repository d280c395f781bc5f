"""Slides, or whatever else becomes a bag, into a folder of bags, alone or beside others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Generic, Protocol, TypeVar

from features.bags import (
    Bag,
    BagMeta,
    Fingerprint,
    bag_path,
    read_meta,
    require_same_fingerprint,
    write_bag,
)
from features.claims import Claims
from features.embedding import Instances, SlideWork, embed_works
from features.encoders import Encoder
from features.errors import BagError, KnownError, OutputError
from features.files import leftovers_in, make_folder
from features.filter import TileFilter, keep_filter
from features.listing import require_distinct_ids
from features.outcomes import SlideOutcome, Status, write_outcomes
from features.preview import PreviewFolder
from features.provenance import bag_of
from features.recipe import EmbedSettings, fingerprint_of
from features.slides.opening import slide_id_of
from features.survey import Survey, survey_slide

__all__ = [
    "EmbedProgress",
    "Source",
    "embed_slide",
    "embed_slides",
    "embed_sources",
]

_SECONDS_BETWEEN_TABLES = 30.0
_SECONDS_BETWEEN_LOOKS = 1.0
_SURVEYS_AHEAD = 1
_BAGS_BEHIND = 4


class EmbedProgress(Protocol):
    """Whoever wants to know how far the work is; called from several threads."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Called when the tiles of a slide are known."""
        ...

    def tiles_done(self, n_tiles: int) -> None:
        """Called after each batch."""
        ...

    def slide_ended(self, outcome: SlideOutcome) -> None:
        """Called when a slide is dealt with."""
        ...


S = TypeVar("S", bound=Instances)


class Source(Protocol[S]):
    """What becomes one bag: a slide, or a series of images."""

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

    def bag_of(self, work: SlideWork[S]) -> Bag:
        """The bag, once everything is dealt with.

        Raises
        ------
        KnownError
            If more of it failed than may.
        """
        ...

    def note_failure(self, message: str) -> None:
        """Called where no bag could be made of it."""
        ...


def embed_slide(
    path: Path,
    encoder: Encoder,
    *,
    settings: EmbedSettings,
    given_mpp: float | None,
    progress: EmbedProgress,
) -> Bag:
    """Embed one slide.

    Parameters
    ----------
    path
        The slide.
    encoder
        The backbone.
    settings
        How tiles are found and cut.
    given_mpp
        µm per level-0 px where the user knows better than the file; else None.
    progress
        Told about tiles as they are done.

    Returns
    -------
    Bag
        With ``features`` of shape (n_tiles, dim); ``n_tiles`` is 0 on a slide without tissue.

    Raises
    ------
    SlideError
        If the slide cannot be opened, or more of its tiles cannot be decoded than may fail.
    ResolutionError
        If ``given_mpp`` is implausible.
    """
    source = _SlideSource(path=path, encoder=encoder, settings=settings, given_mpp=given_mpp)
    job = _Job.open(source, dim=encoder.dim, tile_filter=settings.tile_filter)
    with job.opened:
        progress.slide_started(source.bag_id, job.work.survey.n_tiles)
        for work in embed_works(
            [job.work], encoder, batch_tiles=settings.batch_tiles, n_workers=settings.n_workers,
            on_tiles=progress.tiles_done,
        ):  # fmt: skip
            return source.bag_of(work)
    raise AssertionError("a slide always comes back")


def embed_slides(
    paths: Sequence[Path],
    bags_dir: Path,
    encoder: Encoder,
    *,
    settings: EmbedSettings,
    given_mpp: Mapping[str, float],
    overwrite: bool,
    progress: EmbedProgress,
    preview: PreviewFolder | None = None,
    stop: Event | None = None,
) -> list[SlideOutcome]:
    """Embed a set of slides, each into ``bags_dir/<slide_id>.h5``.

    A slide with a finished bag is skipped, one that fails does not stop the others, and what
    became of each is kept in ``bags_dir/embed.csv``, also when the run is stopped half way. Several
    processes may work on one folder at once: each slide is done by one of them, and the slides of
    one that dies by another.

    Parameters
    ----------
    paths
        The slides.
    bags_dir
        Folder of the bags; made if missing.
    encoder
        The backbone.
    settings
        How tiles are found and cut.
    given_mpp
        µm per level-0 px by slide id, for slides whose file is silent or wrong.
    overwrite
        Embed slides again that have a bag.
    progress
        Told as the work goes on.
    preview
        Where pictures of the slides embedded now and their index are put; None for nowhere.
    stop
        Once set, the slides in work are finished and no new ones begun.

    Returns
    -------
    list of SlideOutcome
        One a slide that was dealt with, in the order of ``paths``.

    Raises
    ------
    SlideError
        If two slides have the same id.
    BagError
        If the folder holds bags of these slides made with other settings.
    FilterError
        If the tile filter was fitted on other embeddings than these.
    OutputError
        If the folder cannot be written to any more, e.g. for want of space.
    """
    require_distinct_ids(paths, option="--bags")
    sources = [
        _SlideSource(
            path=path, encoder=encoder, settings=settings,
            given_mpp=given_mpp.get(slide_id_of(path)), preview=preview,
        )
        for path in paths
    ]  # fmt: skip
    try:
        return embed_sources(
            sources, bags_dir, encoder, fingerprint=fingerprint_of(encoder, settings),
            batch_tiles=settings.batch_tiles, n_workers=settings.n_workers, overwrite=overwrite,
            progress=progress, stop=stop, tile_filter=settings.tile_filter,
        )  # fmt: skip
    finally:
        if preview is not None:
            preview.write_index()


def embed_sources(
    sources: Sequence[Source[S]],
    bags_dir: Path,
    encoder: Encoder,
    *,
    fingerprint: Fingerprint,
    batch_tiles: int,
    n_workers: int,
    overwrite: bool,
    progress: EmbedProgress,
    stop: Event | None = None,
    tile_filter: TileFilter | None = None,
) -> list[SlideOutcome]:
    """Embed whatever becomes bags, as :func:`embed_slides` does slides.

    Parameters
    ----------
    sources
        What becomes bags, each with a name of its own.
    bags_dir, encoder, overwrite, progress, stop
        As for :func:`embed_slides`.
    fingerprint
        How the bags will say they were made.
    batch_tiles
        Tiles through the backbone at once.
    n_workers
        Threads that decode.
    tile_filter
        Drops instances by their embeddings; None drops none.

    Returns
    -------
    list of SlideOutcome
        One a source that was dealt with, in their order.

    Raises
    ------
    BagError
        If the folder holds bags of these names made with other settings.
    OutputError
        If the folder cannot be written to any more, e.g. for want of space.
    """
    make_folder(bags_dir)
    if tile_filter is not None:
        keep_filter(bags_dir, tile_filter)
    with Claims(bags_dir / ".claims") as claims:
        run = _Run(
            sources=sources, bags_dir=bags_dir, encoder=encoder, fingerprint=fingerprint,
            batch_tiles=batch_tiles, n_workers=n_workers, overwrite=overwrite, progress=progress,
            stop=stop or Event(), claims=claims, tile_filter=tile_filter,
        )  # fmt: skip
        return run.go()


@dataclass(frozen=True, kw_only=True, eq=False)
class _SlideSource:
    """A slide that becomes a bag."""

    path: Path
    encoder: Encoder
    settings: EmbedSettings
    given_mpp: float | None
    preview: PreviewFolder | None = None

    @property
    def bag_id(self) -> str:
        return slide_id_of(self.path)

    def open(self) -> AbstractContextManager[Survey]:
        return survey_slide(
            self.path, tiles=self.settings.tiles, tissue=self.settings.tissue,
            given_mpp=self.given_mpp,
        )  # fmt: skip

    def bag_of(self, work: SlideWork[Survey]) -> Bag:
        if self.preview is not None and work.fault is None:
            self.preview.add(work.survey, left_out=work.left_out, failed=work.failures)
        return bag_of(work, self.encoder, self.settings)

    def note_failure(self, message: str) -> None:
        if self.preview is not None:
            self.preview.add_failure(self.path, message)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job(Generic[S]):
    """A source in work."""

    source: Source[S]
    work: SlideWork[S]
    opened: ExitStack
    started: float

    @classmethod
    def open(cls, source: Source[S], *, dim: int, tile_filter: TileFilter | None) -> _Job[S]:
        started = time.monotonic()
        opened = ExitStack()
        survey = opened.enter_context(source.open())
        work = SlideWork(survey, dim=dim, tile_filter=tile_filter)
        return cls(source=source, work=work, opened=opened, started=started)


class _Run(Generic[S]):
    """One go over a set of sources."""

    def __init__(
        self,
        *,
        sources: Sequence[Source[S]],
        bags_dir: Path,
        encoder: Encoder,
        fingerprint: Fingerprint,
        batch_tiles: int,
        n_workers: int,
        overwrite: bool,
        progress: EmbedProgress,
        stop: Event,
        claims: Claims,
        tile_filter: TileFilter | None,
    ) -> None:
        self._sources, self._bags_dir = sources, bags_dir
        self._encoder, self._batch_tiles, self._n_workers = encoder, batch_tiles, n_workers
        self._progress, self._stop, self._claims = progress, stop, claims
        self._fingerprint, self._filter = fingerprint, tile_filter
        self._finished = {} if overwrite else self._finished_bags()
        self._overwrite = overwrite
        self._leftovers = leftovers_in(bags_dir)
        self._outcomes: dict[str, SlideOutcome] = {}
        self._jobs: dict[SlideWork[S], _Job[S]] = {}
        self._held: list[Source[S]] = []
        self._full: OutputError | None = None
        self._lock = Lock()
        self._saved_at = time.monotonic()

    def go(self) -> list[SlideOutcome]:
        waiting = list(self._sources)
        try:
            while waiting and not self._stop.is_set():
                self._held = []
                self._embed(waiting)
                waiting = self._held  # what other processes have in work: done by them, or theirs
                if waiting:
                    self._stop.wait(_SECONDS_BETWEEN_LOOKS)
        finally:
            write_outcomes(self._bags_dir, self._in_order(), self._claims)
        if self._full is not None:
            raise self._full
        return self._in_order()

    def _embed(self, sources: Sequence[Source[S]]) -> None:
        """Embed those that nobody has done or has in work."""
        behind: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="writing") as writer:
            for work in embed_works(
                self._works(sources), self._encoder, batch_tiles=self._batch_tiles,
                n_workers=self._n_workers, on_tiles=self._progress.tiles_done,
            ):  # fmt: skip
                behind.append(writer.submit(self._finish, self._jobs.pop(work)))
                while len(behind) > _BAGS_BEHIND:
                    behind.popleft().result()
            while behind:
                behind.popleft().result()

    def _works(self, sources: Sequence[Source[S]]) -> Iterator[SlideWork[S]]:
        """Open sources, the next one while this one is read; runs in the thread that reads."""
        ahead: deque[Future[_Job[S] | None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="survey") as pool:
            for source in sources:
                if self._stop.is_set():
                    break
                ahead.append(pool.submit(self._open, source))
                if len(ahead) > _SURVEYS_AHEAD:
                    yield from self._opened(ahead.popleft().result())
            while ahead:
                yield from self._opened(ahead.popleft().result())

    def _opened(self, job: _Job[S] | None) -> Iterator[SlideWork[S]]:
        if job is not None:
            self._jobs[job.work] = job
            self._progress.slide_started(job.source.bag_id, job.work.survey.n_tiles)
            yield job.work

    def _open(self, source: Source[S]) -> _Job[S] | None:
        """A source ready to be read; None where it is done, held by others, or cannot be opened."""
        started = time.monotonic()
        bag_id = source.bag_id
        if meta := self._finished.get(bag_id):
            self._end(source, SlideOutcome.of_bag(source.path, meta, status="skipped"))
            return None
        try:
            if not self._claims.take(bag_id):
                self._held.append(source)
                return None
            if meta := self._done_by_others(bag_id):
                self._end(source, SlideOutcome.of_bag(source.path, meta, status="skipped"))
                return None
            for part in self._leftovers.get(f"{bag_id}.h5", ()):
                part.unlink(missing_ok=True)
            return _Job.open(source, dim=self._encoder.dim, tile_filter=self._filter)
        except Exception as error:  # noqa: BLE001 - the one boundary: no slide may stop the others
            self._fail(source, error, seconds=time.monotonic() - started)
            return None

    def _done_by_others(self, slide_id: str) -> BagMeta | None:
        """A bag that was finished since this run began."""
        if self._overwrite:
            return None
        try:
            meta = read_meta(bag_path(self._bags_dir, slide_id))
        except BagError:
            return None
        self._require_same(slide_id, meta)
        return meta

    def _finish(self, job: _Job[S]) -> None:
        """Write the bag of a source; whatever is wrong with it stays with it."""
        source = job.source
        try:
            with job.opened:
                bag = source.bag_of(job.work)
            write_bag(bag_path(self._bags_dir, source.bag_id), bag)
        except Exception as error:  # noqa: BLE001 - the one boundary: no slide may stop the others
            self._fail(source, error, seconds=time.monotonic() - job.started)
            return
        status: Status = "done" if len(bag.features) else "empty"
        self._end(
            source,
            SlideOutcome.of_bag(
                source.path, bag.meta, status=status, seconds=time.monotonic() - job.started,
                message=next(iter(job.work.failures.values()), ""),
            )
        )  # fmt: skip

    def _fail(self, source: Source[S], error: Exception, *, seconds: float) -> None:
        text = str(error)
        if not isinstance(error, KnownError):
            text = f"{source.path}: unforeseen {type(error).__name__}: {error}"
        if isinstance(error, OutputError):  # every other slide would end the same way
            self._full = error
            self._stop.set()
        outcome = SlideOutcome.of_failure(
            source.path, text, slide_id=source.bag_id, seconds=seconds
        )
        source.note_failure(outcome.message)
        self._end(source, outcome)

    def _end(self, source: Source[S], outcome: SlideOutcome) -> None:
        self._claims.release(source.bag_id)
        with self._lock:
            self._outcomes[source.bag_id] = outcome
            due = time.monotonic() - self._saved_at > _SECONDS_BETWEEN_TABLES
            if due:
                self._saved_at = time.monotonic()
        self._progress.slide_ended(outcome)
        if due:
            write_outcomes(self._bags_dir, self._in_order(), self._claims)

    def _in_order(self) -> list[SlideOutcome]:
        with self._lock:
            names = [source.bag_id for source in self._sources]
            return [self._outcomes[name] for name in names if name in self._outcomes]

    def _finished_bags(self) -> dict[str, BagMeta]:
        """Metas of the whole bags there; a damaged one is made again."""
        finished = {}
        for source in self._sources:
            try:
                found = read_meta(bag_path(self._bags_dir, source.bag_id))
            except BagError:
                continue
            self._require_same(source.bag_id, found)
            finished[source.bag_id] = found
        return finished

    def _require_same(self, slide_id: str, meta: BagMeta) -> None:
        require_same_fingerprint(
            self._fingerprint,
            [(bag_path(self._bags_dir, slide_id), meta.fingerprint)],
            source="the settings asked for (--overwrite embeds again, --bags names another folder)",
        )
