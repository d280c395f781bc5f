"""The engine that options of the command line ask for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli.console import notes, step
from cli.options import EngineName

if TYPE_CHECKING:
    from features.engines.protocol import Engine
    from features.plan import EmbedderPlan

__all__ = ["everywhere", "print_note", "running"]


@contextmanager
def running(plan: EmbedderPlan, *, engine: EngineName, address: str | None) -> Iterator[Engine]:
    """Embedders as planned: here, one a device of this machine, or on a Ray cluster."""
    from features.engines.devices import parse_devices
    from features.plan import embedder_here, embedders_in_processes, embedders_on_ray

    with ExitStack() as stack:
        with step("loading the backbone"):
            if engine is EngineName.ray:
                yielded: Engine = stack.enter_context(
                    embedders_on_ray(plan, address, on_note=print_note)
                )
            elif len(devices := parse_devices(plan.encoder.device)) > 1:
                yielded = stack.enter_context(
                    embedders_in_processes(plan, devices, on_note=print_note)
                )
            else:
                yielded = stack.enter_context(embedder_here(plan))
        # What is loaded stays to the end; to look through it for garbage takes half a second.
        gc.freeze()
        stack.callback(gc.unfreeze)
        yield yielded


def print_note(text: str) -> None:
    """Say something on standard error, above any progress bar."""
    notes.print(f"note: {text}", style="yellow")


def everywhere(path: Path) -> Path:
    """A path that means the same in other folders; a URL stays as it is."""
    from features.names import url_of

    return path if url_of(path) else path.absolute()
