"""Embedders elsewhere: how one is made where it is to work, and crews of them."""

from __future__ import annotations

import socket
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import torch

from features.bags.bag import Fingerprint
from features.embedding.worker import EmbeddingWorker
from features.encoders.config import EncoderConfig, recorded_runtime
from features.encoders.encoder import Encoder
from features.errors import MilError, OutputError
from features.parallel.local import LocalExecutor
from features.parallel.pool import Transport, WorkerPool
from features.parallel.processes import ProcessTransport
from features.parallel.ray_cluster import RayTransport, plan_actors, ray_connection
from features.utils.files import make_folder, write_error
from features.utils.hardware import CPU_COUNT

__all__ = ["WorkerFactory", "local_executor", "process_executor", "ray_executor"]


@dataclass(frozen=True, kw_only=True)
class WorkerFactory:
    """Makes an embedder where it is to work; survives pickling."""

    bags_dir: Path
    """Folder of the bags, which all share."""
    encoder: EncoderConfig
    """The backbone."""
    fingerprint: Callable[[Encoder], Fingerprint]
    """How the bags will say they were made."""
    batch_tiles: int
    """Tiles through the backbone at once."""
    n_workers: int | None = None
    """Threads that decode; of one among several embedders, also its cores. None for all there
    are, or an even part of them."""
    n_threads: int | None = None
    """Threads of the backbone on a CPU; None for all cores."""
    overwrite: bool = False
    """Embed again what has a bag."""
    n_embedders: int = 1
    """How many embedders work at the same time."""
    mark: Path | None = None
    """A file in the folder that only who shares it can see; None where all do."""
    version: str = field(default_factory=lambda: metadata.version("mil-slides"))
    """Version of the program that made the plan."""

    def __call__(self) -> EmbeddingWorker:
        """Make the embedder, here.

        Raises
        ------
        MilError
            If this machine has another version of the program, or does not share the folder.
        EncoderError
            If the backbone cannot be had here.
        """
        self._require_common_ground()
        if self.n_threads is not None:
            torch.set_num_threads(self.n_threads)
        encoder = self.encoder.load(self.bags_dir)
        return EmbeddingWorker(
            self.bags_dir, encoder, fingerprint=self.fingerprint(encoder),
            batch_tiles=self.batch_tiles, n_workers=self.n_workers or CPU_COUNT,
            overwrite=self.overwrite, n_embedders=self.n_embedders,
        )  # fmt: skip

    def on(self, device: str, *, n_embedders: int, n_workers: int) -> WorkerFactory:
        """The plan for one of several embedders."""
        n_tiles = self.encoder.n_tiles_expected
        encoder = replace(
            self.encoder, device=device, n_tiles_expected=n_tiles and -(-n_tiles // n_embedders)
        )
        return replace(
            self, encoder=encoder, n_workers=n_workers, n_threads=n_workers,
            n_embedders=n_embedders,
        )  # fmt: skip

    def _require_common_ground(self) -> None:
        host = socket.gethostname()
        version = metadata.version("mil-slides")
        if version != self.version:
            raise MilError(
                f"machine {host}", actual=f"mil-slides {version}", expected=self.version,
                hint="Install the same version everywhere.",
            )  # fmt: skip
        if self.mark is not None and not self.mark.is_file():
            raise OutputError(
                self.bags_dir,
                actual=f"on {host} it is not the folder that this command has",
                expected="one folder that all machines share",
                hint="Name a folder on a shared file system with --bags, by a path that is the "
                "same everywhere.",
            )


@contextmanager
def local_executor(plan: WorkerFactory) -> Iterator[LocalExecutor]:
    """One embedder in this process."""
    with closing(plan()) as embedder:
        yield LocalExecutor(embedder)


def process_executor(
    plan: WorkerFactory, devices: Sequence[str], *, on_warning: Callable[[str], None]
) -> WorkerPool:
    """Embedders in processes of their own on this machine, one a device.

    Parameters
    ----------
    plan
        How they are made.
    devices
        Devices, from :func:`features.parallel.devices.parse_devices`.
    on_warning
        Told what a person should know, e.g. that a process died.
    """
    n_workers = plan.n_workers or max(1, CPU_COUNT // len(devices))
    hires = {
        place: plan.on(device, n_embedders=len(devices), n_workers=n_workers)
        for place, device in zip(_places(devices), devices, strict=True)
    }
    return _crew(plan, ProcessTransport(hires), on_warning)


@contextmanager
def ray_executor(
    plan: WorkerFactory, address: str | None, *, on_warning: Callable[[str], None]
) -> Iterator[WorkerPool]:
    """Embedders on a Ray cluster, one a GPU; where there are none, one a node.

    Parameters
    ----------
    plan
        How they are made; its paths must be absolute.
    address
        Address of the cluster; see :func:`features.parallel.ray_cluster.ray_connection`.
    on_warning
        Told what a person should know, e.g. that a worker died.

    Raises
    ------
    MilError
        If Ray is not installed or not there, the cluster has no room, or its machines do not share
        the folder of bags.
    """
    with ray_connection(address), _marked(plan.bags_dir) as mark:
        share = plan_actors(device=plan.encoder.device, n_cpus=plan.n_workers)
        hire = replace(plan, mark=mark).on(
            "cuda" if share.n_gpus else "cpu", n_embedders=share.n_actors, n_workers=share.n_cpus
        )
        on_warning(
            f"on Ray: {share.n_actors} embedders with {share.n_cpus} cores"
            + " and a GPU each" * share.n_gpus
        )
        with _crew(plan, RayTransport(hire, share), on_warning) as crew:
            yield crew


def _crew(plan: WorkerFactory, lines: Transport, on_warning: Callable[[str], None]) -> WorkerPool:
    """A crew whose first worker chooses how the backbone runs, if the folder has not settled it."""
    unsettled = recorded_runtime(plan.bags_dir) is None
    return WorkerPool(lines, start_first_only=unsettled, on_warning=on_warning)


def _places(devices: Sequence[str]) -> list[str]:
    """Names of devices; one that is there several times is numbered."""
    total, seen = Counter(devices), Counter[str]()
    places = []
    for device in devices:
        seen[device] += 1
        places.append(f"{device} ({seen[device]})" if total[device] > 1 else device)
    return places


@contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    """A file in the folder, by which others can tell whether theirs is the same."""
    mark = make_folder(folder) / f".shared-{uuid.uuid4().hex}"
    try:
        mark.touch()
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
