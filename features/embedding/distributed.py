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
from features.embedding.worker import Embedder
from features.encoders.config import EncoderRequest, pinned_execution
from features.encoders.encoder import Encoder
from features.errors import KnownError, OutputError
from features.parallel.local import Here
from features.parallel.pool import Crew, Lines
from features.parallel.processes import Processes
from features.parallel.ray_cluster import RayActors, connected, shares_of_cluster
from features.utils.files import make_folder, not_written
from features.utils.hardware import N_CORES

__all__ = ["EmbedderPlan", "embedder_here", "embedders_in_processes", "embedders_on_ray"]


@dataclass(frozen=True, kw_only=True)
class EmbedderPlan:
    """Makes an embedder where it is to work; survives pickling."""

    bags_dir: Path
    """Folder of the bags, which all share."""
    encoder: EncoderRequest
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

    def __call__(self) -> Embedder:
        """Make the embedder, here.

        Raises
        ------
        KnownError
            If this machine has another version of the program, or does not share the folder.
        EncoderError
            If the backbone cannot be had here.
        """
        self._require_common_ground()
        if self.n_threads is not None:
            torch.set_num_threads(self.n_threads)
        encoder = self.encoder.load(self.bags_dir)
        return Embedder(
            self.bags_dir, encoder, fingerprint=self.fingerprint(encoder),
            batch_tiles=self.batch_tiles, n_workers=self.n_workers or N_CORES,
            overwrite=self.overwrite, n_embedders=self.n_embedders,
        )  # fmt: skip

    def on(self, device: str, *, n_embedders: int, n_workers: int) -> EmbedderPlan:
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
            raise KnownError(
                f"machine {host}", found=f"mil-slides {version}", expected=self.version,
                advice="Install the same version everywhere.",
            )  # fmt: skip
        if self.mark is not None and not self.mark.is_file():
            raise OutputError(
                self.bags_dir,
                found=f"on {host} it is not the folder that this command has",
                expected="one folder that all machines share",
                advice="Name a folder on a shared file system with --bags, by a path that is the "
                "same everywhere.",
            )


@contextmanager
def embedder_here(plan: EmbedderPlan) -> Iterator[Here]:
    """One embedder in this process."""
    with closing(plan()) as embedder:
        yield Here(embedder)


def embedders_in_processes(
    plan: EmbedderPlan, devices: Sequence[str], *, on_note: Callable[[str], None]
) -> Crew:
    """Embedders in processes of their own on this machine, one a device.

    Parameters
    ----------
    plan
        How they are made.
    devices
        Devices, from :func:`features.parallel.devices.parse_devices`.
    on_note
        Told what a person should know, e.g. that a process died.
    """
    n_workers = plan.n_workers or max(1, N_CORES // len(devices))
    hires = {
        place: plan.on(device, n_embedders=len(devices), n_workers=n_workers)
        for place, device in zip(_places(devices), devices, strict=True)
    }
    return _crew(plan, Processes(hires), on_note)


@contextmanager
def embedders_on_ray(
    plan: EmbedderPlan, address: str | None, *, on_note: Callable[[str], None]
) -> Iterator[Crew]:
    """Embedders on a Ray cluster, one a GPU; where there are none, one a node.

    Parameters
    ----------
    plan
        How they are made; its paths must be absolute.
    address
        Address of the cluster; see :func:`features.parallel.ray_cluster.connected`.
    on_note
        Told what a person should know, e.g. that a worker died.

    Raises
    ------
    KnownError
        If Ray is not installed or not there, the cluster has no room, or its machines do not share
        the folder of bags.
    """
    with connected(address), _marked(plan.bags_dir) as mark:
        share = shares_of_cluster(device=plan.encoder.device, n_cpus=plan.n_workers)
        hire = replace(plan, mark=mark).on(
            "cuda" if share.n_gpus else "cpu", n_embedders=share.n_actors, n_workers=share.n_cpus
        )
        on_note(
            f"on Ray: {share.n_actors} embedders with {share.n_cpus} cores"
            + " and a GPU each" * share.n_gpus
        )
        with _crew(plan, RayActors(hire, share), on_note) as crew:
            yield crew


def _crew(plan: EmbedderPlan, lines: Lines, on_note: Callable[[str], None]) -> Crew:
    """A crew whose first worker chooses how the backbone runs, if the folder has not settled it."""
    unsettled = pinned_execution(plan.bags_dir) is None
    return Crew(lines, first_alone=unsettled, on_note=on_note)


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
        raise not_written(folder, error) from error
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
