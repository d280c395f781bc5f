"""Settings of an encoder, and the runtime recorded for a folder of bags."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from features.encoders.exported import KnownExport, open_export
from features.encoders.names import BATCH_TILES, DEFAULT_BACKBONE
from features.errors import EncoderError
from features.utils.files import make_folder, write_error

if TYPE_CHECKING:
    from features.encoders.base import Encoder

__all__ = ["EncoderConfig", "record_runtime", "recorded_runtime"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Settings of an encoder; picklable unless they hold a loaded one.

    Attributes
    ----------
    encoder
        timm name, or several joined by ``+``; or a loaded encoder, for which the other fields but
        ``batch_tiles`` have no effect.
    weights
        One checkpoint per encoder, None for installed weights; empty for installed weights only.
    device
        Device, or several; see :func:`features.parallel.devices.parse_devices`.
    runtime
        ``eager``, ``compile``, ``onnx`` or ``auto``; see :mod:`features.encoders.runtime`.
    """

    encoder: str | Encoder = DEFAULT_BACKBONE
    weights: tuple[Path | None, ...] = ()
    device: str = "auto"
    batch_tiles: int = BATCH_TILES
    runtime: str = "auto"

    def without_encoder(self) -> Self:
        """Return the settings with the name of a loaded encoder in its place; picklable."""
        return self if isinstance(self.encoder, str) else replace(self, encoder=self.encoder.name)

    def load_encoder(
        self,
        bags_dir: Path | None = None,
        *,
        n_tiles_expected: int | None = None,
        n_threads: int | None = None,
    ) -> Encoder:
        """Load the encoder with the runtime recorded for a folder of bags, or record one now.

        Without a folder nothing is recorded. A runtime that is slow to start is not tried for few
        tiles. Of several workers on a machine, each computes on ``n_threads`` of its cores.

        Raises
        ------
        EncoderError
            If the encoder cannot be loaded, or the folder's bags were made with another runtime.
        """
        if not isinstance(self.encoder, str):
            return self.encoder
        recorded = None if bags_dir is None else recorded_runtime(bags_dir)
        if recorded and self.runtime != "auto" and not recorded.startswith(self.runtime):
            raise EncoderError(
                bags_dir,
                actual=f"bags made with {recorded!r}",
                expected=f"--execution {self.runtime}",
                hint="Leave --execution out, or name another folder with --bags.",
            )

        load = partial(self._load, n_tiles_expected=n_tiles_expected, n_threads=n_threads)
        encoder = load(recorded or self.runtime)
        if bags_dir is None or recorded:
            return encoder
        recorded = record_runtime(make_folder(bags_dir), encoder.execution)
        return encoder if recorded == encoder.execution else load(recorded)

    def _load(
        self, execution: str, *, n_tiles_expected: int | None, n_threads: int | None
    ) -> Encoder:
        """Open the encoder's export where the cache has the one to begin with, else load it."""
        assert isinstance(self.encoder, str)  # noqa: S101 - checked by the caller
        export = KnownExport.find(
            self.encoder, self.weights, device=self.device, execution=execution,
            batch_tiles=self.batch_tiles, n_tiles=n_tiles_expected, n_threads=n_threads,
        )  # fmt: skip
        if export is not None and (encoder := open_export(export)) is not None:
            return encoder

        import torch  # noqa: PLC0415 - heavy, as is all that follows

        from features.encoders.encoder import load_encoder  # noqa: PLC0415
        from features.parallel.devices import choose_device  # noqa: PLC0415

        if n_threads is not None:
            torch.set_num_threads(n_threads)
        return load_encoder(
            self.encoder, weights_path=self.weights, device=choose_device(self.device),
            batch_tiles=self.batch_tiles, execution=execution, n_tiles_expected=n_tiles_expected,
        )  # fmt: skip


_FILE_NAME = "execution.txt"
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of FAT and some network file systems, which have no hard links."""


def recorded_runtime(bags_dir: Path) -> str | None:
    """Return the runtime recorded for a folder, e.g. ``onnx float32 batch 64``; None without."""
    try:
        return (bags_dir / _FILE_NAME).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def record_runtime(bags_dir: Path, runtime: str) -> str:
    """Record the runtime of a folder unless another process has; return the recorded one.

    Raises
    ------
    OutputError
        If the folder cannot be written to.
    """
    temporary = bags_dir / f".{_FILE_NAME}.{os.getpid()}.part"
    try:
        temporary.write_text(runtime + "\n", encoding="utf-8")
        with suppress(FileExistsError):
            _link_or_copy(temporary, bags_dir / _FILE_NAME)
    except OSError as error:
        raise write_error(bags_dir, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return recorded_runtime(bags_dir) or runtime


def _link_or_copy(temporary: Path, path: Path) -> None:
    """Create a file with the content of another; fails if it exists."""
    try:
        os.link(temporary, path)  # A link is complete at once; a copy is not.
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open("xb") as file:
            file.write(temporary.read_bytes())
