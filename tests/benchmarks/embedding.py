"""How near ``mil embed`` comes to the limit of the machine: decoder and backbone.

In one process and with the same engine, batch and threads, in turn, several rounds: the whole
embedding of a set of generated slides, from the first slide opened to the last bag closed; the
backbone alone on resident batches; decoding alone (reading, scaling and judging tiles of slides
whose tissue is known). Prints one JSON object of medians.

``efficiency`` is the whole over the limit. On a GPU the limit is min(backbone, decode). On a CPU
both share the cores and each was measured with all of them: 1 / (1 / backbone + 1 / decode).
Finding the tissue comes before any tile: its time alone, ``mask_s``, is taken off the whole;
``efficiency_with_mask`` leaves it in.

    python -m tests.benchmarks.embedding --rounds 3
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from features.cores import N_CORES
from features.encoders import DEFAULT_BACKBONE, Encoder, load_encoder
from features.engines.devices import choose_device
from features.outcomes import SlideOutcome
from features.pipeline import embed_slides
from features.reading import read_tiles
from features.recipe import EmbedSettings
from features.survey import survey_slide
from features.tiles import TileSettings
from features.tissue import TissueSettings
from tests.benchmarks._slides import write_bench_slide

SIDE_PX = 16_384
TISSUE_SHARE = 0.2
BACKBONE_S = 8.0


class Silent:
    """Progress that nobody looks at."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None: ...
    def tiles_done(self, n_tiles: int) -> None: ...
    def slide_ended(self, outcome: SlideOutcome) -> None: ...
    def noted(self, text: str) -> None: ...


def timed(work: Callable[[], int]) -> tuple[int, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def embed_all(slides: list[Path], encoder: Encoder, settings: EmbedSettings) -> int:
    """The whole command, into a fresh folder; returns tiles embedded."""
    with tempfile.TemporaryDirectory() as bags:
        outcomes = embed_slides(
            slides, Path(bags), encoder, settings=settings, given_mpp={}, overwrite=False,
            progress=Silent(),
        )  # fmt: skip
    failed = [outcome.message for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise SystemExit(failed[0])
    return sum(outcome.n_tiles for outcome in outcomes)


def decode_all(slides: list[Path], settings: EmbedSettings) -> tuple[int, float, float]:
    """Tiles read, seconds of reading them, seconds of finding tissue before."""
    n_tiles, read_s, mask_s = 0, 0.0, 0.0
    for path in slides:
        started = time.perf_counter()
        with survey_slide(
            path, tiles=settings.tiles, tissue=settings.tissue, given_mpp=None
        ) as survey:
            masked = time.perf_counter()
            with ThreadPoolExecutor(settings.n_workers) as pool:
                n_tiles += sum(
                    1
                    for _ in read_tiles(
                        pool, survey.slide, survey.grid, survey.judge,
                        n_ahead=2 * settings.batch_tiles,
                    )
                )  # fmt: skip
            read_s += time.perf_counter() - masked
            mask_s += masked - started
    return n_tiles, read_s, mask_s


def run_backbone(encoder: Encoder, batch: np.ndarray) -> int:
    """Batches for some seconds; returns tiles."""
    until = time.perf_counter() + BACKBONE_S
    n_tiles = 0
    while time.perf_counter() < until:
        encoder.embed(batch)
        n_tiles += len(batch)
    return n_tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all sides")
    parser.add_argument("--slides", type=int, default=8, help="slides to generate")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--weights", type=Path, help="checkpoint of the backbone")
    parser.add_argument("--execution", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    settings = EmbedSettings(
        tiles=TileSettings(), tissue=TissueSettings(), batch_tiles=asked.batch, n_workers=N_CORES
    )
    started = time.perf_counter()
    encoder = load_encoder(
        asked.backbone, weights_path=asked.weights, device=choose_device(asked.device),
        batch_tiles=asked.batch, execution=asked.execution,
    )  # fmt: skip
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
            n_whole, whole_s = timed(lambda: embed_all(slides, encoder, settings))
            n_backbone, backbone_s = timed(lambda: run_backbone(encoder, batch))
            n_decoded, decode_s, mask_s = decode_all(slides, settings)
            rounds.append({
                "n_tiles": n_whole, "whole_s": whole_s, "mask_s": mask_s,
                "whole": n_whole / whole_s, "without_mask": n_whole / (whole_s - mask_s),
                "backbone": n_backbone / backbone_s, "decode": n_decoded / decode_s,
            })  # fmt: skip
    middle = {key: median(one[key] for one in rounds) for key in rounds[0]}
    limits = [
        1 / (1 / one["backbone"] + 1 / one["decode"])
        if encoder.device.type == "cpu"
        else min(one["backbone"], one["decode"])
        for one in rounds
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({  # noqa: T201
        "n_cores": N_CORES, "n_rounds": asked.rounds, "n_slides": asked.slides,
        "backbone": encoder.name, "execution": encoder.execution,
        "device": str(encoder.device), "n_tiles": int(middle["n_tiles"]),
        "whole_tiles_per_s": round(middle["whole"], 1),
        "backbone_tiles_per_s": round(middle["backbone"], 1),
        "decode_tiles_per_s": round(middle["decode"], 1),
        "efficiency": round(median(
            one["without_mask"] / limit for one, limit in zip(rounds, limits, strict=True)
        ), 3),
        "efficiency_with_mask": round(median(
            one["whole"] / limit for one, limit in zip(rounds, limits, strict=True)
        ), 3),
        "mask_s": round(middle["mask_s"], 2), "cold_s": round(cold_s, 2),
        "model_rss_gib": round(model_rss / (1 << 20), 3),
        "peak_rss_gib": round(peak / (1 << 20), 3),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
