"""Frozen timm encoders: uint8 tiles to float32 embeddings, with preprocessing and weights hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.encoders.base import AsyncResult, ConcatResult, Encoder
from features.encoders.checkpoints import first_line, hash_weights
from features.encoders.execution import EAGER, Runtime, parse_execution
from features.encoders.exports import random_tiles
from features.encoders.names import BATCH_TILES, DEFAULT_BACKBONE
from features.encoders.preprocessing import ConcatPreprocessing, Preprocessing
from features.encoders.runtime import (
    Network,
    compile_model,
    has_export,
    in_parts,
    in_precision,
    takes_any_number,
)
from features.encoders.runtime_cache import EncoderRecord, write_encoder_record
from features.encoders.runtime_selection import RuntimeTrial, measure_network, select_runtime
from features.encoders.stored_choice import StoredChoice
from features.encoders.transfer import DeviceTransfer
from features.errors import EncoderError, MilError
from features.slides.base import RgbArray

__all__ = [
    "BATCH_TILES",
    "DEFAULT_BACKBONE",
    "ConcatEncoder",
    "TimmEncoder",
    "load_encoder",
    "measure_dim",
]


class TimmEncoder(Encoder):
    """Frozen timm model on a device, run with batches of one fixed shape; not thread-safe.

    The network always receives tensors of one shape, the last padded, so that an embedding does not
    depend on the other tiles of its batch. ``execution`` is ``eager``, ``compile``, ``onnx`` or
    ``auto``, which tries the :mod:`features.encoders.runtime` whose start-up can pay off for
    ``n_tiles_expected`` tiles; ``trials`` are its attempts, in order. When the device runs out of
    memory, the batch size is halved for good; ``execution`` reports it.

    Raises
    ------
    EncoderError
        If the model does not return one vector per tile, shape (1, dim), or cannot run with the
        given runtime.
    """

    device: torch.device
    preprocessing: Preprocessing

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        preprocessing: Preprocessing,
        device: torch.device,
        batch_tiles: int = BATCH_TILES,
        execution: str = "eager",
        n_tiles_expected: int | None = None,
        preprocessing_source: str = "",
    ) -> None:
        runtime = None
        if execution != "auto":
            runtime, recorded_tiles = parse_execution(execution)
            batch_tiles = recorded_tiles or batch_tiles
        self.name, self.weights_sha256 = name, hash_weights(model.state_dict())
        self.preprocessing, self.preprocessing_source = preprocessing, preprocessing_source
        self.device, self.batch_tiles = device, batch_tiles
        self.trials: tuple[RuntimeTrial, ...] = ()
        self._cache_key = f"{name} {self.weights_sha256}"
        self._input: Tensor | None = None
        self._transfer = DeviceTransfer(device)
        self._scale, self._shift = (
            torch.from_numpy(values).view(1, 3, 1, 1).to(device)
            for values in preprocessing.scale_and_shift
        )
        model.eval().requires_grad_(requires_grad=False)
        model = model.to(device).to(memory_format=torch.channels_last)
        self.dim = measure_dim(model, name, self._random_pixels(1))
        self._network, self._runtime = self._prepare_network(model, runtime, n_tiles_expected)
        self._eager = self._network if self._runtime == EAGER and device.type == "cpu" else None
        self._set_batch()

    @property
    def execution(self) -> str:
        """Runtime and batch size, e.g. ``onnx float32 batch 64``."""
        return f"{self._runtime} batch {self.batch_tiles}"

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        """Start to embed tiles, shape (n, height, width, 3) in px, uint8.

        Raises
        ------
        EncoderError
            If the device runs out of memory with a single tile.
        """
        nothing = AsyncResult(np.empty((0, self.dim), np.float32), None)
        parts, start = [nothing], 0
        while start < len(tiles):
            part = tiles[start : start + self.batch_tiles]
            try:
                parts.append(self._embed_batch(part))
            except torch.cuda.OutOfMemoryError as error:
                self._halve_batch(error)
            else:
                start += len(part)
        return ConcatResult(parts, axis=0)

    def stored_choice(self, batch_tiles: int) -> StoredChoice | None:
        """Return the runtime that the cache knows for batches of this size and the input's px."""
        side = self.preprocessing.input_px
        return StoredChoice.read(
            self._cache_key, (batch_tiles, 3, side, side), device_type=self.device.type,
            n_threads=torch.get_num_threads(),
        )  # fmt: skip

    def has_export(self, batch_tiles: int) -> bool:
        """Return whether the cache has the export to ONNX for batches of this size."""
        side = self.preprocessing.input_px
        return has_export(self._cache_key, torch.empty((batch_tiles, 3, side, side), device="meta"))

    def measure(self) -> float:
        """Measure the network's throughput on a prepared batch, tiles per second."""
        return measure_network(self._network, self._random_pixels(self.batch_tiles))

    def _embed_batch(self, tiles: RgbArray) -> AsyncResult:
        n_tiles = len(tiles)
        if n_tiles < self.batch_tiles and not takes_any_number(self._runtime, self.device):
            padded = np.zeros((self.batch_tiles, *tiles.shape[1:]), np.uint8)
            padded[:n_tiles] = tiles
            tiles = padded
        with torch.inference_mode():
            output = self._run_network(self._prepare(self._transfer.send(tiles)))
            if output.shape != (len(tiles), self.dim):
                raise EncoderError(
                    f"backbone {self.name!r}",
                    actual=f"an output of shape {tuple(output.shape)} for {len(tiles)} tiles",
                    expected=f"({len(tiles)}, {self.dim}), one vector per tile",
                )
            return self._transfer.fetch(output[:n_tiles])

    def _run_network(self, pixels: Tensor) -> Tensor:
        try:
            return self._network(pixels)
        except (torch.cuda.OutOfMemoryError, MilError):
            raise
        except Exception as error:  # The code may be that of another package.
            raise EncoderError(
                f"backbone {self.name!r}",
                actual=f"it fails on a batch of {len(pixels)} tiles ({first_line(error)})",
                expected="one vector per tile, for any number of tiles",
            ) from error

    def _halve_batch(self, error: Exception) -> None:
        """Halve the batch size from now on."""
        if self.batch_tiles == 1:
            raise _no_memory(self.name, self.device) from error
        self.batch_tiles //= 2
        self._set_batch()
        if self.device.type == "cuda":  # memory of the larger batch is not needed any more
            torch.cuda.empty_cache()

    def _set_batch(self) -> None:
        """Allocate the input of CPU batches once: the kernel clears new pages for each."""
        if self._eager is not None:
            self._network = in_parts(self._eager, batch_tiles=self.batch_tiles)
        if self.device.type == "cpu":
            side = self.preprocessing.input_px
            layout = (
                torch.contiguous_format if self._runtime.engine == "onnx" else torch.channels_last
            )
            self._input = torch.empty((self.batch_tiles, 3, side, side), memory_format=layout)

    def _prepare(self, batch: Tensor) -> Tensor:
        """Scale to the input size and normalise, on the device: shape (n, 3, side, side)."""
        side = self.preprocessing.input_px
        pixels = batch.permute(0, 3, 1, 2)  # (n, 3, height, width), channels last in memory
        if pixels.shape[2:] != (side, side):
            pixels = functional.interpolate(
                pixels.float(),
                size=(side, side),
                mode=self.preprocessing.interpolation,
                antialias=True,
                align_corners=False,
            ).clamp(0, 255)
        if self._input is None:
            return torch.addcmul(self._shift, pixels.float(), self._scale)
        used = self._input[: len(pixels)].copy_(pixels)
        return torch.addcmul(self._shift, used, self._scale, out=used)

    def _random_pixels(self, n_tiles: int) -> Tensor:
        """Return preprocessed random tiles, float32 of shape (n_tiles, 3, side, side)."""
        noise = random_tiles(n_tiles, self.preprocessing.input_px)
        with torch.no_grad():
            return self._prepare(torch.from_numpy(noise).to(self.device))

    def _prepare_network(
        self, model: nn.Module, runtime: Runtime | None, n_tiles_expected: int | None
    ) -> tuple[Network, Runtime]:
        if runtime == EAGER:
            return model, EAGER
        example = self._random_pixels(self.batch_tiles)
        if runtime is not None:
            return compile_model(
                model, runtime, example=example, cache_key=self._cache_key
            ), runtime
        choice = select_runtime(
            model, example=example, n_tiles_expected=n_tiles_expected, cache_key=self._cache_key
        )
        self.trials = choice.trials
        return choice.network, choice.runtime


