"""The engine that options of the command line ask for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.console import spinner, stderr
from cli.options import EngineName

if TYPE_CHECKING:
    from features.bags.bag import Fingerprint
    from features.embedding.distributed import WorkerFactory
    from features.encoders.config import EncoderConfig
    from features.encoders.encoder import Encoder
    from features.parallel.base import Executor
    from features.series.manifest import SeriesSpec

__all__ = []


@contextmanager
def open_executor(
    plan: WorkerFactory, *, engine: EngineName, address: str | None
) -> Iterator[Executor]:
    """Embedders as planned: here, one a device of this machine, or on a Ray cluster."""
    from features.embedding.distributed import (
        local_executor,
        process_executor,
        ray_executor,
    )
    from features.parallel.devices import parse_devices

    with ExitStack() as stack:
        with spinner("loading the backbone"):
            if engine is EngineName.ray:
                yielded: Executor = stack.enter_context(
                    ray_executor(plan, address, on_warning=print_warning)
                )
            elif len(devices := parse_devices(plan.encoder.device)) > 1:
                yielded = stack.enter_context(
                    process_executor(plan, devices, on_warning=print_warning)
                )
            else:
                yielded = stack.enter_context(local_executor(plan))
        # What is loaded stays to the end; to look through it for garbage takes half a second.
        gc.freeze()
        stack.callback(gc.unfreeze)
        yield yielded


def print_warning(text: str) -> None:
    """Say something on standard error, above any progress bar."""
    stderr.print(f"note: {text}", style="yellow")


def absolute_path(path: Path) -> Path:
    """A path that means the same in other folders; a URL stays as it is."""
    from features.utils.paths import parse_url

    return path if parse_url(path) else path.absolute()


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Backbone, machine and manner, alike for slides and for series of images."""

    backbone: str
    """timm name, or several joined by ``+``."""
    weights: list[Path] | None
    """Checkpoint of each backbone; None for installed weights."""
    execution: str
    """Way the backbone runs."""
    batch: int
    """Tiles or images through the backbone at once."""
    device: str
    """Device, or several."""
    engine: EngineName
    """Where the work is done."""
    address: str | None
    """The Ray cluster."""
    workers: int | None
    """Threads that decode, of each device; None shares out all cores."""
    overwrite: bool
    """Whether what has a bag is embedded again."""
    as_json: bool
    """Whether the summary is for a program."""

    def request(self, *, n_tiles_expected: int) -> EncoderConfig:
        """The backbone that is asked for; with few tiles nothing that is slow to start."""
        return request_encoder(
            self.backbone, weights=self.weights, device=self.device, batch=self.batch,
            execution=self.execution, n_tiles_expected=n_tiles_expected,
        )  # fmt: skip

    def plan(
        self,
        bags_dir: Path,
        *,
        n_tiles_expected: int,
        fingerprint: Callable[[Encoder], Fingerprint],
    ) -> WorkerFactory:
        """What each worker needs to know to make bags."""
        from features.embedding.distributed import WorkerFactory

        return WorkerFactory(
            bags_dir=bags_dir, encoder=self.request(n_tiles_expected=n_tiles_expected),
            batch_tiles=self.batch, n_workers=self.workers, fingerprint=fingerprint,
            overwrite=self.overwrite,
        )  # fmt: skip


EXPECTED_TILES_PER_SLIDE = 200
"""A guess, made before any slide is opened."""

_IMAGES_A_SERIES = 40
_INSTALLED = "-"  # weights that are installed, where several backbones need a checkpoint each


def images_expected(specs: Sequence[SeriesSpec]) -> int:
    """Images of series: those that are listed, and a guess for folders that were not opened yet."""
    return sum(max(_IMAGES_A_SERIES, len(spec.listed)) for spec in specs)


def request_encoder(
    name: str,
    *,
    weights: list[Path] | None,
    device: str,
    batch: int,
    execution: str,
    n_tiles_expected: int,
) -> EncoderConfig:
    """What the options ask for.

    Parameters
    ----------
    name, weights
        Backbone, and a checkpoint for each of its parts; None for installed weights.
    device, batch, execution
        As on the command line.
    n_tiles_expected
        Tiles to be embedded; for few of them nothing is started that takes long to start.
    """
    from features.encoders.config import EncoderConfig

    paths = tuple(None if str(path) == _INSTALLED else path.absolute() for path in weights or ())
    return EncoderConfig(
        name=name, weights=paths, device=device, batch_tiles=batch, execution=execution,
        n_tiles_expected=n_tiles_expected,
    )  # fmt: skip


def load_encoder_for(
    bags_dir: Path | None,
    name: str,
    *,
    weights: list[Path] | None,
    device: str,
    batch: int,
    execution: str,
    n_slides: int = 0,
    n_tiles_expected: int | None = None,
) -> Encoder:
    """Load a backbone, and run it as the bags of the folder were made, or choose that now.

    Parameters
    ----------
    bags_dir
        Folder of the bags; None chooses without noting it.
    name, weights, device, batch, execution
        As for :func:`request_encoder`.
    n_slides
        Slides to be embedded; for few of them nothing is started that takes long to start.
    n_tiles_expected
        Tiles or images to be embedded, where their number is known better than from ``n_slides``.
    """
    return request_encoder(
        name, weights=weights, device=device, batch=batch, execution=execution,
        n_tiles_expected=n_tiles_expected or n_slides * EXPECTED_TILES_PER_SLIDE,
    ).load(bags_dir)  # fmt: skip
