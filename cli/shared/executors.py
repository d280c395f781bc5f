"""Embedding under progress bars, on the devices or the cluster that the options name."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.console import finish_on_interrupt, progress_bar, spinner, stderr, warn
from cli.shared.embed_progress import EmbedProgressBars
from features.errors import one_line

if TYPE_CHECKING:
    from features.embedding.config import BaseEmbedConfig
    from features.embedding.results import SlideResult
    from features.parallel.base import Executor

__all__ = ["absolute_path", "checkpoint_paths", "embed_with_progress", "print_warning"]

_INSTALLED = "-"


def print_warning(text: str) -> None:
    """Print a note on standard error, above any progress bar."""
    warn(f"note: {one_line(text)}")


def absolute_path(path: Path) -> Path:
    """Return a path that is valid in other working directories; URLs stay as they are."""
    from features.utils.paths import parse_url

    return path if parse_url(path) else path.absolute()


def checkpoint_paths(weights: list[Path] | None) -> tuple[Path | None, ...]:
    """Return the checkpoints that ``--weights`` names; ``-`` stands for installed weights."""
    return tuple(None if str(path) == _INSTALLED else path.absolute() for path in weights or ())


def embed_with_progress(
    embed: Callable[..., list[SlideResult]],
    items: Sequence[Any],
    bags_dir: Path,
    config: BaseEmbedConfig,
    *,
    bag_ids: Sequence[str],
    n_tiles_expected: int,
    units: tuple[str, str],
    check: Callable[[Executor], None] | None = None,
    **options: Any,
) -> tuple[list[SlideResult], bool]:
    """Embed slides or series under progress bars.

    ``embed`` is :func:`features.embed_slides` or :func:`features.series.pipeline.embed_series`,
    ``bag_ids`` are the ids of the bags, ``units`` the names of a bag's source and of its instances,
    and ``check`` is called with the executor before the work starts. The first Ctrl-C or SIGTERM
    finishes what was started. Returns the results, and True if the user stopped the run.
    """
    from features.embedding.distributed import open_executor

    with ExitStack() as stack:
        with spinner("loading the encoder"):
            executor = stack.enter_context(
                open_executor(
                    config, bags_dir, n_tiles_expected=n_tiles_expected, bag_ids=bag_ids,
                    on_warning=print_warning,
                )
            )  # fmt: skip
            if check is not None:
                check(executor)
        _print_encoder(executor, config)
        # The encoder is kept to the end; each garbage collection of it takes half a second.
        gc.freeze()
        stack.callback(gc.unfreeze)
        bars = stack.enter_context(progress_bar(units[1]))
        stop = stack.enter_context(finish_on_interrupt())
        progress = EmbedProgressBars(bars, n_slides=len(items), unit=units[0])
        results = embed(
            items, bags_dir, config, executor=executor, progress=progress, stop=stop, **options
        )
        return results, stop.is_set()


def _print_encoder(executor: Executor, config: BaseEmbedConfig) -> None:
    """Print the encoder with the mean and standard deviation it normalises tiles with.

    A resolution at which a pathology encoder was not trained is named.
    """
    from features.encoders.pathology import find_pathology_encoder

    info: Any = executor.info
    made, source = info.fingerprint, info.preprocessing_source
    if info.cache_error:
        print_warning(info.cache_error)
    transform = json.loads(made.transform)
    for name, one in zip(
        made.encoder.split("+"), transform.get("parts", [transform]), strict=False
    ):
        if "mean" in one and source:
            mean, std = (", ".join(f"{value:.3g}" for value in one[key]) for key in ("mean", "std"))
            stderr.print(
                f"encoder {name}: {one['input_px']} px, mean {mean}, std {std} ({source})",
                style="dim", highlight=False, markup=False,
            )  # fmt: skip
        entry = find_pathology_encoder(name)
        tiles = getattr(config, "tiles", None)
        if entry and tiles and not any(abs(tiles.target_mpp / mpp - 1) < 0.1 for mpp in entry.mpp):
            trained_at = " or ".join(f"{mpp:g}" for mpp in entry.mpp)
            print_warning(
                f"{entry.name} was trained on tiles of {trained_at} µm/px, not of "
                f"{tiles.target_mpp:g}"
            )