class ConcatEncoder(Encoder):
    """Several encoders on one device; their embeddings are concatenated in order.

    Each keeps its own weights and preprocessing; ``dim`` is the sum of theirs, so that the
    embeddings of n tiles have shape (n, dim).
    """

    def __init__(self, parts: Sequence[TimmEncoder]) -> None:
        self._parts = tuple(parts)
        self.name = "+".join(part.name for part in parts)
        self.weights_sha256 = "+".join(part.weights_sha256 for part in parts)
        self.preprocessing = ConcatPreprocessing(tuple(part.preprocessing for part in parts))
        self.preprocessing_source = " and ".join(
            dict.fromkeys(part.preprocessing_source for part in parts)
        )
        self.dim = sum(part.dim for part in parts)
        self.device = parts[0].device
        self.trials = tuple(trial for part in parts for trial in part.trials)

    @property
    def execution(self) -> str:
        """Runtime and batch size of each encoder, joined by ``+``."""
        return "+".join(part.execution for part in self._parts)

    def stored_choice(self, batch_tiles: int) -> StoredChoice | None:
        """Return the runtime that the cache knows for all of them, that of the first."""
        return self._parts[0].stored_choice(batch_tiles)

    def has_export(self, batch_tiles: int) -> bool:
        """Return whether the cache has the exports of all of them."""
        return all(part.has_export(batch_tiles) for part in self._parts)

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        """Start to embed tiles, shape (n, height, width, 3) in px, uint8."""
        return ConcatResult([part.embed_async(tiles) for part in self._parts], axis=1)


