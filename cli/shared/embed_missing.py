"""What ``mil infer`` embeds first: slides and series that have no bag yet, as the run's were."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from cli.console import progress_bar, spinner
from cli.shared.arguments import resolve_mpp_table
from cli.shared.embed_progress import EmbedProgressBars, print_failures
from cli.shared.executors import images_expected, load_encoder_for
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.embedding.results import SlideResult
    from features.encoders.encoder import Encoder
    from mil.inference.bundle import ModelBundle

__all__ = ["embed_missing_series", "embed_missing_slides"]


def embed_missing_slides(
    run: ModelBundle,
    missing: Collection[str],
    slides: Path,
    bags_dir: Path,
    *,
    weights: list[Path] | None,
    slide_mpp: float | None,
    mpp_table: Path | None,
    device: str,
    workers: int,
    batch: int,
) -> int:
    """Embed the slides whose ids are missing among the bags; return how many failed."""
    from features.embedding.config import config_from_fingerprint
    from features.embedding.pipeline import embed_slides
    from features.slides.reader import find_slides, slide_id_of

    paths = [path for path in find_slides([slides]) if slide_id_of(path) in missing]
    if not paths:
        return 0
    _require_folder(bags_dir, n_missing=len(paths), first=slide_id_of(paths[0]))
    with spinner("loading the backbone"):
        settings = config_from_fingerprint(
            run.fingerprint, batch_tiles=batch, n_workers=workers, tile_filter=run.tile_filter
        )
        given = resolve_mpp_table(paths, slide_mpp=slide_mpp, mpp_table=mpp_table)
        encoder = _encoder_of(
            run, bags_dir, weights=weights, device=device, batch=batch, n_slides=len(paths)
        )

    def embed(bars: EmbedProgressBars) -> list[SlideResult]:
        return embed_slides(
            paths, bags_dir, encoder, settings=settings, given_mpp=given, overwrite=False,
            progress=bars,
        )  # fmt: skip

    return _with_progress(embed, bags_dir, n_bags=len(paths), words=("slides", "tiles"))


def embed_missing_series(
    run: ModelBundle,
    missing: Collection[str],
    series: Path,
    bags_dir: Path,
    *,
    weights: list[Path] | None,
    device: str,
    workers: int,
    batch: int,
) -> int:
    """Embed the series whose ids are missing among the bags; return how many failed."""
    from features.series.config import series_config_from_fingerprint
    from features.series.manifest import read_series
    from features.series.pipeline import embed_series

    specs = [spec for spec in read_series(series) if spec.bag_id in missing]
    if not specs:
        return 0
    _require_folder(bags_dir, n_missing=len(specs), first=specs[0].bag_id)
    with spinner("loading the backbone"):
        settings = series_config_from_fingerprint(
            run.fingerprint, batch_images=batch, n_workers=workers
        )
        encoder = _encoder_of(
            run, bags_dir, weights=weights, device=device, batch=batch,
            n_tiles_expected=images_expected(specs),
        )  # fmt: skip

    def embed(bars: EmbedProgressBars) -> list[SlideResult]:
        return embed_series(
            specs, bags_dir, encoder, settings=settings, overwrite=False, progress=bars
        )

    return _with_progress(embed, bags_dir, n_bags=len(specs), words=("series", "images"))


def _require_folder(bags_dir: Path, *, n_missing: int, first: str) -> None:
    from features.bags.store import is_bag_store
    from features.errors import BagError

    if is_bag_store(bags_dir):
        raise BagError(
            bags_dir,
            actual=f"{pluralize(n_missing, 'slides')} without a bag in it, first {first!r}",
            expected="all slides of the table: to a packed store nothing can be added",
            hint="Name a folder of bags, or leave out what they would be made of.",
        )


def _encoder_of(
    run: ModelBundle,
    bags_dir: Path,
    *,
    weights: list[Path] | None,
    device: str,
    batch: int,
    n_slides: int = 0,
    n_tiles_expected: int | None = None,
) -> Encoder:
    """The backbone that the run's bags were made with."""
    from mil.errors import RunError

    encoder = load_encoder_for(
        bags_dir, run.fingerprint.encoder, weights=weights, device=device, batch=batch,
        execution="auto", n_slides=n_slides, n_tiles_expected=n_tiles_expected,
    )  # fmt: skip
    if encoder.weights_sha256 != run.fingerprint.weights_sha256:
        raise RunError(
            run.path,
            actual=f"weights {encoder.weights_sha256[:12]}… for backbone "
            f"{run.fingerprint.encoder!r}",
            expected=f"{run.fingerprint.weights_sha256[:12]}…, which its bags were made with",
            hint="Name their checkpoint with --weights.",
        )
    return encoder


def _with_progress(
    embed: Callable[[EmbedProgressBars], list[SlideResult]],
    bags_dir: Path,
    *,
    n_bags: int,
    words: tuple[str, str],
) -> int:
    """Embed under progress bars; returns how many failed."""
    with progress_bar(words[1]) as bars:
        outcomes = embed(EmbedProgressBars(bars, n_slides=n_bags, what=words[0]))
    print_failures(outcomes, bags_dir, what=words[0])
    return sum(outcome.status == "failed" for outcome in outcomes)
