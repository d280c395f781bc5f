"""Series of images into a folder of bags, on the same road as slides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from features.bags.bag import IMAGE, Bag, BagMeta, as_json
from features.embedding.bag_builder import software_versions
from features.embedding.batching import SlideBuffer
from features.embedding.pipeline import EmbedProgress, embed_sources
from features.embedding.results import SlideResult, counts_text
from features.embedding.worker import EmbeddingWorker
from features.encoders.encoder import Encoder
from features.errors import SlideError
from features.parallel.base import Executor
from features.parallel.local import LocalExecutor
from features.series.config import SeriesConfig, fingerprint_of_series
from features.series.manifest import SeriesSpec
from features.series.series import ImageSeries, SeriesImage, open_series
from features.slides.file_info import content_hash

__all__ = ["embed_series", "embed_series_by"]

_DECODERS = ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")


def embed_series(
    specs: Sequence[SeriesSpec],
    bags_dir: Path,
    encoder: Encoder,
    *,
    settings: SeriesConfig,
    overwrite: bool,
    progress: EmbedProgress,
    stop: Event | None = None,
) -> list[SlideResult]:
    """Embed series, each into ``bags_dir/<bag_id>.h5``.

    As :func:`features.embedding.pipeline.embed_slides`: finished ones are skipped, one that fails
    does not stop the others, and ``embed.csv`` says what became of each.

    Parameters
    ----------
    specs
        What becomes bags, from :func:`features.series.manifest.read_series`.
    bags_dir, encoder, overwrite, progress, stop
        As for :func:`features.embedding.pipeline.embed_slides`.
    settings
        How images are looked at.

    Returns
    -------
    list of SlideResult
        One a series that was dealt with, in the order of ``specs``.

    Raises
    ------
    BagError
        If the folder holds bags of these series made with other settings.
    OutputError
        If the folder cannot be written to any more, e.g. for want of space.
    """
    with closing(
        EmbeddingWorker(
            bags_dir, encoder, fingerprint=fingerprint_of_series(encoder, settings),
            batch_tiles=settings.batch_images, n_workers=settings.n_workers, overwrite=overwrite,
        )
    ) as embedder:  # fmt: skip
        return embed_series_by(
            LocalExecutor(embedder), specs, bags_dir, settings=settings, overwrite=overwrite,
            progress=progress, stop=stop,
        )  # fmt: skip


def embed_series_by(
    engine: Executor,
    specs: Sequence[SeriesSpec],
    bags_dir: Path,
    *,
    settings: SeriesConfig,
    overwrite: bool,
    progress: EmbedProgress,
    stop: Event | None = None,
) -> list[SlideResult]:
    """Embed series by an engine whose workers are embedders; see :func:`embed_series`.

    Parameters
    ----------
    engine
        Has the series embedded, into the same folder and with the same settings.
    specs, bags_dir, settings, overwrite, progress, stop
        As for :func:`embed_series`.
    """
    sources = [_SeriesSource(spec=spec, settings=settings) for spec in specs]
    return embed_sources(
        engine, sources, bags_dir, overwrite=overwrite, progress=progress, stop=stop
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _SeriesSource:
    """A series that becomes a bag."""

    spec: SeriesSpec
    settings: SeriesConfig

    @property
    def bag_id(self) -> str:
        return self.spec.bag_id

    @property
    def path(self) -> Path:
        """Its folder; of a single file that file."""
        first = self.spec.listed[0].path
        return first if len(self.spec.listed) == 1 else first.parent

    @contextmanager
    def open(self) -> Iterator[ImageSeries]:
        yield open_series(
            self.spec, windows=self.settings.windows, side_px=self.settings.side_px
        )  # fmt: skip

    def work_on(self, opened: ImageSeries, *, dim: int) -> SlideBuffer[ImageSeries]:
        return SlideBuffer(opened, dim=dim)

    def build_bag(self, work: SlideBuffer[ImageSeries], encoder: Encoder) -> Bag:
        if work.fault is not None:
            raise work.fault
        n_failed, n_images = len(work.failures), work.survey.n_tiles - len(work.left_out)
        if n_failed > self.settings.max_failed * n_images:
            raise SlideError(
                f"series {self.bag_id!r}",
                actual=f"{n_failed} of {n_images} images cannot be read, "
                f"first: {next(iter(work.failures.values()))}",
                expected=f"at most {self.settings.max_failed:.0%}",
                hint="Export the series again, or allow more with --max-failed.",
            )
        kept = [work.survey.images[index] for index in work.kept]
        return Bag.from_series(
            work.features,
            order=work.kept,
            source=tuple(image.source for image in kept),
            meta=self._describe(work, kept, encoder),
        )

    def note_failure(self, message: str) -> None:
        """Nothing is shown of series besides ``embed.csv``."""

    def _describe(
        self, work: SlideBuffer[ImageSeries], kept: Sequence[SeriesImage], encoder: Encoder
    ) -> BagMeta:
        width_px, height_px, spacing_um = _geometry(kept)
        left_out = Counter(work.left_out.values())
        return BagMeta(
            slide_id=self.bag_id,
            fingerprint=fingerprint_of_series(encoder, self.settings),
            width_px0=width_px,
            height_px0=height_px,
            mpp_x=spacing_um[0],
            mpp_y=spacing_um[1],
            mpp_source="file" if spacing_um[0] else "",
            span_x_px0=0.0,
            span_y_px0=0.0,
            slide_content_id=_content_of(dict.fromkeys(image.path for image in kept)),
            background_rgb=(0, 0, 0),
            n_tried=work.survey.n_tiles,
            n_failed=len(work.failures),
            left_out=as_json(**left_out),
            empty_reason="" if kept else f"all images left out: {counts_text(left_out)}",
            software=software_versions(encoder, *_DECODERS),
            kind=IMAGE,
        )


def _geometry(images: Sequence[SeriesImage]) -> tuple[int, int, tuple[float, float]]:
    """Width and height in px, and µm per px, of a scan's first slice; zeros where not known."""
    header = images[0].header if images else None
    if header is None:
        return 0, 0, (0.0, 0.0)
    return header.width_px, header.height_px, header.spacing_um or (0.0, 0.0)


def _content_of(paths: Iterable[Path]) -> str:
    """Tells a series by the contents of its files in order, whatever they are called."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(content_hash(path).encode())
    return digest.hexdigest()
