"""A set of slides into a folder of bags, alone or beside other processes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Protocol

from features.bags import (
    Bag,
    BagMeta,
    bag_path,
    read_meta,
    require_same_fingerprint,
    write_bag,
)
from features.claims import Claims
from features.embedding import SlideWork, embed_works
from features.encoders import Encoder
from features.errors import BagError, KnownError, OutputError
from features.files import leftovers_in, make_folder
from features.listing import require_distinct_ids
from features.outcomes import SlideOutcome, Status, write_outcomes
from features.preview import PreviewFolder
from features.provenance import bag_of
from features.recipe import EmbedSettings, fingerprint_of
from features.slides.opening import slide_id_of
from features.survey import survey_slide

__all__ = [
    "EmbedProgress",
    "embed_slide",
    "embed_slides",
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
    job = _Job.open(path, encoder, settings, given_mpp)
    with job.opened:
        progress.slide_started(slide_id_of(path), len(job.work.survey.grid.coords_px0))
        for work in embed_works(
            [job.work], encoder, batch_tiles=settings.batch_tiles, n_workers=settings.n_workers,
            on_tiles=progress.tiles_done,
        ):  # fmt: skip
            return bag_of(work, encoder, settings)
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
    OutputError
        If the folder cannot be written to any more, e.g. for want of space.
    """
    require_distinct_ids(paths, option="--bags")
    make_folder(bags_dir)
    with Claims(bags_dir / ".claims") as claims:
        run = _Run(
            paths=paths, bags_dir=bags_dir, encoder=encoder, settings=settings,
            given_mpp=given_mpp, overwrite=overwrite, progress=progress, preview=preview,
            stop=stop or Event(), claims=claims,
        )  # fmt: skip
        return run.go()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """A slide in work."""

    path: Path
    work: SlideWork
    opened: ExitStack
    started: float

    @classmethod
    def open(
        cls, path: Path, encoder: Encoder, settings: EmbedSettings, given_mpp: float | None
    ) -> _Job:
        started = time.monotonic()
        opened = ExitStack()
        survey = opened.enter_context(
            survey_slide(path, tiles=settings.tiles, tissue=settings.tissue, given_mpp=given_mpp)
        )
        work = SlideWork(survey, dim=encoder.dim)
        return cls(path=path, work=work, opened=opened, started=started)


