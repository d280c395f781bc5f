"""Frozen timm encoders: uint8 tiles to float32 embeddings, with preprocessing and weights hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.encoders.checkpoints import first_line, hash_weights
from features.encoders.exports import are_too_few_to_time
from features.encoders.names import BATCH_TILES, DEFAULT_BACKBONE
from features.encoders.preprocessing import ConcatPreprocessing, Preprocessing
from features.encoders.runtime import (
    EAGER,
    ONNX,
    Network,
    Runtime,
    compile_model,
    has_export,
    in_parts,
    in_precision,
    parse_execution,
    start_export,
    takes_any_number,
)
from features.encoders.runtime_cache import (
    EncoderRecord,
    read_encoder_record,
    write_encoder_record,
)
from features.encoders.runtime_selection import (
    RuntimeTrial,
    StoredChoice,
    measure_network,
    select_runtime,
)
from features.encoders.transfer import AsyncResult, ConcatResult, DeviceTransfer
from features.errors import EncoderError
from features.slides.base import RgbArray

__all__ = [
    "BATCH_TILES",
    "DEFAULT_BACKBONE",
    "ConcatEncoder",
    "Encoder",
    "TimmEncoder",
    "load_encoder",
    "measure_dim",
]


class Encoder(Protocol):
    """One frozen encoder, or several whose embeddings are concatenated.

    ``name`` is that of timm, ``weights_sha256`` a hash over names, shapes and values of all
    weights; of several encoders both are joined by ``+``. ``dim`` is the length of an embedding,
    ``preprocessing_source`` says where mean and standard deviation of the channels come from.
    """

    name: str
    weights_sha256: str
    preprocessing: Preprocessing | ConcatPreprocessing
    preprocessing_source: str
    dim: int
    device: torch.device

    @property
    def execution(self) -> str:
        """Runtime and batch size, e.g. ``onnx float32 batch 64``; several are joined by ``+``."""
        ...

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        """Start to embed tiles, shape (n, height, width, 3) in px, uint8.

        The tiles must not change until the result, shape (n, dim), float32, is ready.
        """
        ...

    def stored_choice(self, batch_tiles: int) -> StoredChoice | None:
        """Return the runtime that the cache knows for batches of this size, or None."""

    def has_export(self, batch_tiles: int) -> bool:
        """Return whether the cache has the export to ONNX for batches of this size."""

    def embed(self, tiles: RgbArray) -> npt.NDArray[np.float32]:
        """Embed tiles, shape (n, height, width, 3) in px, uint8, as float32 of shape (n, dim)."""
        return self.embed_async(tiles).wait()


class _BatchEncoder(Encoder):
    """Network on a device, run with batches of one fixed shape; not thread-safe.

    The network, which returns one vector per image, always receives tensors of one shape, the last
    padded, so that an embedding does not depend on the other tiles of its batch.
    When the device runs out of memory, the batch size is halved for good; ``execution`` reports it.
    """

    _network: Network
    _runtime: Runtime

    def __init__(
        self,
        *,
        name: str,
        weights_sha256: str,
        preprocessing: Preprocessing,
        preprocessing_source: str,
        device: torch.device,
        batch_tiles: int,
    ) -> None:
        self.name, self.weights_sha256 = name, weights_sha256
        self.preprocessing_source = preprocessing_source
        self.preprocessing = self._preprocessing = preprocessing
        self.device, self.batch_tiles = device, batch_tiles
        self.trials: tuple[RuntimeTrial, ...] = ()
        self._cache_key = f"{name} {weights_sha256}"
        self._eager: Network | None = None
        self._input: Tensor | None = None
        self._transfer = DeviceTransfer(device)
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1).to(device)
        self._shift = (-mean / std).view(1, 3, 1, 1).to(device)

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
        nothing = AsyncResult(torch.empty((0, self.dim)), None)
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
        side = self._preprocessing.input_px
        return StoredChoice.read(self._cache_key, (batch_tiles, 3, side, side), self.device)

    def has_export(self, batch_tiles: int) -> bool:
        """Return whether the cache has the export to ONNX for batches of this size."""
        side = self._preprocessing.input_px
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
            output = self._network(self._prepare(self._transfer.send(tiles)))
            return self._transfer.fetch(output[:n_tiles])

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
            side = self._preprocessing.input_px
            layout = (
                torch.contiguous_format if self._runtime.engine == "onnx" else torch.channels_last
            )
            self._input = torch.empty((self.batch_tiles, 3, side, side), memory_format=layout)

    def _prepare(self, batch: Tensor) -> Tensor:
        """Scale to the input size and normalise, on the device: shape (n, 3, side, side)."""
        side = self._preprocessing.input_px
        pixels = batch.permute(0, 3, 1, 2)  # (n, 3, height, width), channels last in memory
        if pixels.shape[2:] != (side, side):
            pixels = functional.interpolate(
                pixels.float(),
                size=(side, side),
                mode=self._preprocessing.interpolation,
                antialias=True,
                align_corners=False,
            ).clamp(0, 255)
        if self._input is None:
            return torch.addcmul(self._shift, pixels.float(), self._scale)
        used = self._input[: len(pixels)].copy_(pixels)
        return torch.addcmul(self._shift, used, self._scale, out=used)

    def _random_pixels(self, n_tiles: int) -> Tensor:
        """Return preprocessed random tiles, float32 of shape (n_tiles, 3, side, side)."""
        side = self._preprocessing.input_px
        noise = np.random.default_rng(0).integers(0, 256, (n_tiles, side, side, 3), np.uint8)
        with torch.no_grad():
            return self._prepare(torch.from_numpy(noise).to(self.device))


class TimmEncoder(_BatchEncoder):
    """Frozen timm model on a device, run with batches of one fixed shape; not thread-safe.

    ``execution`` is ``eager``, ``compile``, ``onnx`` or ``auto``, which tries the
    :mod:`features.encoders.runtime` whose start-up can pay off for ``n_tiles_expected`` tiles;
    ``trials`` are its attempts, in order. When the device runs out of memory, the batch size is
    halved for good; ``execution`` reports it.

    Raises
    ------
    EncoderError
        If the model does not return one vector per tile, shape (1, dim), or cannot run with the
        given runtime.
    """

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
        super().__init__(
            name=name, weights_sha256=hash_weights(model.state_dict()), device=device,
            preprocessing=preprocessing, preprocessing_source=preprocessing_source,
            batch_tiles=batch_tiles,
        )  # fmt: skip
        model.eval().requires_grad_(requires_grad=False)
        model = model.to(device).to(memory_format=torch.channels_last)
        self.dim = measure_dim(model, name, self._random_pixels(1))
        self._network, self._runtime = self._prepare_network(model, runtime, n_tiles_expected)
        self._eager = self._network if self._runtime == EAGER and device.type == "cpu" else None
        self._set_batch()

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


class _ExportedEncoder(_BatchEncoder):
    """Encoder that runs by its ONNX export in the cache: neither timm nor weights are loaded."""

    def __init__(self, record: EncoderRecord, *, batch_tiles: int) -> None:
        super().__init__(
            name=record.name, weights_sha256=record.weights_sha256, device=torch.device("cpu"),
            preprocessing=Preprocessing.from_json(record.transform), batch_tiles=batch_tiles,
            preprocessing_source=record.preprocessing_source,
        )  # fmt: skip
        self.dim, self._runtime = record.dim, ONNX

    def start(self) -> bool:
        """Start the export; return False if there is none that works."""
        network = start_export(self._cache_key, self._random_pixels(self.batch_tiles))
        if network is not None:
            self._network = network
            self._set_batch()
        return network is not None


class ConcatEncoder(Encoder):
    """Several encoders on one device; their embeddings are concatenated in order.

    Each keeps its own weights and preprocessing; ``dim`` is the sum of theirs, so that the
    embeddings of n tiles have shape (n, dim).
    """

    def __init__(self, parts: Sequence[_BatchEncoder]) -> None:
        self._parts = tuple(parts)
        self.name = "+".join(part.name for part in parts)
        self.weights_sha256 = "+".join(part.weights_sha256 for part in parts)
        self.preprocessing = ConcatPreprocessing(tuple(part.preprocessing for part in parts))
        self.preprocessing_source = " and ".join(part.preprocessing_source for part in parts)
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
    if exported := _open_exported(
        name, list(paths), device=device, batch_tiles=batch_tiles, execution=execution,
        n_tiles_expected=n_tiles_expected,
    ):  # fmt: skip
        return exported

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


def _open_exported(
    name: str,
    weights: Sequence[Path | None],
    *,
    device: torch.device,
    batch_tiles: int,
    execution: str,
    n_tiles_expected: int | None,
) -> Encoder | None:
    """Open an encoder whose export the cache holds, in a tenth of the time of loading its network.

    None unless ONNX Runtime is asked for, or was the fastest here, or nothing was measured here and
    the tiles are too few for it.
    """
    record = read_encoder_record(name, weights)
    if record is None or device.type != "cpu" or "+" in name:
        return None
    runtime, recorded_tiles = ONNX, None
    if execution != "auto":
        runtime, recorded_tiles = parse_execution(execution)
    if runtime != ONNX:
        return None
    encoder = _ExportedEncoder(record, batch_tiles=recorded_tiles or batch_tiles)
    if execution == "auto":
        stored = encoder.stored_choice(batch_tiles)
        few = n_tiles_expected is not None and are_too_few_to_time(n_tiles_expected, batch_tiles)
        if (stored is None and not few) or (stored is not None and stored.runtime != str(ONNX)):
            return None
    return encoder if encoder.start() else None


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
        If the output is a feature map, several tensors or anything but one vector.
    """
    side = pixels.shape[-1]
    try:
        with torch.inference_mode():
            output = model(pixels)
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise EncoderError(
            f"backbone {name!r}",
            actual=f"it cannot take an image of {side} px ({first_line(error)})",
            expected=f"a network for images of shape (1, 3, {side}, {side})",
            hint="State its input with --model-arg input_px=PX.",
        ) from error
    if isinstance(output, Tensor) and output.ndim == 2:
        return int(output.shape[1])
    shape = f"a {type(output).__name__}"
    if isinstance(output, Tensor):
        shape = f"an output of shape {tuple(output.shape)}"
    raise EncoderError(
        f"backbone {name!r}",
        actual=f"{shape} for one tile",
        expected="one vector per tile",
        hint="Choose a model that pools its features, such as an image classifier, or pool the "
        "tokens of a vision transformer with --model-arg pooling=token (or mean, token+mean).",
    )
