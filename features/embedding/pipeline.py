"""Embedding of slides, or of any other sources, into a folder of bags."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Lock
from typing import Any, Protocol

from features.bags.bag import Bag
from features.bags.h5 import find_bags
from features.embedding.batching import decoding_pool, encode_slides
from features.embedding.config import BaseEmbedConfig, EmbedConfig
from features.embedding.distributed import open_executor
from features.embedding.finished import read_finished_bag
from features.embedding.results import SlideResult, write_results
from features.embedding.sources import (
    SlideSource,
    Source,
    known_sizes,
    record_crash,
    slide_sources,
)
from features.embedding.worker import (
    BatchSizeReduced,
    OutputFull,
    SourceStarted,
    StagesTimed,
    TilesDone,
    Warned,
    WorkerInfo,
)
from features.errors import OutputError
from features.filters.classifier import save_filter_copy
from features.parallel.base import Executor
from features.parallel.locks import FolderLocks, shared_locks
from features.slides.manifest import check_unique_ids
from features.slides.search import find_slides
from features.utils.files import make_folder
from features.utils.paths import parse_url
from features.utils.stage_times import StageTimes
from features.visualization.preview import PreviewWriter

__all__ = [
    "TILES_PER_SLIDE",
    "EmbedProgress",
    "NoProgress",
    "embed_slide",
    "embed_slides",
    "embed_sources",
]

TILES_PER_SLIDE = 200
"""Assumed number of tiles, before any slide is opened."""

_TABLE_INTERVAL_S = 30.0
_BAGS_CHECKED_FIRST = 8
"""Bags whose fingerprint is checked before the work starts, whatever their number."""


class EmbedProgress(Protocol):
    """Callbacks of an embedding run; may be called from several threads."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Receive the number of tiles of a slide."""

    def tiles_done(self, n_tiles: int) -> None:
        """Receive the number of tiles finished since the last call."""

    def slide_ended(self, result: SlideResult) -> None:
        """Receive the result of a slide."""

    def warn(self, text: str) -> None:
        """Receive text for the user, e.g. that memory was short."""


class NoProgress:
    """Progress callbacks that do nothing."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Do nothing."""

    def tiles_done(self, n_tiles: int) -> None:
        """Do nothing."""

    def slide_ended(self, result: SlideResult) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""


def embed_slide(
    path: Path | str,
    config: EmbedConfig,
    *,
    given_mpp: float | None = None,
    scene: int | None = None,
) -> Bag:
    """Embed one slide without writing its bag.

    Parameters
    ----------
    path
        The slide.
    config
        All settings.
    given_mpp
        µm per level-0 px that replaces the file's own; None to trust the file.
    scene
        Which of several scenes of the file is the slide; None for the largest.

    Returns
    -------
    Bag
        ``features`` have shape (n_tiles, dim); ``n_tiles`` is 0 without tissue.

    Raises
    ------
    SlideError
        If the slide cannot be opened, or too many of its tiles cannot be decoded.
    ResolutionError
        If ``given_mpp`` is implausible.
    """
    source = SlideSource(path=Path(path), config=config, given_mpp=given_mpp, scene=scene)
    encoder = config.load_encoder()
    with source.open() as tiles, decoding_pool(encoder, config.n_threads) as pool:
        (buffer,) = encode_slides(
            [source.make_buffer(tiles, dim=encoder.dim)], encoder, batch_tiles=config.batch_tiles,
            pool=pool, on_tiles=lambda _: None,
        )  # fmt: skip
        return source.build_bag(buffer, encoder)


