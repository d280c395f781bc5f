"""Whole-slide images into bags: one HDF5 file of tile embeddings per slide.

The packages, in the order in which data pass through them:

- :mod:`features.slides`: open and read one slide, whatever its format
- :mod:`features.tiling`: tissue mask, tile grid, artefact rules, pixels of a tile
- :mod:`features.encoders`: frozen timm encoders with their own preprocessing
- :mod:`features.embedding`: a folder of slides through an encoder, on one or many devices
- :mod:`features.bags`: the files that the learner reads
- :mod:`features.filters`: a tile classifier fitted on examples
- :mod:`features.series`: DICOM slices and image series as bags
- :mod:`features.visualization`: thumbnails, heatmaps and Deep Zoom
- :mod:`features.parallel`: executors, job queue and locks
- :mod:`features.utils`: files, tables and hardware

The names below are imported on first use, so that ``import features`` loads neither torch nor a
slide reader.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from features.bags.h5 import read_bag
    from features.bags.store import open_bags
    from features.embedding.config import EmbedConfig
    from features.embedding.pipeline import embed_slides
    from features.slides.reader import open_slide
    from features.slides.search import find_slides

__all__ = [
    "EmbedConfig",
    "embed_slides",
    "find_slides",
    "open_bags",
    "open_slide",
    "read_bag",
]

# Builds of ONNX Runtime report to their maker, and read this when they are loaded, whoever does it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    "EmbedConfig": "features.embedding.config",
    "embed_slides": "features.embedding.pipeline",
    "find_slides": "features.slides.search",
    "open_bags": "features.bags.store",
    "open_slide": "features.slides.reader",
    "read_bag": "features.bags.h5",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """List the public names too, for completion in an interactive session."""
    return sorted({*globals(), *__all__})
