"""Sources of bags: the interface that workers use, and slides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Thread, Timer
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from features.bags.bag import Bag
from features.embedding.bag_builder import build_bag
from features.embedding.batching import SlideBuffer
from features.embedding.config import EmbedConfig
from features.embedding.results import SlideResult
from features.errors import SlideError
from features.slides.file_info import slide_size
from features.slides.reader import slide_id_of
from features.tiling.slide_tiles import SlideTiles, open_slide_tiles
from features.tiling.stain import build_stain_normalizer
from features.tiling.transforms import TileTransform

if TYPE_CHECKING:
    from features.embedding.batching import Instances
    from features.encoders.base import Encoder
    from features.visualization.preview import PreviewWriter

__all__ = [
    "SILENT_S",
    "SlideSource",
    "Source",
    "known_sizes",
    "record_crash",
    "silence_text",
    "slide_sources",
    "tile_transform",
    "warn_of_silence",
]

S = TypeVar("S", bound="Instances")

SILENT_S = 600.0
"""Time without a finished tile or slide after which the slides in work are named."""
_SIZES_S = 10.0
"""Time after which the sizes of files that are not known yet are no longer awaited."""
_HINTS = {
    "SIGKILL": "Memory may be short: give a smaller --workers or --batch.",
    "SIGBUS": "Memory or a disk may be full: free some space, or copy the file again.",
    "SIGSEGV": "Copy or export it again, or leave it out.",
}
"""What to do about a slide that ends workers, by the signal."""
_OTHER_HINT = "Embed it alone to see the reason, or leave it out."


class Source(Protocol[S]):
    """A slide or an image series that becomes one bag; picklable."""

    @property
    def bag_id(self) -> str:
        """Name of the bag."""

    @property
    def path(self) -> Path:
        """Path of the slide, or of the series."""

    def n_bytes(self) -> int:
        """Return the size of its files, bytes; 0 if it is unknown. May raise OSError."""

    def open(self) -> AbstractContextManager[S]:
        """Open it and list its tiles or images, all of one size in px."""

    def make_buffer(self, instances: S, *, dim: int) -> SlideBuffer[S]:
        """Return an empty buffer for embeddings, shape (n_tiles, n_views, dim)."""

    def build_bag(self, buffer: SlideBuffer[S], encoder: Encoder) -> Bag:
        """Build the bag from a finished buffer; raise MilError if too many instances failed."""

    def record_failure(self, message: str) -> None:
        """Record that there is no bag, and why."""

    def without_encoder(self) -> Source[S]:
        """Return the source for another process, without a loaded encoder in its settings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideSource:
    """A slide that becomes a bag.

    ``given_mpp``, µm per level-0 px, replaces that of the file; ``scene`` is which of the
    file's scenes is the slide, None for the largest.
    """

    path: Path
    config: EmbedConfig
    given_mpp: float | None
    scene: int | None = None
    preview: PreviewWriter | None = None

    @cached_property
    def bag_id(self) -> str:
        """Slide id."""
        return slide_id_of(self.path, self.scene)

    def n_bytes(self) -> int:
        """Return the size of the slide, bytes; 0 behind a URL. May raise OSError."""
        return slide_size(self.path) or 0

    def open(self) -> AbstractContextManager[SlideTiles]:
        """Open the slide, segment its tissue and make its grid of tiles of ``tile_px`` px."""
        return open_slide_tiles(
            self.path, tiles=self.config.tiles, tissue=self.config.tissue,
            given_mpp=self.given_mpp, scene=self.scene,
        )  # fmt: skip

    def make_buffer(self, instances: SlideTiles, *, dim: int) -> SlideBuffer[SlideTiles]:
        """Return an empty buffer, shape (n_tiles, n_views, dim), with transform and filter."""
        transform = tile_transform(instances, self.config)
        return SlideBuffer(
            instances, dim=dim, transform=transform, tile_filter=self.config.tile_filter
        )

    def build_bag(self, buffer: SlideBuffer[SlideTiles], encoder: Encoder) -> Bag:
        """Draw the preview, and build the bag, with coordinates in level-0 px."""
        if self.preview is not None and buffer.error is None:
            self.preview.add(buffer.instances, rejected=buffer.rejected, failed=buffer.failures)
        return build_bag(buffer, encoder, self.config)

    def without_encoder(self) -> SlideSource:
        """Return the slide for another process, without a loaded encoder in its settings."""
        return replace(self, config=self.config.without_encoder())

    def record_failure(self, message: str) -> None:
        """Show the failure in the preview."""
        if self.preview is not None:
            self.preview.add_failure(self.bag_id, message)


def slide_sources(
    paths: Sequence[Path],
    config: EmbedConfig,
    *,
    given_mpp: Mapping[str, float],
    scene: int | None,
    preview: PreviewWriter | None = None,
) -> list[SlideSource]:
    """Return one source per slide; ``given_mpp`` is in µm per level-0 px, by slide id."""
    return [
        SlideSource(
            path=path, config=config, scene=scene, preview=preview,
            given_mpp=given_mpp.get(slide_id_of(path, scene), given_mpp.get(slide_id_of(path))),
        )
        for path in paths
    ]  # fmt: skip


def known_sizes(sources: Sequence[Source[Any]]) -> dict[str, int]:
    """Return the sizes of sources by bag id, bytes, without those that are unknown.

    Unknown are those behind URLs, those that cannot be asked, which fails when they are opened, and
    those whose storage has not answered within ten seconds.
    """
    sizes: dict[str, int] = {}
    until = time.monotonic() + _SIZES_S

    def measure() -> None:
        for source in sources:
            if time.monotonic() > until:
                return
            with suppress(OSError):
                if n_bytes := source.n_bytes():
                    sizes[source.bag_id] = n_bytes

    thread = Thread(target=measure, name="sizes", daemon=True)  # Storage may not answer.
    thread.start()
    thread.join(_SIZES_S)
    return sizes.copy()


def silence_text(paths: Iterable[Path]) -> str:
    """Return the warning that work on these slides or series has stood still, with a reason."""
    return (
        f"nothing was finished for {SILENT_S / 60:.0f} minutes; in work: "
        f"{', '.join(map(str, paths))}. Storage that does not answer is a usual reason."
    )


@contextmanager
def warn_of_silence(path: Path, on_warning: Callable[[str], None]) -> Iterator[None]:
    """Name a slide once if the block takes ten minutes; ``on_warning`` is called in a thread."""
    text = f"{silence_text([path])} Ctrl-C stops the command."
    timer = Timer(SILENT_S, on_warning, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def record_crash(source: Source[Any], reason: str) -> SlideResult:
    """Record that a source crashed every worker that read it, and return its result."""
    error = SlideError(
        source.path, actual=reason, expected="a worker that stays alive",
        hint=next((hint for name, hint in _HINTS.items() if name in reason), _OTHER_HINT),
    )  # fmt: skip
    result = SlideResult.of_failure(source.path, str(error), slide_id=source.bag_id)
    source.record_failure(result.message)
    return result


def tile_transform(tiles: SlideTiles, config: EmbedConfig) -> TileTransform:
    """Return the transform of a slide's tiles, in px, into the encoder's inputs."""
    normalizer = build_stain_normalizer(config.stain_norm, tiles)
    return TileTransform(tiles, views=config.views, stain_normalizer=normalizer)
