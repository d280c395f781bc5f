"""Embedding of image series into a folder of bags."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from features.bags.bag import IMAGE, Bag, BagMeta, as_json
from features.embedding.bag_builder import software_versions
from features.embedding.batching import SlideBuffer
from features.embedding.pipeline import EmbedProgress, embed_sources
from features.embedding.results import SlideResult, counts_text
from features.encoders.base import Encoder
from features.parallel.base import Executor
from features.series.config import SeriesConfig
from features.series.manifest import SeriesSpec
from features.series.series import ImageSeries, SeriesImage, open_series
from features.slides.file_info import content_hash, file_size

__all__ = ["embed_series", "expected_images"]

_DECODERS = ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
_IMAGES_PER_FOLDER = 40


def expected_images(specs: Sequence[SeriesSpec]) -> int:
    """Return the number of listed images; a folder counts with an assumed number."""
    return sum(max(_IMAGES_PER_FOLDER, len(spec.entries)) for spec in specs)


def embed_series(
    specs: Sequence[SeriesSpec],
    bags_dir: Path | str,
    config: SeriesConfig,
    *,
    executor: Executor | None = None,
    progress: EmbedProgress | None = None,
    stop: Event | None = None,
) -> list[SlideResult]:
    """Embed image series, each into ``bags_dir/<bag_id>.h5``; return one result each, in order.

    Arguments and errors are those of :func:`features.embedding.pipeline.embed_slides`; ``specs``
    come from :func:`features.series.manifest.read_series`.
    """
    if config.engine == "ray":  # Other machines have other working directories.
        specs = [spec.absolute() for spec in specs]
    sources = [_SeriesSource(spec=spec, config=config) for spec in specs]
    return embed_sources(
        sources, Path(bags_dir), config, executor=executor,
        n_tiles_expected=expected_images(specs), progress=progress, stop=stop,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class _SeriesSource:
    """A series that becomes a bag."""

    spec: SeriesSpec
    config: SeriesConfig

    @property
    def bag_id(self) -> str:
        return self.spec.bag_id

    @property
    def path(self) -> Path:
        """Folder of the series; its file if it has only one."""
        first = self.spec.entries[0].path
        return first if len(self.spec.entries) == 1 else first.parent

    def n_bytes(self) -> int:
        return sum(file_size(entry.path) or 0 for entry in self.spec.entries)

    @contextmanager
    def open(self) -> Iterator[ImageSeries]:
        yield open_series(self.spec, windows=self.config.windows, side_px=self.config.side_px)

    def make_buffer(self, instances: ImageSeries, *, dim: int) -> SlideBuffer[ImageSeries]:
        return SlideBuffer(instances, dim=dim)

    def build_bag(self, buffer: SlideBuffer[ImageSeries], encoder: Encoder) -> Bag:
        buffer.check_failures(
            f"series {self.bag_id!r}", buffer.instances.n_tiles - len(buffer.rejected),
            unit="images", verb="read", max_failed=self.config.max_failed,
            again="Export the series",
        )  # fmt: skip
        kept = [buffer.instances.images[index] for index in buffer.kept]
        return Bag.from_series(
            buffer.features,
            order=buffer.kept,
            source=tuple(image.source for image in kept),
            meta=self._metadata(buffer, kept, encoder),
        )

    def without_encoder(self) -> _SeriesSource:
        return replace(self, config=self.config.without_encoder())

    def record_failure(self, message: str) -> None:
        """Do nothing: series have no preview."""

    def _metadata(
        self, buffer: SlideBuffer[ImageSeries], kept: Sequence[SeriesImage], encoder: Encoder
    ) -> BagMeta:
        width_px, height_px, spacing_um = _geometry(kept)
        left_out = Counter(buffer.rejected.values())
        return BagMeta(
            slide_id=self.bag_id,
            fingerprint=self.config.make_fingerprint(encoder),
            width_px0=width_px,
            height_px0=height_px,
            mpp_x=spacing_um[0],
            mpp_y=spacing_um[1],
            mpp_source="file" if spacing_um[0] else "",
            span_x_px0=0.0,
            span_y_px0=0.0,
            slide_content_id=_series_hash(dict.fromkeys(image.path for image in kept)),
            background_rgb=(0, 0, 0),
            n_tried=buffer.instances.n_tiles,
            n_failed=len(buffer.failures),
            left_out=as_json(**left_out),
            empty_reason="" if kept else f"all images left out: {counts_text(left_out)}",
            software=software_versions(encoder, *_DECODERS),
            kind=IMAGE,
            settings=self.config.settings,
        )


def _geometry(images: Sequence[SeriesImage]) -> tuple[int, int, tuple[float, float]]:
    """Return width and height in px, and µm per px, of the first slice; zeros if unknown."""
    header = images[0].header if images else None
    if header is None:
        return 0, 0, (0.0, 0.0)
    return header.width_px, header.height_px, header.spacing_um or (0.0, 0.0)


def _series_hash(paths: Iterable[Path]) -> str:
    """Hash the contents of a series' files in order, whatever their names."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(content_hash(path).encode())
    return digest.hexdigest()
