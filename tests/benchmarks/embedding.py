"""How near ``mil embed`` comes to the limit of the machine: decoder and backbone.

In one process and with the same engine, batch and threads, in turn, several rounds: the whole
embedding of a set of generated slides, from the first slide opened to the last bag closed; the
backbone alone on resident batches; decoding alone (reading, scaling and judging tiles of slides
whose tissue is known). A machine that others use too becomes faster and slower within a round, so
both parts are measured half before the whole and half after it. Prints one JSON object of medians.

Each efficiency is the whole over a limit. On a GPU the limit is min(backbone, reading). On a CPU
both share the cores and each was measured with all of them: 1 / (1 / backbone + 1 / reading).

- ``efficiency_with_mask``: the whole with finding the tissue in it, over a limit without it, which
  reads the tiles of known tissue from slides opened afresh and so decodes them.
- ``efficiency``: the whole less ``mask_s``, the time of finding the tissue alone. That decodes the
  blocks that hold tissue and leaves them in the cache, so that this limit reads tiles from there:
  decoding is taken off both.
- ``efficiency_with_mask_from_cache``: the whole with the mask, over the limit from the cache. What
  the whole decodes is missing from that limit, which therefore cannot be reached.

    python -m tests.benchmarks.embedding --rounds 5

With ``--stand-in TILES_PER_S`` a device that sleeps takes the place of the backbone: it answers at
that rate without using the cores, as an accelerator would. Over slides of unequal size,
``efficiency`` is then the time of the slower of the device and of (mask + decoding) on all cores,
over that of the whole command once the encoder is loaded; ``efficiency_with_start`` adds by how
much starting processes prolongs the loading, and ``idle_share`` is how long the device had nothing
to do. ``--side-scale 2`` makes slides of twice the side.

    python -m tests.benchmarks.embedding --stand-in 500 --stand-in 50000
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from features.embedding.config import EmbedConfig
from features.embedding.pipeline import embed_slides
from features.encoders.base import Encoder
from features.encoders.config import EncoderConfig
from features.encoders.names import DEFAULT_BACKBONE
from features.slides.reader import open_slide
from features.tiling.grid import TileSettings
from features.tiling.slide_tiles import SlideTiles, open_slide_tiles
from features.tiling.tissue import TissueSettings
from features.utils.hardware import CPU_COUNT
from tests.benchmarks._slides import write_bench_slide
from tests.benchmarks._stand_in import measure_stand_in, unequal_slides

SIDE_PX = 16_384
TISSUE_SHARE = 0.2
BACKBONE_S = 4.0
"""Of each half."""
_N_UNEQUAL = 30
"""Slides before the stand-in."""


def embed_all(slides: list[Path], encoder: Encoder, settings: EmbedConfig) -> int:
    """The whole command, into a fresh folder; returns tiles embedded."""
    with tempfile.TemporaryDirectory() as bags:
        outcomes = embed_slides(slides, bags, replace(settings, encoder=encoder))
    failed = [outcome.message for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise SystemExit(failed[0])
    return sum(outcome.n_tiles for outcome in outcomes)


@dataclass
class Parts:
    """What the parts took, each alone; counts and seconds of both halves together."""

    n_read: int = 0
    decode_s: float = 0.0
    from_cache_s: float = 0.0
    mask_s: float = 0.0
    n_embedded: int = 0
    backbone_s: float = 0.0

    def add_reading(self, slides: list[Path], settings: EmbedConfig) -> None:
        """Find the tissue of slides, read their tiles from the cache, and then decode them again.

        Each of the three is timed apart.
        """
        for path in slides:
            started = time.perf_counter()
            with open_slide_tiles(
                path, tiles=settings.tiles, tissue=settings.tissue, given_mpp=None
            ) as slide_tiles:
                self.mask_s += time.perf_counter() - started
                seconds, n_tiles = _read_tiles(slide_tiles, settings)
                self.from_cache_s += seconds
                self.n_read += n_tiles
                slide_tiles.slide.close()
                with closing(open_slide(path)) as slide:
                    afresh = replace(slide_tiles, slide=slide)
                    self.decode_s += _read_tiles(afresh, settings)[0]

    def add_backbone(self, encoder: Encoder, batch: np.ndarray) -> None:
        """Batches that lie ready, for some seconds."""
        started = time.perf_counter()
        while time.perf_counter() < started + BACKBONE_S:
            encoder.embed(batch)
            self.n_embedded += len(batch)
        self.backbone_s += time.perf_counter() - started


def _read_tiles(slide_tiles: SlideTiles, settings: EmbedConfig) -> tuple[float, int]:
    """Seconds and number of tiles."""
    started = time.perf_counter()
    with ThreadPoolExecutor(settings.n_threads) as pool:
        n_tiles = sum(1 for _ in slide_tiles.read_all(pool, n_ahead=2 * settings.batch_tiles))
    return time.perf_counter() - started, n_tiles


def measure_round(
    slides: list[Path], encoder: Encoder, settings: EmbedConfig, batch: np.ndarray
) -> dict[str, float]:
    """The whole, and half of each part before and after it."""
    parts = Parts()
    parts.add_backbone(encoder, batch)
    parts.add_reading(slides[::2], settings)
    started = time.perf_counter()
    n_tiles = embed_all(slides, encoder, settings)
    whole_s = time.perf_counter() - started
    parts.add_reading(slides[1::2], settings)
    parts.add_backbone(encoder, batch)
    backbone = parts.n_embedded / parts.backbone_s
    decode = parts.n_read / parts.decode_s
    from_cache = parts.n_read / parts.from_cache_s

    def limit(reading: float) -> float:
        on_cpu = encoder.device.type == "cpu"
        return 1 / (1 / backbone + 1 / reading) if on_cpu else min(backbone, reading)

    return {
        "n_tiles": n_tiles, "mask_s": parts.mask_s, "whole": n_tiles / whole_s,
        "backbone": backbone, "decode": decode, "from_cache": from_cache,
        "efficiency": n_tiles / (whole_s - parts.mask_s) / limit(from_cache),
        "efficiency_with_mask": n_tiles / whole_s / limit(decode),
        "efficiency_with_mask_from_cache": n_tiles / whole_s / limit(from_cache),
    }  # fmt: skip


def compare_stand_ins(
    settings: EmbedConfig, rates: list[float], n_rounds: int, *, side_scale: int
) -> dict[str, object]:
    """Medians over rounds, for each rate of the device."""
    report: dict[str, object] = {
        "n_cores": CPU_COUNT, "n_rounds": n_rounds, "side_scale": side_scale,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        slides = unequal_slides(Path(name), _N_UNEQUAL, side_scale=side_scale)
        measure_stand_in(slides[:4], Path(name) / "warm", settings, 1e6)
        for rate in rates:
            rounds = []
            for number in range(n_rounds):
                bags = Path(name) / f"{rate:g}-{number}"
                rounds.append(measure_stand_in(slides, bags, settings, rate))
                print(rate, rounds[-1], file=sys.stderr, flush=True)  # noqa: T201
            report[f"{rate:g} tiles/s"] = {
                key: round(median(one[key] for one in rounds), 3) for key in rounds[0]
            }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all sides")
    parser.add_argument("--slides", type=int, default=16, help="slides to generate")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--weights", type=Path, help="checkpoint of the backbone")
    parser.add_argument("--execution", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--stand-in", type=float, action="append", metavar="TILES_PER_S")
    parser.add_argument("--side-scale", type=int, default=1, help="of slides before the stand-in")
    asked = parser.parse_args()
    settings = EmbedConfig(
        tiles=TileSettings(), tissue=TissueSettings(), batch_tiles=asked.batch, n_workers=CPU_COUNT
    )
    if asked.stand_in:
        report = compare_stand_ins(
            settings, asked.stand_in, asked.rounds, side_scale=asked.side_scale
        )
        print(json.dumps(report, indent=2))  # noqa: T201
        return
    started = time.perf_counter()
    encoder = EncoderConfig(
        encoder=asked.backbone, weights=(asked.weights,) if asked.weights else (),
        device=asked.device, batch_tiles=asked.batch, runtime=asked.execution,
    ).load_encoder()  # fmt: skip
    cold_s = time.perf_counter() - started
    model_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch = np.random.default_rng(0).integers(0, 256, (asked.batch, 224, 224, 3), np.uint8)
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        slides = [
            write_bench_slide(
                Path(name) / f"s{number}.tif", width_px=SIDE_PX, height_px=SIDE_PX, codec="jpeg",
                noise_sigma=1.0, tissue_share=TISSUE_SHARE, seed=number,
            ).path
            for number in range(asked.slides)
        ]  # fmt: skip
        embed_all(slides[:1], encoder, settings)  # warm
        for _ in range(asked.rounds):
            rounds.append(measure_round(slides, encoder, settings, batch))
            print(rounds[-1], file=sys.stderr, flush=True)  # noqa: T201
    middle = {key: median(one[key] for one in rounds) for key in rounds[0]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({  # noqa: T201
        "n_cores": CPU_COUNT, "n_rounds": asked.rounds, "n_slides": asked.slides,
        "backbone": encoder.name, "execution": encoder.execution,
        "device": str(encoder.device), "n_tiles": int(middle["n_tiles"]),
        "whole_tiles_per_s": round(middle["whole"], 1),
        "backbone_tiles_per_s": round(middle["backbone"], 1),
        "decode_tiles_per_s": round(middle["decode"], 1),
        "from_cache_tiles_per_s": round(middle["from_cache"], 1),
        "efficiency": round(middle["efficiency"], 3),
        "efficiency_of_rounds": [round(one["efficiency"], 3) for one in rounds],
        **{
            key: round(middle[key], 3)
            for key in ("efficiency_with_mask", "efficiency_with_mask_from_cache")
        },
        "efficiency_with_mask_of_rounds": [
            round(one["efficiency_with_mask"], 3) for one in rounds
        ],
        "mask_s": round(middle["mask_s"], 2), "cold_s": round(cold_s, 2),
        "model_rss_gib": round(model_rss / (1 << 20), 3),
        "peak_rss_gib": round(peak / (1 << 20), 3),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
