"""Whether memory and open files stay flat while one process embeds thousands of slides.

Sixteen small painted slides stand under as many names as asked for; a stand-in backbone with
random weights makes the backbone's part short, so that what is left is what could leak: files,
readers, threads, queues, bags, the table of outcomes. Prints one JSON object: resident memory, open
files and threads at intervals, and the slope of memory over the second half, in bytes a slide.

    python -m tests.benchmarks.endurance --slides 5000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from features.embedding.config import EmbedConfig
from features.embedding.pipeline import embed_slides
from features.embedding.results import SlideResult
from features.encoders.encoder import TimmEncoder
from features.encoders.preprocessing import resolve_preprocessing
from features.encoders.weights import build_untrained
from features.slides.synthetic import make_cohort, render_slide, write_slide
from features.tiling.grid import TileSettings
from features.tiling.tissue import TissueSettings

__all__ = ["Sample", "endure", "main"]

_BACKBONE = "test_vit"
_N_PAINTED = 16
_SIDE_PX0 = 700
_TILE_PX = 160


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the process held at one moment."""

    n_slides: int
    """Slides done so far."""
    rss_mb: float
    """Resident memory, MB."""
    n_files: int
    """Open files."""
    n_threads: int
    """Threads."""


class Watch:
    """Progress that samples the process at intervals."""

    def __init__(self, every: int) -> None:
        self._every, self._process = every, psutil.Process()
        self._n_slides = 0
        self.n_tiles = 0
        self.samples: list[Sample] = []

    def slide_started(self, slide_id: str, n_tiles: int) -> None: ...
    def warn(self, text: str) -> None: ...

    def tiles_done(self, n_tiles: int) -> None:
        self.n_tiles += n_tiles

    def slide_ended(self, outcome: SlideResult) -> None:
        if outcome.status != "done":
            raise SystemExit(outcome.message)
        self._n_slides += 1
        if self._n_slides % self._every == 0:
            self.samples.append(
                Sample(
                    n_slides=self._n_slides,
                    rss_mb=self._process.memory_info().rss / 1e6,
                    n_files=self._process.num_fds(),
                    n_threads=self._process.num_threads(),
                )
            )


def paint(folder: Path, n_slides: int) -> list[Path]:
    """Slides of many names, of which every sixteenth is the same file."""
    folder.mkdir()
    (folder / "painted").mkdir()
    plans = make_cohort(n_patients=_N_PAINTED, seed=0, signal=1.0)[:_N_PAINTED]
    for number, plan in enumerate(plans):
        pixels = render_slide(plan)
        y, x = (side // 2 - _SIDE_PX0 // 2 for side in pixels.shape[:2])
        write_slide(
            folder / "painted" / f"{number}.tif", pixels[y : y + _SIDE_PX0, x : x + _SIDE_PX0]
        )
    paths = [folder / f"{number:06d}.tif" for number in range(n_slides)]
    for number, path in enumerate(paths):
        os.link(folder / "painted" / f"{number % _N_PAINTED}.tif", path)
    return paths


def endure(n_slides: int, *, every: int) -> dict[str, object]:
    """Embed so many slides in this process, and look at it after every so many."""
    torch.manual_seed(0)
    model = build_untrained(_BACKBONE)
    encoder = TimmEncoder(
        model, name=_BACKBONE, preprocessing=resolve_preprocessing(model),
        device=torch.device("cpu"), batch_tiles=16,
    )  # fmt: skip
    config = EmbedConfig(
        encoder=encoder,
        tiles=TileSettings(tile_px=_TILE_PX, min_tissue=0.05), tissue=TissueSettings(),
        batch_tiles=16, n_workers=2,
    )  # fmt: skip
    watch = Watch(every)
    with tempfile.TemporaryDirectory() as name:
        paths = paint(Path(name) / "slides", n_slides)
        started = time.perf_counter()
        embed_slides(paths, Path(name) / "bags", config, progress=watch)
        seconds = time.perf_counter() - started
    half = watch.samples[len(watch.samples) // 2 :]
    slope = np.polyfit([s.n_slides for s in half], [s.rss_mb for s in half], 1)[0]
    return {
        "n_slides": n_slides,
        "n_tiles": watch.n_tiles,
        "seconds": round(seconds, 1),
        "bytes_a_slide": round(float(slope) * 1e6),
        "samples": [asdict(sample) for sample in watch.samples],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--every", type=int, default=None, help="slides between two samples")
    asked = parser.parse_args()
    data = endure(asked.slides, every=asked.every or max(1, asked.slides // 20))
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