def load_encoder(
    name: str,
    *,
    weights_path: Path | Sequence[Path | None] | None,
    device: torch.device,
    batch_tiles: int = BATCH_TILES,
    execution: str = "eager",
    n_tiles_expected: int | None = None,
) -> Encoder:
    """Load one frozen encoder, or several joined by ``+``, with pretrained weights.

    Parameters
    ----------
    name
        As for :func:`features.encoders.weights.load_model`, e.g. ``resnet50.a1_in1k`` or ``uni``;
        several are joined by ``+``.
    weights_path
        Local checkpoint, or one per encoder, as for that function; None for installed weights.
    device, batch_tiles, n_tiles_expected
        As for :class:`TimmEncoder`.
    execution
        As for :class:`TimmEncoder`, or the ``execution`` of an earlier encoder, whose runtime and
        batch size are then used again, whatever ``batch_tiles``.

    Raises
    ------
    EncoderError
        If timm does not know a name, weights are missing, unreadable or do not fit, or an encoder
        cannot run with the runtime asked for or in the device's memory.
    """
    names = name.split("+")
    paths = (
        [weights_path] if isinstance(weights_path, Path) else weights_path or [None] * len(names)
    )
    if len(paths) != len(names):
        raise EncoderError(
            f"backbone {name!r}",
            actual=f"{len(paths)} checkpoints for {len(names)} backbones",
            expected="one per backbone, in the same order, or none",
        )
    recorded = execution.split("+")
    executions = recorded if len(recorded) == len(names) else [execution] * len(names)

    from features.encoders.weights import load_model  # noqa: PLC0415 - timm is slow to load

    parts, files = [], list[Path]()
    for one, path, one_execution in zip(names, paths, executions, strict=True):
        loaded = load_model(one, weights_path=path)
        try:
            encoder = TimmEncoder(
                loaded.model, name=loaded.name, preprocessing=loaded.preprocessing, device=device,
                batch_tiles=batch_tiles,
                execution=in_precision(one_execution, loaded.precision, device),
                n_tiles_expected=n_tiles_expected, preprocessing_source=loaded.source,
            )  # fmt: skip
        except torch.cuda.OutOfMemoryError as error:
            raise _no_memory(one, device) from error
        parts.append(encoder)
        files.extend(loaded.files)
    whole: Encoder = parts[0] if len(parts) == 1 else ConcatEncoder(parts)
    if len(files) == len(parts):
        record = EncoderRecord(
            name=whole.name, weights_sha256=whole.weights_sha256, dim=whole.dim,
            transform=whole.preprocessing.as_json(),
            preprocessing_source=whole.preprocessing_source,
        )  # fmt: skip
        write_encoder_record(name, list(paths), record, files)
    return whole


def _no_memory(name: str, device: torch.device) -> EncoderError:
    return EncoderError(
        f"device {device}",
        actual=f"out of memory with a single tile through backbone {name!r}",
        expected="memory for the backbone and one tile",
        hint="End other programs on it, or choose another device with --device, e.g. cpu; finished "
        "bags are kept.",
    )


def measure_dim(model: nn.Module, name: str, pixels: Tensor) -> int:
    """Measure the length of the vector that a model in evaluation mode returns per image.

    ``pixels`` have shape (1, 3, side_px, side_px), float32, on the model's device.

    Raises
    ------
    EncoderError
        If the output is a feature map, several tensors or anything but one vector of
        floating-point numbers.
    """
    side = pixels.shape[-1]
    try:
        with torch.inference_mode():
            output = model(pixels)
    except (torch.cuda.OutOfMemoryError, MilError):
        raise
    except (Exception, SystemExit) as error:  # The code may be that of another package.
        raise EncoderError(
            f"backbone {name!r}",
            actual=f"it cannot take an image of {side} px ({first_line(error)})",
            expected=f"a network for images of shape (1, 3, {side}, {side})",
            hint="State its input with --model-arg input_px=PX.",
        ) from error
    shape = f"a {type(output).__name__}"
    if isinstance(output, Tensor):
        is_vector = output.ndim == 2 and len(output) == len(pixels) and output.shape[1]
        is_dense = output.layout == torch.strided
        if is_vector and is_dense and output.is_floating_point():
            return int(output.shape[1])
        dtype = "" if output.is_floating_point() else f" and {output.dtype}"
        layout = "" if is_dense else " (sparse)"
        shape = f"an output of shape {tuple(output.shape)}{dtype}{layout}"
    raise EncoderError(
        f"backbone {name!r}",
        actual=f"{shape} for one tile",
        expected="one vector per tile",
        hint="Choose a model that pools its features, such as an image classifier, or pool the "
        "tokens of a vision transformer with --model-arg pooling=token (or mean, token+mean).",
    )
