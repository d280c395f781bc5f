"""Executors for embedding: this process, one process per device, or a Ray cluster."""

from __future__ import annotations

import socket
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path

from features.bags.h5 import find_bags
from features.embedding.config import BaseEmbedConfig
from features.embedding.shared_encoder import SharedEncoderWorker, reading_processes
from features.embedding.worker import EmbeddingWorker
from features.encoders.config import recorded_runtime
from features.errors import MilError, OutputError
from features.parallel.base import Executor
from features.parallel.devices import device_type, parse_devices
from features.parallel.local import LocalExecutor
from features.parallel.pool import WorkerPool
from features.parallel.processes import ProcessTransport
from features.parallel.ray_cluster import RayTransport, plan_actors, ray_connection
from features.utils.files import make_folder, write_error
from features.utils.hardware import CPU_COUNT

__all__ = ["EmbeddingWorkerFactory", "open_executor"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingWorkerFactory:
    """Builds an embedding worker in the process where it will run; picklable.

    ``n_tiles_expected`` is the worker's own number of tiles, ``n_sources`` the number of slides or
    series that all workers have to embed, where they are known. Of several workers, each limits the
    threads of its encoder to its share of cores. Other machines check by ``shared_file`` that they
    share the folder, and by ``version`` that they run the program of the calling process.
    """

    bags_dir: Path
    config: BaseEmbedConfig
    n_tiles_expected: int | None = None
    n_sources: int | None = None
    n_workers: int = 1
    shared_file: Path | None = None
    version: str = field(default_factory=lambda: metadata.version("mil-slides"))

    def __call__(self) -> EmbeddingWorker | SharedEncoderWorker:
        """Build the worker.

        Raises
        ------
        MilError
            If this machine has another version of the program, or does not share the folder.
        EncoderError
            If the encoder cannot be loaded.
        """
        self._check_machine()
        load_encoder = partial(
            self.config.load_encoder, self.bags_dir, n_tiles_expected=self.n_tiles_expected,
            n_threads=self.config.n_threads if self.n_workers > 1 else None,
        )  # fmt: skip
        n_processes = self._reading_processes()
        if n_processes > 1:
            return SharedEncoderWorker(
                self.bags_dir, load_encoder, self.config, n_processes=n_processes,
                n_workers=self.n_workers,
            )  # fmt: skip
        return EmbeddingWorker(self.bags_dir, load_encoder(), self.config, n_workers=self.n_workers)

    def for_device(self, device: str, *, n_workers: int, n_threads: int) -> EmbeddingWorkerFactory:
        """Return the factory of one of several workers, each with ``n_threads`` cores."""
        n_tiles = self.n_tiles_expected
        return replace(
            self, config=replace(self.config, device=device, n_workers=n_threads),
            n_tiles_expected=n_tiles and -(-n_tiles // n_workers), n_workers=n_workers,
        )  # fmt: skip

    def _reading_processes(self) -> int:
        """Return the number of processes that read; actors of a cluster read in their own."""
        if self.config.engine == "ray":
            return 1
        encoder, device = self.config.encoder, self.config.device
        return reading_processes(
            device_type(device) if isinstance(encoder, str) else encoder.device.type,
            self.config, n_tiles_expected=self.n_tiles_expected, n_sources=self.n_sources,
            n_workers=self.n_workers,
        )  # fmt: skip

    def _check_machine(self) -> None:
        host = socket.gethostname()
        version = metadata.version("mil-slides")
        if version != self.version:
            raise MilError(
                f"machine {host}", actual=f"mil-slides {version}", expected=self.version,
                hint="Install the same version everywhere.",
            )  # fmt: skip
        if self.shared_file is not None and not self.shared_file.is_file():
            raise OutputError(
                self.bags_dir,
                actual=f"on {host} it is not the folder of the machine that runs this command",
                expected="one folder that all machines share",
                hint="Name a folder on a shared file system with --bags, by a path that is the "
                "same everywhere.",
            )


@contextmanager
def open_executor(
    config: BaseEmbedConfig,
    bags_dir: Path | str,
    *,
    n_tiles_expected: int | None = None,
    bag_ids: Collection[str] | None = None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Iterator[Executor]:
    """Start the workers of a configuration, and shut them down at the end.

    Several devices get a process each; a Ray cluster gets an actor per GPU, or without GPUs, one
    per node. The folder is created if missing. ``n_tiles_expected`` is the number of tiles of all
    ``bag_ids``, of which those with a finished bag are taken off evenly: a runtime that is slow to
    start is not tried for few tiles, and no more processes read for a GPU than there are ids
    without a bag. ``on_warning`` receives text for the user, e.g. that a worker died.

    Raises
    ------
    MilError
        If Ray is not installed or not reachable, the cluster is too small, or its machines do not
        share the folder; if a loaded encoder is given for several devices or Ray.
    EncoderError
        If the encoder cannot be loaded.
    BagError
        If two files of the folder are bags of one slide.
    """
    bags_dir = Path(bags_dir)
    n_sources = None if bag_ids is None else len(bag_ids)
    if bag_ids is not None and not config.overwrite:
        n_sources = len(set(bag_ids) - find_bags(bags_dir, may_be_empty=True).keys())
        if n_tiles_expected is not None and bag_ids:
            n_tiles_expected = max(1, n_tiles_expected * n_sources // len(bag_ids))
    factory = EmbeddingWorkerFactory(
        bags_dir=bags_dir, config=config, n_tiles_expected=n_tiles_expected, n_sources=n_sources
    )
    is_loaded = not isinstance(config.encoder, str)
    devices = (config.device,) if is_loaded else parse_devices(config.device)
    if config.engine == "ray":
        if is_loaded:
            raise MilError(
                "the encoder", actual="a loaded encoder", expected="its timm name with engine 'ray'"
            )
        with ray_connection(config.address), _shared_file(bags_dir) as shared_file:
            resources = plan_actors(device=config.device, n_cpus=config.n_workers)
            factory = replace(
                factory, bags_dir=bags_dir.absolute(), shared_file=shared_file
            ).for_device(
                "cuda" if resources.n_gpus else "cpu", n_workers=resources.n_actors,
                n_threads=resources.n_cpus,
            )  # fmt: skip
            on_warning(
                f"on Ray: {resources.n_actors} workers with {resources.n_cpus} cores"
                + " and a GPU each" * resources.n_gpus
            )
            transport = RayTransport(factory, resources)
            # The first worker selects the runtime if the folder has none recorded.
            first_only = recorded_runtime(bags_dir) is None
            with WorkerPool(transport, start_first_only=first_only, on_warning=on_warning) as pool:
                yield pool
    elif len(devices) > 1:
        n_threads = config.n_workers or max(1, CPU_COUNT // len(devices))
        factories = {
            worker_id: factory.for_device(device, n_workers=len(devices), n_threads=n_threads)
            for worker_id, device in zip(_worker_ids(devices), devices, strict=True)
        }
        first_only = recorded_runtime(bags_dir) is None
        with WorkerPool(
            ProcessTransport(factories), start_first_only=first_only, on_warning=on_warning
        ) as pool:
            yield pool
    else:
        with closing(factory()) as worker:
            yield LocalExecutor(worker)


def _worker_ids(devices: Sequence[str]) -> list[str]:
    """Return the names of devices; repeated ones are numbered."""
    total, seen = Counter(devices), Counter[str]()
    ids = []
    for device in devices:
        seen[device] += 1
        ids.append(f"{device} ({seen[device]})" if total[device] > 1 else device)
    return ids


@contextmanager
def _shared_file(folder: Path) -> Iterator[Path]:
    """Create a file in a folder, by which other machines check that they share the folder."""
    path = make_folder(folder).absolute() / f".shared-{uuid.uuid4().hex}"
    try:
        path.touch()
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