class _Run:
    """One go over a set of slides."""

    def __init__(
        self,
        *,
        paths: Sequence[Path],
        bags_dir: Path,
        encoder: Encoder,
        settings: EmbedSettings,
        given_mpp: Mapping[str, float],
        overwrite: bool,
        progress: EmbedProgress,
        preview: PreviewFolder | None,
        stop: Event,
        claims: Claims,
    ) -> None:
        self._paths, self._bags_dir = paths, bags_dir
        self._encoder, self._settings, self._given_mpp = encoder, settings, given_mpp
        self._progress, self._preview = progress, preview
        self._stop, self._claims = stop, claims
        self._fingerprint = fingerprint_of(encoder, settings)
        self._finished = {} if overwrite else self._finished_bags()
        self._overwrite = overwrite
        self._leftovers = leftovers_in(bags_dir)
        self._outcomes: dict[Path, SlideOutcome] = {}
        self._jobs: dict[SlideWork, _Job] = {}
        self._held: list[Path] = []
        self._full: OutputError | None = None
        self._lock = Lock()
        self._saved_at = time.monotonic()

    def go(self) -> list[SlideOutcome]:
        waiting = list(self._paths)
        try:
            while waiting and not self._stop.is_set():
                self._held = []
                self._embed(waiting)
                waiting = self._held  # what other processes have in work: done by them, or theirs
                if waiting:
                    self._stop.wait(_SECONDS_BETWEEN_LOOKS)
        finally:
            write_outcomes(self._bags_dir, self._in_order(), self._claims)
            if self._preview is not None:
                self._preview.write_index()
        if self._full is not None:
            raise self._full
        return self._in_order()

    def _embed(self, paths: Sequence[Path]) -> None:
        """Embed those of the slides that nobody has done or has in work."""
        behind: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="writing") as writer:
            for work in embed_works(
                self._works(paths), self._encoder, batch_tiles=self._settings.batch_tiles,
                n_workers=self._settings.n_workers, on_tiles=self._progress.tiles_done,
            ):  # fmt: skip
                behind.append(writer.submit(self._finish, self._jobs.pop(work)))
                while len(behind) > _BAGS_BEHIND:
                    behind.popleft().result()
            while behind:
                behind.popleft().result()

    def _works(self, paths: Sequence[Path]) -> Iterator[SlideWork]:
        """Open slides, the next one while this one is read; runs in the thread that reads."""
        ahead: deque[Future[_Job | None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="survey") as pool:
            for path in paths:
                if self._stop.is_set():
                    break
                ahead.append(pool.submit(self._open, path))
                if len(ahead) > _SURVEYS_AHEAD:
                    yield from self._opened(ahead.popleft().result())
            while ahead:
                yield from self._opened(ahead.popleft().result())

    def _opened(self, job: _Job | None) -> Iterator[SlideWork]:
        if job is not None:
            self._jobs[job.work] = job
            n_tiles = len(job.work.survey.grid.coords_px0)
            self._progress.slide_started(slide_id_of(job.path), n_tiles)
            yield job.work

    def _open(self, path: Path) -> _Job | None:
        """A slide ready to be read; None where it is done, held by others, or cannot be opened."""
        started = time.monotonic()
        slide_id = slide_id_of(path)
        if meta := self._finished.get(slide_id):
            self._end(path, SlideOutcome.of_bag(path, meta, status="skipped"))
            return None
        try:
            if not self._claims.take(slide_id):
                self._held.append(path)
                return None
            if meta := self._done_by_others(slide_id):
                self._end(path, SlideOutcome.of_bag(path, meta, status="skipped"))
                return None
            for part in self._leftovers.get(f"{slide_id}.h5", ()):
                part.unlink(missing_ok=True)
            return _Job.open(path, self._encoder, self._settings, self._given_mpp.get(slide_id))
        except Exception as error:  # noqa: BLE001 - the one boundary: no slide may stop the others
            self._fail(path, error, seconds=time.monotonic() - started)
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

    def _finish(self, job: _Job) -> None:
        """Write the bag of a slide; whatever is wrong with it stays with it."""
        work, path = job.work, job.path
        try:
            with job.opened:
                if self._preview is not None and work.fault is None:
                    self._preview.add(work.survey, left_out=work.left_out, failed=work.failures)
                bag = bag_of(work, self._encoder, self._settings)
            write_bag(bag_path(self._bags_dir, slide_id_of(path)), bag)
        except Exception as error:  # noqa: BLE001 - the one boundary: no slide may stop the others
            self._fail(path, error, seconds=time.monotonic() - job.started)
            return
        seconds = time.monotonic() - job.started
        status: Status = "done" if len(bag.features) else "empty"
        self._end(path, SlideOutcome.of_bag(path, bag.meta, status=status, seconds=seconds))

    def _fail(self, path: Path, error: Exception, *, seconds: float) -> None:
        text = str(error)
        if not isinstance(error, KnownError):
            text = f"{path}: unforeseen {type(error).__name__}: {error}"
        if isinstance(error, OutputError):  # every other slide would end the same way
            self._full = error
            self._stop.set()
        outcome = SlideOutcome.of_failure(path, text, seconds=seconds)
        if self._preview is not None:
            self._preview.add_failure(path, outcome.message)
        self._end(path, outcome)

    def _end(self, path: Path, outcome: SlideOutcome) -> None:
        self._claims.release(outcome.slide_id)
        with self._lock:
            self._outcomes[path] = outcome
            due = time.monotonic() - self._saved_at > _SECONDS_BETWEEN_TABLES
            if due:
                self._saved_at = time.monotonic()
        self._progress.slide_ended(outcome)
        if due:
            write_outcomes(self._bags_dir, self._in_order(), self._claims)

    def _in_order(self) -> list[SlideOutcome]:
        with self._lock:
            return [self._outcomes[path] for path in self._paths if path in self._outcomes]

    def _finished_bags(self) -> dict[str, BagMeta]:
        """Metas of the whole bags there; a damaged one is made again."""
        finished = {}
        for path in self._paths:
            slide_id = slide_id_of(path)
            try:
                finished[slide_id] = read_meta(bag_path(self._bags_dir, slide_id))
            except BagError:
                continue
            self._require_same(slide_id, finished[slide_id])
        return finished

    def _require_same(self, slide_id: str, meta: BagMeta) -> None:
        require_same_fingerprint(
            self._fingerprint,
            [(bag_path(self._bags_dir, slide_id), meta.fingerprint)],
            source="the settings asked for (--overwrite embeds again, --bags names another folder)",
        )
