"""How bags are made: what the options of ``mil embed`` say of backbone and machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.loading import request_encoder
from cli.options import EngineName

if TYPE_CHECKING:
    from features.bags import Fingerprint
    from features.encoders import Encoder
    from features.loading import EncoderRequest
    from features.plan import EmbedderPlan

__all__ = ["Work"]


@dataclass(frozen=True, kw_only=True)
class Work:
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

    def request(self, *, n_tiles_expected: int) -> EncoderRequest:
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
    ) -> EmbedderPlan:
        """What each worker needs to know to make bags."""
        from features.plan import EmbedderPlan

        return EmbedderPlan(
            bags_dir=bags_dir, encoder=self.request(n_tiles_expected=n_tiles_expected),
            batch_tiles=self.batch, n_workers=self.workers, fingerprint=fingerprint,
            overwrite=self.overwrite,
        )  # fmt: skip
