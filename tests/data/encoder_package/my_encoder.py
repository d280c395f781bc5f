"""Example of a package that provides an encoder to mil."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from features.encoders.plugins import PluginEncoder
from features.encoders.preprocessing import Preprocessing


class ColourFilters(nn.Module):
    """Maximum of a few random colour filters over a tile; stands for a real network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.filters = nn.Conv2d(3, width, kernel_size=8, stride=8)

    def forward(self, images: Tensor) -> Tensor:
        """Return vectors, shape (batch, width), of images, shape (batch, 3, 64, 64) in px."""
        return self.filters(images).amax((2, 3))


def load(weights_path: Path | None = None, *, width: int = 16) -> PluginEncoder:
    """Return the encoder; ``--weights FILE`` and ``--model-arg width=24`` arrive here."""
    model = ColourFilters(width)
    if weights_path is not None:
        model.load_state_dict(torch.load(weights_path, weights_only=True))
    return PluginEncoder(
        model=model,
        preprocessing=Preprocessing(
            input_px=64, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
    )
