"""Processor time per tile and memory of ``mil embed`` beside other programs, on the same slides.

A peer is named by the folder of its environment, ``--peer lazyslide=/path/to/env``. One that is
not named, or that cannot be imported there, is skipped, and the report says so. LazySlide and
TIAToolbox install from PyPI, TRIDENT with ``pip install`` from a checkout of its repository. CLAM
does not install: its environment is one with what its ``env.yml`` lists and a file ``clam.pth`` in
``site-packages`` that holds the path of a checkout. All embed the same slides with the same
resnet50 (random weights, which take as long as others) at 224 px and 0.5 µm/px on the CPU: a small
real one from the folder that ``MIL_DATA`` names, and a pyramid of 20,000 px square that holds
copies of it.
Each run is a process of its own, ours and theirs in turn. The first run of each says how many tiles
it finds; in the others all take as many as the program that finds the fewest, at most ``--tiles``.
``mil embed`` runs as a user's second run does: with its defaults, the export in the cache.

Prints one JSON object of medians: processor seconds per tile, imports and mask included, the ratio
of ours to that of each peer, run by run, and peak memory, GiB. Standard error has the same of the
runs so far, one line after each.

    python -m tests.benchmarks.peers --peer lazyslide=/opt/lazyslide --peer clam=/opt/clam
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openslide
import tifffile

from features.utils.hardware import CPU_COUNT
from tests.benchmarks._peer_run import BACKBONE, MODULES, MPP, PEERS, TILE_PX
from tests.benchmarks._slides import write_bench_slide

__all__ = ["main", "write_pyramid"]

SIDE_PX, GLASS_RGB = 20_000, (243, 243, 243)
COPIES_PX = [(row, column) for row in (2_000, 8_500, 15_000) for column in (1_500, 8_900, 16_000)]
REAL_SLIDE = "slides/cmu-1-small-region.svs"
_PEER_RUN = Path(__file__).with_name("_peer_run.py")

Run = Callable[[Path, Path, int], dict[str, float]]
"""Embeds a slide into a new folder, so many tiles at most; what :func:`measured` returns."""


def write_pyramid(path: Path, slide: Path, *, side_px: int = SIDE_PX) -> None:
    """Write copies of a real slide on glass as a tiled TIFF, JPEG, of three levels."""
    with openslide.OpenSlide(slide) as source:
        tissue = np.asarray(source.read_region((0, 0), 0, source.dimensions).convert("RGB"))
        mpp = float(source.properties[openslide.PROPERTY_NAME_MPP_X])
    pixels = np.full((side_px, side_px, 3), GLASS_RGB, np.uint8)
    for number, (row, column) in enumerate(COPIES_PX):
        copy = tissue[:: 1 - 2 * (number % 2), :: 1 - number % 4 // 2 * 2]
        pixels[row : row + len(copy), column : column + copy.shape[1]] = copy
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for downsample in (1, 4, 16):
            writer.write(
                pixels[::downsample, ::downsample], tile=(256, 256), photometric="rgb",
                compression="jpeg", metadata=None, subfiletype=int(downsample > 1),
                resolution=(1e4 / mpp / downsample,) * 2, resolutionunit="CENTIMETER",
            )  # fmt: skip


def measured(command: list[str]) -> dict[str, float]:
    """Tiles, processor seconds and peak memory of one process and its children."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        output.seek(0)
        printed = output.read()
    report = json.loads(printed[printed.rindex("\n{") if "\n{" in printed else 0 :])
    return {
        "n_tiles": report["n_tiles"], "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_gib": usage.ru_maxrss / (1 << 20),
    }  # fmt: skip


def ours(weights: Path, *options: str) -> Run:
    def run(slide: Path, out: Path, n_tiles: int) -> dict[str, float]:
        return measured([
            sys.executable, "-m", "cli", "embed", str(slide), "--bags", str(out), "--backbone",
            BACKBONE, "--weights", str(weights), "--mpp", str(MPP), "--tile-px", str(TILE_PX),
            "--max-tiles", str(n_tiles), "--device", "cpu", "--json", *options,
        ])  # fmt: skip

    return run


def theirs(name: str, python: Path, weights: Path) -> Run:
    def run(slide: Path, out: Path, n_tiles: int) -> dict[str, float]:
        out.mkdir()
        command = [str(python), "-I", str(_PEER_RUN), name]
        return measured([*command, str(slide), str(weights), str(out), str(n_tiles)])

    return run


