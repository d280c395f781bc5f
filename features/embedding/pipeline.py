"""Slides, or whatever else becomes a bag, into a folder of bags, alone or beside others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from typing import Any, Protocol

from features.bags.bag import Bag, Fingerprint
from features.bags.h5 import find_bags
from features.embedding.bag_builder import build_bag
from features.embedding.batching import SlideBuffer, encode_slides
from features.embedding.config import EmbedConfig, make_fingerprint
from features.embedding.results import SlideResult, write_results
from features.embedding.worker import (
    BatchSizeReduced,
    EmbeddingWorker,
    OutputFull,
    Source,
    SourceStarted,
    TilesDone,
    WorkerInfo,
    read_finished_bag,
)
from features.encoders.encoder import Encoder
from features.errors import OutputError
from features.filters.classifier import save_filter_copy
from features.parallel.base import Executor
from features.parallel.local import LocalExecutor
from features.parallel.locks import FolderLocks
from features.slides.manifest import check_unique_ids
from features.slides.reader import slide_id_of
from features.tiling.slide_tiles import SlideTiles, open_slide_tiles
from features.tiling.stain import build_stain_normalizer
from features.tiling.transforms import TileTransform
from features.utils.files import make_folder
from features.visualization.preview import PreviewWriter

__all__ = [
    "EmbedProgress",
    "embed_slide",
    "embed_slides",
    "embed_slides_by",
    "embed_sources",
]

_SECONDS_BETWEEN_TABLES = 30.0
_BAGS_LOOKED_AT = 8
"""Bags of a folder that are opened before work begins, whatever their number."""


class EmbedProgress(Protocol):
    """Whoever wants to know how far the work is; may be called from several threads."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Called when the tiles of a slide are known."""
        ...

    def tiles_done(self, n_tiles: int) -> None:
        """Called after each batch."""
        ...

    def slide_ended(self, outcome: SlideResult) -> None:
        """Called when a slide is dealt with."""
        ...

    def noted(self, text: str) -> None:
        """Called with what a person should know, e.g. that memory was short."""
        ...


