"""The backbone for a folder of bags, run as its other bags were."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from features.encoders.encoder import BATCH_TILES, Encoder, load_encoder
from features.errors import EncoderError
from features.parallel.devices import choose_device
from features.utils.files import make_folder, write_error

__all__ = ["EncoderConfig", "record_runtime", "recorded_runtime"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
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
    """How it shall run; see :func:`features.encoders.encoder.load_encoder`."""
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
        pinned = None if bags_dir is None else recorded_runtime(bags_dir)
        if pinned and self.execution != "auto" and not pinned.startswith(self.execution):
            raise EncoderError(
                bags_dir,
                actual=f"bags made with {pinned!r}",
                expected=f"--execution {self.execution}",
                hint="Leave --execution out, or name another folder with --bags.",
            )
        encoder = self._load(pinned or self.execution)
        if bags_dir is None or pinned:
            return encoder
        settled = record_runtime(make_folder(bags_dir), encoder.execution)
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


_NAME = "execution.txt"
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What FAT and some network file systems answer, which have no hard links."""


def recorded_runtime(bags_dir: Path) -> str | None:
    """The way in which the bags of a folder are made, e.g. ``onnx float32 batch 64``.

    None where nothing was chosen yet.
    """
    try:
        return (bags_dir / _NAME).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def record_runtime(bags_dir: Path, execution: str) -> str:
    """Choose for a folder; where another process was first, its choice stands.

    Returns
    -------
    str
        What holds for the folder from now on.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    beside = bags_dir / f".{_NAME}.{os.getpid()}.part"
    try:
        beside.write_text(execution + "\n", encoding="utf-8")
        with suppress(FileExistsError):
            _name(beside, bags_dir / _NAME)
    except OSError as error:
        raise write_error(bags_dir, error) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return recorded_runtime(bags_dir) or execution


def _name(beside: Path, path: Path) -> None:
    """Give a file its name; fails where there is one of that name."""
    try:
        os.link(beside, path)  # a link is whole at once
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open("xb") as file:
            file.write(beside.read_bytes())