def embed_slides(
    paths: Sequence[Path | str],
    bags_dir: Path | str,
    config: EmbedConfig,
    *,
    executor: Executor | None = None,
    given_mpp: Mapping[str, float] | None = None,
    scene: int | None = None,
    progress: EmbedProgress | None = None,
    preview: PreviewWriter | None = None,
    stop: Event | None = None,
    times: StageTimes | None = None,
) -> list[SlideResult]:
    """Embed slides, each into ``bags_dir/<slide_id>.h5``.

    A slide with a finished bag is skipped, a failed one does not stop the others, and the result of
    each is written to ``bags_dir/embed.csv``, also when the run is stopped half way. Several
    processes may work on one folder: each slide is embedded by one of them, and the slides of a
    process that dies by another.

    Parameters
    ----------
    paths
        Slides, folders of slides, and URLs.
    bags_dir
        Folder of the bags; created if missing.
    config
        All settings.
    executor
        From :func:`features.embedding.distributed.open_executor` with the same settings and folder;
        None starts one for this run.
    given_mpp
        µm per level-0 px by slide id, for slides whose file has none or a wrong one.
    scene
        Which of several scenes of each file is the slide, as ``mil inspect`` numbers them; its
        number joins the slide id. None for the largest, under the id of the file.
    progress
        Callbacks of the run.
    preview
        Draws the slides embedded now, and writes the page of the previews; None for no preview.
    stop
        Once set, started slides are finished and no others started.
    times
        Receives the seconds that each stage took, those of all workers added up.

    Returns
    -------
    list of SlideResult
        One per finished, skipped or failed slide, sorted by path.

    Raises
    ------
    SlideError
        If two slides have the same id, or a path does not exist.
    BagError
        If the folder holds bags of these slides made with other settings.
    FilterError
        If the tile filter was fitted on embeddings made otherwise.
    OutputError
        If the folder cannot be written to any more, e.g. because the disk is full.

    Examples
    --------
    >>> from features import EmbedConfig, embed_slides
    >>> results = embed_slides(["slides"], "bags", EmbedConfig(device="cuda"))  # doctest: +SKIP
    """
    slides = find_slides(paths)
    check_unique_ids(slides, option="--bags", results_dir=Path(bags_dir))
    if config.engine == "ray":  # Other machines have other working directories.
        slides = [path if parse_url(path) else path.absolute() for path in slides]
    given_mpp = given_mpp or {}
    sources = slide_sources(slides, config, given_mpp=given_mpp, scene=scene, preview=preview)
    if config.tile_filter is not None:
        save_filter_copy(make_folder(Path(bags_dir)), config.tile_filter)
    try:
        return embed_sources(
            sources, Path(bags_dir), config, executor=executor,
            n_tiles_expected=len(sources) * TILES_PER_SLIDE, progress=progress, stop=stop,
            times=times,
        )  # fmt: skip
    finally:
        if preview is not None:
            preview.write_index()


def embed_sources(
    sources: Sequence[Source[Any]],
    bags_dir: Path,
    config: BaseEmbedConfig,
    *,
    executor: Executor | None,
    n_tiles_expected: int,
    progress: EmbedProgress | None,
    stop: Event | None,
    times: StageTimes | None = None,
) -> list[SlideResult]:
    """Embed sources of bags with distinct names, as :func:`embed_slides` embeds slides.

    Returns one result per finished, skipped or failed source, in order; raises the same errors.
    """
    progress = progress or NoProgress()
    with ExitStack() as stack:
        if executor is None:
            executor = stack.enter_context(
                open_executor(
                    config, bags_dir, n_tiles_expected=n_tiles_expected,
                    bag_ids=[source.bag_id for source in sources], on_warning=progress.warn,
                )
            )  # fmt: skip
        locks = stack.enter_context(shared_locks(make_folder(bags_dir) / ".claims"))
        run = _EmbeddingRun(
            sources=sources, bags_dir=bags_dir, executor=executor, progress=progress,
            stop=stop or Event(), locks=locks, times=times,
        )  # fmt: skip
        return run.run(overwrite=config.overwrite)