def embed_slide(
    path: Path,
    encoder: Encoder,
    *,
    settings: EmbedConfig,
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
    source = _SlideSource(path=path, settings=settings, given_mpp=given_mpp)
    with source.open() as survey:
        progress.slide_started(source.bag_id, survey.n_tiles)
        for work in encode_slides(
            [source.work_on(survey, dim=encoder.dim)], encoder, batch_tiles=settings.batch_tiles,
            n_workers=settings.n_workers, on_tiles=progress.tiles_done,
        ):  # fmt: skip
            return source.build_bag(work, encoder)
    raise AssertionError("a slide always comes back")


def embed_slides(
    paths: Sequence[Path],
    bags_dir: Path,
    encoder: Encoder,
    *,
    settings: EmbedConfig,
    given_mpp: Mapping[str, float],
    overwrite: bool,
    progress: EmbedProgress,
    preview: PreviewWriter | None = None,
    stop: Event | None = None,
) -> list[SlideResult]:
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
    list of SlideResult
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
    with closing(
        EmbeddingWorker(
            bags_dir, encoder, fingerprint=make_fingerprint(encoder, settings),
            batch_tiles=settings.batch_tiles, n_workers=settings.n_workers, overwrite=overwrite,
        )
    ) as embedder:  # fmt: skip
        return embed_slides_by(
            LocalExecutor(embedder), paths, bags_dir, settings=settings, given_mpp=given_mpp,
            overwrite=overwrite, progress=progress, preview=preview, stop=stop,
        )  # fmt: skip


def embed_slides_by(
    engine: Executor,
    paths: Sequence[Path],
    bags_dir: Path,
    *,
    settings: EmbedConfig,
    given_mpp: Mapping[str, float],
    overwrite: bool,
    progress: EmbedProgress,
    preview: PreviewWriter | None = None,
    stop: Event | None = None,
) -> list[SlideResult]:
    """Embed a set of slides by an engine whose workers are embedders; see :func:`embed_slides`.

    Parameters
    ----------
    engine
        Has the slides embedded, into the same folder and with the same settings.
    paths, bags_dir, settings, given_mpp, overwrite, progress, preview, stop
        As for :func:`embed_slides`.
    """
    check_unique_ids(paths, option="--bags")
    sources = [
        _SlideSource(
            path=path, settings=settings, given_mpp=given_mpp.get(slide_id_of(path)),
            preview=preview,
        )
        for path in paths
    ]  # fmt: skip
    if settings.tile_filter is not None:
        save_filter_copy(make_folder(bags_dir), settings.tile_filter)
    try:
        return embed_sources(
            engine, sources, bags_dir, overwrite=overwrite, progress=progress, stop=stop
        )
    finally:
        if preview is not None:
            preview.write_index()


def embed_sources(
    engine: Executor,
    sources: Sequence[Source[Any]],
    bags_dir: Path,
    *,
    overwrite: bool,
    progress: EmbedProgress,
    stop: Event | None = None,
) -> list[SlideResult]:
    """Embed whatever becomes bags, as :func:`embed_slides` does slides.

    Parameters
    ----------
    engine
        Its workers are embedders for the same folder.
    sources
        What becomes bags, each with a name of its own.
    bags_dir, overwrite, progress, stop
        As for :func:`embed_slides`.

    Returns
    -------
    list of SlideResult
        One a source that was dealt with, in their order.

    Raises
    ------
    BagError
        If the folder holds bags of these names made with other settings.
    OutputError
        If the folder cannot be written to any more, e.g. for want of space.
    """
    with FolderLocks(make_folder(bags_dir) / ".claims") as locks:
        run = _EmbeddingRun(
            sources=sources, bags_dir=bags_dir, progress=progress, stop=stop or Event(),
            locks=locks,
        )  # fmt: skip
        return run.go(engine, overwrite=overwrite)


@dataclass(frozen=True, kw_only=True, eq=False)
class _SlideSource:
    """A slide that becomes a bag."""

    path: Path
    settings: EmbedConfig
    given_mpp: float | None
    preview: PreviewWriter | None = None

    @cached_property
    def bag_id(self) -> str:
        return slide_id_of(self.path)

    def open(self) -> AbstractContextManager[SlideTiles]:
        return open_slide_tiles(
            self.path, tiles=self.settings.tiles, tissue=self.settings.tissue,
            given_mpp=self.given_mpp,
        )  # fmt: skip

    def work_on(self, opened: SlideTiles, *, dim: int) -> SlideBuffer[SlideTiles]:
        recolour = build_stain_normalizer(self.settings.stain_norm, opened)
        looks = TileTransform(opened, views=self.settings.views, stain_normalizer=recolour)
        return SlideBuffer(opened, dim=dim, looks=looks, tile_filter=self.settings.tile_filter)

    def build_bag(self, work: SlideBuffer[SlideTiles], encoder: Encoder) -> Bag:
        if self.preview is not None and work.fault is None:
            self.preview.add(work.survey, rejected=work.left_out, failed=work.failures)
        return build_bag(work, encoder, self.settings)

    def note_failure(self, message: str) -> None:
        if self.preview is not None:
            self.preview.add_failure(self.path, message)


class _EmbeddingRun:
    """One go over a set of sources: what is left to do, and what became of each."""

    def __init__(
        self,
        *,
        sources: Sequence[Source[Any]],
        bags_dir: Path,
        progress: EmbedProgress,
        stop: Event,
        locks: FolderLocks,
    ) -> None:
        self._sources, self._bags_dir = sources, bags_dir
        self._progress, self._stop, self._locks = progress, stop, locks
        self._outcomes: dict[str, SlideResult] = {}
        self._full: OutputError | None = None
        self._lock = Lock()
        self._saved_at = time.monotonic()

    def go(self, engine: Executor, *, overwrite: bool) -> list[SlideResult]:
        there = {} if overwrite else find_bags(self._bags_dir, may_be_empty=True)
        old = [source for source in self._sources if source.bag_id in there]
        self._refuse_other_settings(engine, old)
        try:
            new = [source for source in self._sources if source.bag_id not in there]
            self._embed(engine, new)
            self._embed(engine, self._skip_finished(engine, old))
        finally:
            self._write_outcomes()
        if self._full is not None:
            raise self._full
        return self._in_order()

    def _embed(self, engine: Executor, left: Sequence[Source[Any]]) -> None:
        if left and not self._stop.is_set():
            engine.run(left, self, stop=self._stop)

    def on_done(self, source: Source[Any], outcome: SlideResult) -> None:
        with self._lock:
            self._outcomes[source.bag_id] = outcome
            due = time.monotonic() - self._saved_at > _SECONDS_BETWEEN_TABLES
            if due:
                self._saved_at = time.monotonic()
        self._progress.slide_ended(outcome)
        if due:
            self._write_outcomes()

    def on_failed(self, source: Source[Any], reason: str) -> None:
        outcome = SlideResult.of_failure(
            source.path, f"{source.path}: {reason}", slide_id=source.bag_id, seconds=0.0
        )
        source.note_failure(outcome.message)
        self.on_done(source, outcome)

    def on_message(self, news: SourceStarted | TilesDone | BatchSizeReduced | OutputFull) -> None:
        match news:
            case SourceStarted(bag_id, n_tiles):
                self._progress.slide_started(bag_id, n_tiles)
            case TilesDone(n_tiles):
                self._progress.tiles_done(n_tiles)
            case BatchSizeReduced(device, execution):
                self._progress.noted(
                    f"{device} ran out of memory; the backbone goes on as {execution!r}"
                )
            case OutputFull(error):
                self._give_up(error)

    def _give_up(self, error: OutputError) -> None:
        self._full = self._full or error
        self._stop.set()

    def _write_outcomes(self) -> None:
        try:
            write_results(self._bags_dir, self._in_order(), self._locks)
        except OutputError as error:
            self._give_up(error)

    def _refuse_other_settings(self, engine: Executor, old: Sequence[Source[Any]]) -> None:
        """Look at a few of the bags there, so that nothing is added where it does not belong."""
        for source in old[:: max(1, -(-len(old) // _BAGS_LOOKED_AT))]:
            read_finished_bag(self._bags_dir, source.bag_id, _fingerprint_of(engine))

    def _skip_finished(self, engine: Executor, old: Sequence[Source[Any]]) -> list[Source[Any]]:
        """Sources whose bag is damaged, to be made again.

        Bags are opened only now, when all that has none is done: work began at once, however many
        there are.
        """
        left = []
        for source in old:
            if self._stop.is_set():
                break
            meta = read_finished_bag(self._bags_dir, source.bag_id, _fingerprint_of(engine))
            if meta is None:
                left.append(source)
            else:
                self.on_done(source, SlideResult.of_bag(source.path, meta, status="skipped"))
        return left

    def _in_order(self) -> list[SlideResult]:
        with self._lock:
            names = [source.bag_id for source in self._sources]
            return [self._outcomes[name] for name in names if name in self._outcomes]


def _fingerprint_of(engine: Executor) -> Fingerprint:
    """How the bags of an engine's embedders will say they were made."""
    info = engine.info
    assert isinstance(info, WorkerInfo)  # noqa: S101 - the workers are embedders
    return info.fingerprint
