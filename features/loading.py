"""The backbone for a folder of bags, run as its other bags were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from features.encoders import BATCH_TILES, Encoder, load_encoder
from features.engines.devices import choose_device
from features.errors import EncoderError
from features.files import make_folder
from features.pinning import pin_execution, pinned_execution

__all__ = ["EncoderRequest"]


@dataclass(frozen=True, kw_only=True)
class EncoderRequest:
    """A backbone that somebody asks for, here or in another process."""

    name: str
    """Name in timm; several joined by ``+``."""
    weights: tuple[Path | None, ...] = ()
    """A checkpoint for each of its parts, None for installed weights; empty for installed ones of
    all."""
    device: str = "auto"
    """Where it shall run."""
    batch_tiles: int = BATCH_TILES
    """Tiles through it at once, where the folder has not settled that yet."""
    execution: str = "auto"
    """How it shall run; see :func:`features.encoders.load_encoder`."""
    n_tiles_expected: int | None = None
    """Tiles that are to be embedded, where known."""

    def load(self, bags_dir: Path | None) -> Encoder:
        """Load it, and run it as the bags of a folder were made, or settle that for the folder now.

        Parameters
        ----------
        bags_dir
            Folder of the bags; None settles nothing.

        Raises
        ------
        EncoderError
            If it cannot be had, or the folder's bags were made in another way than is asked for.
        """
        pinned = None if bags_dir is None else pinned_execution(bags_dir)
        if pinned and self.execution != "auto" and not pinned.startswith(self.execution):
            raise EncoderError(
                bags_dir,
                found=f"bags made with {pinned!r}",
                expected=f"--execution {self.execution}",
                advice="Leave --execution out, or name another folder with --bags.",
            )
        encoder = self._load(pinned or self.execution)
        if bags_dir is None or pinned:
            return encoder
        settled = pin_execution(make_folder(bags_dir), encoder.execution)
        return encoder if settled == encoder.execution else self._load(settled)

    def _load(self, execution: str) -> Encoder:
        return load_encoder(
            self.name,
            weights_path=self.weights[0] if len(self.weights) == 1 else self.weights,
            device=choose_device(self.device),
            batch_tiles=self.batch_tiles,
            execution=execution,
            n_tiles_expected=self.n_tiles_expected,
        )