class _EmbeddingRun:
    """One pass over sources, and their results."""

    def __init__(
        self,
        *,
        sources: Sequence[Source[Any]],
        bags_dir: Path,
        executor: Executor,
        progress: EmbedProgress,
        stop: Event,
        locks: FolderLocks,
        times: StageTimes | None,
    ) -> None:
        self._sources, self._bags_dir, self._executor = sources, bags_dir, executor
        self._progress, self._stop, self._locks = progress, stop, locks
        assert isinstance(executor.info, WorkerInfo)  # noqa: S101 - from open_executor
        self._fingerprint = executor.info.fingerprint
        self._times = times or StageTimes()
        self._times.began_s = time.monotonic()
        self._results: dict[str, SlideResult] = {}
        self._output_error: OutputError | None = None
        self._lock = Lock()
        self._saved_at = time.monotonic()

    def run(self, *, overwrite: bool) -> list[SlideResult]:
        existing = {} if overwrite else find_bags(self._bags_dir, may_be_empty=True)
        old = [source for source in self._sources if source.bag_id in existing]
        for source in old[:: max(1, -(-len(old) // _BAGS_CHECKED_FIRST))]:
            read_finished_bag(self._bags_dir, source.bag_id, self._fingerprint)
        try:
            self._embed([source for source in self._sources if source.bag_id not in existing])
            self._embed(self._skip_finished(old))
        finally:
            self._write_table()
        if self._output_error is not None:
            raise self._output_error
        return self._ordered_results()

    def on_done(self, source: Source[Any], result: SlideResult) -> None:
        with self._lock:
            self._results[source.bag_id] = result
            due = time.monotonic() - self._saved_at > _TABLE_INTERVAL_S
            if due:
                self._saved_at = time.monotonic()
        self._progress.slide_ended(result)
        if due:
            self._write_table()

    def on_failed(self, source: Source[Any], reason: str) -> None:
        self.on_done(source, record_crash(source, reason))

    def on_message(
        self,
        message: SourceStarted | TilesDone | BatchSizeReduced | StagesTimed | Warned | OutputFull,
    ) -> None:
        match message:
            case SourceStarted(bag_id, n_tiles):
                self._progress.slide_started(bag_id, n_tiles)
            case TilesDone(n_tiles):
                self._progress.tiles_done(n_tiles)
            case BatchSizeReduced(device, runtime):
                self._progress.warn(
                    f"{device} ran out of memory; the encoder continues as {runtime!r}"
                )
            case StagesTimed(seconds):
                self._times.add(seconds)
            case Warned(text):
                self._progress.warn(text)
            case OutputFull(error):
                self._stop_with(error)

    def _embed(self, sources: Sequence[Source[Any]]) -> None:
        if sources and not self._stop.is_set():
            self._executor.run(_largest_first(sources), self, stop=self._stop)

    def _stop_with(self, error: OutputError) -> None:
        self._output_error = self._output_error or error
        self._stop.set()

    def _write_table(self) -> None:
        try:
            write_results(self._bags_dir, self._ordered_results(), self._locks)
        except OutputError as error:
            self._stop_with(error)

    def _skip_finished(self, sources: Sequence[Source[Any]]) -> list[Source[Any]]:
        """Report finished bags as skipped, and return the sources of damaged ones.

        This opens every bag and may take long, so it comes after the slides without a bag.
        """
        damaged = []
        for source in sources:
            if self._stop.is_set():
                break
            meta = read_finished_bag(self._bags_dir, source.bag_id, self._fingerprint)
            if meta is None:
                damaged.append(source)
            else:
                self.on_done(source, SlideResult.of_bag(source.path, meta, status="skipped"))
        return damaged

    def _ordered_results(self) -> list[SlideResult]:
        with self._lock:
            names = [source.bag_id for source in self._sources]
            return [self._results[name] for name in names if name in self._results]


def _largest_first(sources: Sequence[Source[Any]]) -> list[Source[Any]]:
    """Return sources by the size of their files, and those of equal or unknown size in order.

    Each process reads slides of its own: the last one to end should have a small slide. One from
    the end of the first quarter comes before all, so that the device has tiles while the tissue of
    the largest is found.
    """
    known = known_sizes(sources)
    ordered = sorted(sources, key=lambda source: -known.get(source.bag_id, 0))
    return [ordered.pop(len(ordered) // 4), *ordered]