def find_peers(asked: list[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the Python of each peer that can be imported, and why the others are skipped."""
    skipped = dict.fromkeys(PEERS, "not named with --peer")
    pythons = {}
    for text in asked:
        name, _, folder = text.partition("=")
        if name not in PEERS:
            raise SystemExit(f"--peer {text}: expected one of {', '.join(PEERS)}, = and its folder")
        python = Path(folder) / "bin" / "python"
        found = python.is_file() and not subprocess.run(
            [python, "-I", "-c", f"import {MODULES.get(name, name)}"],
            capture_output=True, check=False,
        ).returncode  # fmt: skip
        if found:
            pythons[name] = python
            del skipped[name]
        else:
            skipped[name] = f"cannot be imported by {python}"
    return pythons, skipped


def prepare(folder: Path, real: Path) -> None:
    """Write weights, pyramid and a blank slide.

    In a process of its own: what a process held is the least that Linux reports as the peak of
    those it starts.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(BACKBONE, pretrained=False).state_dict(), folder / "w.safetensors")
    write_pyramid(folder / "s.tif", real)
    write_bench_slide(folder / "b.tif", width_px=512, height_px=512, codec="jpeg",
                      noise_sigma=1.0, tissue_share=0)  # fmt: skip


def compare(report: dict[str, Any], slide: Path, folder: Path, runs: dict[str, Run], *,
            n_runs: int, most_tiles: int) -> None:  # fmt: skip
    """Run all programs in turn on one slide; what they took goes into the report after each."""
    summary = report[folder.name] = {}
    n_tiles = most_tiles
    for name, run in runs.items():
        n_found = int(run(slide, folder / f"{name}-first", most_tiles)["n_tiles"])
        summary[name] = {"tiles_found": n_found}
        n_tiles = min(n_tiles, n_found)
        print(json.dumps(report), file=sys.stderr, flush=True)  # noqa: T201
    summary["n_tiles"] = n_tiles
    done: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for number in range(n_runs):
        for name, run in runs.items():
            one = run(slide, folder / f"{name}-{number}", n_tiles)
            if one["n_tiles"] != n_tiles:
                raise SystemExit(
                    f"{name} embedded {one['n_tiles']} tiles of {slide}, not {n_tiles}"
                )
            done[name].append(one)
            summary[name] |= {
                "cpu_s_per_tile": round(median(a["cpu_s"] for a in done[name]) / n_tiles, 4),
                "peak_rss_gib": round(median(a["peak_rss_gib"] for a in done[name]), 2),
            }
            if name != "mil":
                ratios = [
                    a["cpu_s"] / b["cpu_s"] for a, b in zip(done["mil"], done[name], strict=True)
                ]
                summary[f"mil_over_{name}"] = round(median(ratios), 2)
            print(json.dumps(report), file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=ENVIRONMENT")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, after the first")
    parser.add_argument("--tiles", type=int, default=400, help="tiles of a slide at most")
    asked = parser.parse_args()
    if not (data := os.environ.get("MIL_DATA")):
        parser.error("set MIL_DATA to the folder of real data")
    real = Path(data) / REAL_SLIDE
    pythons, skipped = find_peers(asked.peer)
    report: dict[str, Any] = {"n_cores": CPU_COUNT, "n_runs": asked.runs, "skipped": skipped}
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        os.environ["MIL_CACHE"] = str(folder / "cache")
        weights, pyramid, blank = (folder / name for name in ("w.safetensors", "s.tif", "b.tif"))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(prepare, folder, real).result()
        runs = {"mil": ours(weights)}
        runs |= {name: theirs(name, python, weights) for name, python in pythons.items()}
        ours(weights, "--execution", "onnx")(pyramid, folder / "export", 1)  # fills the cache
        model_gib = ours(weights)(blank, folder / "blank", 1)["peak_rss_gib"]
        report["loaded_model_gib"] = round(model_gib, 2)
        for name, slide in {"real": real, "pyramid": pyramid}.items():
            (folder / name).mkdir()
            compare(report, slide, folder / name, runs, n_runs=asked.runs, most_tiles=asked.tiles)
    print(json.dumps(report, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
