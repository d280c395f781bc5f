"""Embedding of slides and series before ``mil infer``, with the settings of the run's bags."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.shared.arguments import resolve_mpp_table
from cli.shared.embed_progress import print_failures
from cli.shared.executors import embed_with_progress
from features.errors import SlideError
from features.utils.files import path_exists
from features.utils.paths import parse_url
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.embedding.results import SlideResult
    from features.parallel.base import Executor
    from mil.inference.bundle import ModelBundle

__all__ = ["embed_missing", "embed_missing_series", "embed_missing_slides"]


def embed_missing(
    run: ModelBundle,
    missing: Collection[str],
    bags_dir: Path,
    *,
    slides: Path | None,
    series: Path | None,
    slide_mpp: float | None,
    mpp_table: Path | None,
    **options: Any,
) -> int:
    """Embed what has no bag yet from ``slides`` or ``series``, and return the number of failures.

    ``slide_mpp`` is in µm per level-0 px. Nothing is done without either. Raises SlideError if
    there is no such path, also if nothing is missing.
    """
    for path in (slides, series):
        if path is not None and parse_url(path) is None and not path_exists(path):
            raise SlideError(
                path, actual="there is no such file or folder", expected="slides or series"
            )
    if missing and slides is not None:
        return embed_missing_slides(
            run, missing, slides, bags_dir, slide_mpp=slide_mpp, mpp_table=mpp_table, **options
        )
    if missing and series is not None:
        return embed_missing_series(run, missing, series, bags_dir, **options)
    return 0


def embed_missing_slides(
    run: ModelBundle,
    missing: Collection[str],
    slides: Path,
    bags_dir: Path,
    *,
    slide_mpp: float | None,
    mpp_table: Path | None,
    **options: Any,
) -> int:
    """Embed slides that have no bag yet as the run's bags were, and return the number of failures.

    ``slide_mpp`` is in µm per level-0 px; ``options`` are fields of :class:`features.EmbedConfig`.
    """
    from features.embedding.config import config_from_fingerprint
    from features.embedding.pipeline import TILES_PER_SLIDE, embed_slides
    from features.slides.manifest import match_files
    from features.slides.reader import scene_of
    from features.slides.search import find_slides

    found = find_slides([slides])
    files = match_files(found, missing, option="--slides")
    if not files:
        return 0
    _require_folder(bags_dir, n_missing=len(files), first=next(iter(files)))
    config = config_from_fingerprint(run.fingerprint, tile_filter=run.tile_filter, **options)
    given_mpp = resolve_mpp_table(found, slide_mpp=slide_mpp, mpp_table=mpp_table)
    by_scene: dict[int | None, list[Path]] = {}
    for slide_id, path in files.items():
        by_scene.setdefault(scene_of(slide_id, path), []).append(path)

    def embed(_: object, *arguments: Any, **named: Any) -> list[SlideResult]:
        return [
            result
            for scene, some in by_scene.items()
            for result in embed_slides(some, *arguments, scene=scene, **named)
        ]

    results, stopped = embed_with_progress(
        embed, list(files), bags_dir, config, bag_ids=list(files),
        n_tiles_expected=len(files) * TILES_PER_SLIDE, units=("slides", "tiles"),
        check=_weights_check(run), given_mpp=given_mpp,
    )  # fmt: skip
    n_failed = print_failures(results, bags_dir)
    if stopped:
        raise KeyboardInterrupt
    return n_failed


def embed_missing_series(
    run: ModelBundle, missing: Collection[str], series: Path, bags_dir: Path, **options: Any
) -> int:
    """Embed series that have no bag yet as the run's bags were, and return the number of failures.

    ``options`` are fields of :class:`features.series.config.SeriesConfig`.
    """
    from features.series.config import series_config_from_fingerprint
    from features.series.manifest import read_series
    from features.series.pipeline import embed_series, expected_images

    specs = [spec for spec in read_series(series) if spec.bag_id in missing]
    if not specs:
        return 0
    _require_folder(bags_dir, n_missing=len(specs), first=specs[0].bag_id)
    config = series_config_from_fingerprint(run.fingerprint, **options)
    results, stopped = embed_with_progress(
        embed_series, specs, bags_dir, config, bag_ids=[spec.bag_id for spec in specs],
        n_tiles_expected=expected_images(specs), units=("series", "images"),
        check=_weights_check(run),
    )  # fmt: skip
    n_failed = print_failures(results, bags_dir, unit="series")
    if stopped:
        raise KeyboardInterrupt
    return n_failed


def _require_folder(bags_dir: Path, *, n_missing: int, first: str) -> None:
    from features.bags.store import is_bag_store
    from features.errors import BagError

    if is_bag_store(bags_dir):
        raise BagError(
            bags_dir,
            actual=f"{pluralize(n_missing, 'slides')} without a bag in it, first {first!r}",
            expected="one for each slide in the table, as nothing can be added to a packed store",
            hint="Name a folder of bags, or leave out --slides and --series.",
        )


def _weights_check(run: ModelBundle) -> Any:
    """Return a check that an executor's encoder has the weights of the run's bags."""
    from mil.errors import RunError

    def check(executor: Executor) -> None:
        info: Any = executor.info
        actual, expected = info.fingerprint.weights_sha256, run.fingerprint.weights_sha256
        if actual != expected:
            raise RunError(
                run.path,
                actual=f"weights {actual[:12]}… for backbone {run.fingerprint.encoder!r}",
                expected=f"{expected[:12]}…, with which its bags were made",
                hint="Name their checkpoint with --weights.",
            )

    return check
