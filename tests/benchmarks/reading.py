"""Mask and tiles of one-level slides: our way beside OpenSlide's, on the same files in one run.

OpenSlide's way is what slide tools do: ``get_thumbnail`` for the mask, then one ``read_region`` a
tile. Both sides use the same tissue rule and cut the same tiles; each run is a fresh process, ours
and theirs in turn, on all cores and on one. Prints one JSON object; every time is a median in
seconds. Then the peak memory of ``mil embed`` on slides of 4.9 and 14.4 gigapixels, above that of
``mil embed`` on a small blank slide.

    python -m tests.benchmarks.reading --runs 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import openslide
from PIL import Image

from features.slides.backends.tiff import TiffSlide
from features.slides.resolution import Resolution
from features.tiling.grid import TileGrid, TileSettings, make_tile_grid, read_tile
from features.tiling.tissue import TissueSettings, mask_downsample, segment_tissue
from features.utils.hardware import CPU_COUNT
from tests.benchmarks._slides import TIFF_TILE_PX, BenchSlide, write_bench_slide

SIDE_PX = 20_480
TISSUE_SHARE = 0.12
SLIDES = {  # name: codec, standard deviation of the glass in grey levels
    "lzw": ("lzw", 1.0),
    "jpeg": ("jpeg", 1.0),
    "noisy": ("lzw", 12.0),
}
LARGE = {  # name: width and height in px, share of tissue
    "4.9": ((48_282, 101_406), 0.12),
    "14.4": ((120_000, 120_000), 0.02),
}
RESOLUTION = Resolution(mpp_x=0.25, mpp_y=0.25, source="assumed")


def grid_from_layout(
    overview: np.ndarray, downsample: int, width_px: int, height_px: int
) -> TileGrid:
    settings = TissueSettings()
    tissue = segment_tissue(overview, downsample=downsample, mpp=RESOLUTION.mpp, settings=settings)
    return make_tile_grid(
        tissue, width_px0=width_px, height_px0=height_px, resolution=RESOLUTION,
        settings=TileSettings(),
    )  # fmt: skip


def read_ours(path: Path) -> dict[str, float]:
    """Read by :class:`TiffSlide`; counts what was decoded outside the time taken."""
    decoded: list[tuple[int, int, int]] = []
    original = TiffSlide._decode_segment

    def counting(
        slide: TiffSlide, level: int, row: int, column: int, descriptor: int
    ) -> np.ndarray:
        decoded.append((level, row, column))
        return original(slide, level, row, column, descriptor)

    TiffSlide._decode_segment = counting  # type: ignore[method-assign]
    started = time.perf_counter()
    slide = TiffSlide(path)
    downsample = mask_downsample(RESOLUTION.mpp, TissueSettings())
    size = slide.levels[0]
    grid = grid_from_layout(
        slide.overview(downsample=downsample), downsample, size.width_px, size.height_px
    )
    masked = time.perf_counter()
    with ThreadPoolExecutor(CPU_COUNT) as pool:
        for _ in pool.map(lambda i: read_tile(slide, grid, i).mean(), range(len(grid.coords_px0))):
            pass
    ended = time.perf_counter()
    touched = np.zeros(
        (-(-size.height_px // TIFF_TILE_PX), -(-size.width_px // TIFF_TILE_PX)), bool
    )
    for x, y in grid.coords_px0:
        right, bottom = int(x + grid.tile_width_px0 - 1), int(y + grid.tile_height_px0 - 1)
        touched[y // TIFF_TILE_PX : bottom // TIFF_TILE_PX + 1,
                x // TIFF_TILE_PX : right // TIFF_TILE_PX + 1] = True  # fmt: skip
    np.save(path.with_suffix(".touched.npy"), touched)
    return {"seconds": ended - started, "mask_seconds": masked - started,
            "n_tiles": len(grid.coords_px0), "n_decoded": len(decoded)}  # fmt: skip


def read_openslide(path: Path) -> dict[str, float]:
    """OpenSlide's way."""
    started = time.perf_counter()
    slide = openslide.OpenSlide(path)
    width, height = slide.dimensions
    downsample = mask_downsample(RESOLUTION.mpp, TissueSettings())
    thumbnail = slide.get_thumbnail((-(-width // downsample), -(-height // downsample)))
    grid = grid_from_layout(np.asarray(thumbnail.convert("RGB")), downsample, width, height)
    masked = time.perf_counter()
    span = int(grid.tile_width_px0)

    def tile(corner: np.ndarray) -> float:
        image = slide.read_region((int(corner[0]), int(corner[1])), 0, (span, span)).convert("RGB")
        small = image.resize((grid.tile_px, grid.tile_px), Image.Resampling.BOX)
        return float(np.asarray(small).mean())

    with ThreadPoolExecutor(CPU_COUNT) as pool:
        for _ in pool.map(tile, grid.coords_px0):
            pass
    ended = time.perf_counter()
    return {"seconds": ended - started, "mask_seconds": masked - started,
            "n_tiles": len(grid.coords_px0)}  # fmt: skip


def in_process(side: str, path: Path, n_cores: int) -> dict[str, float]:
    """One run in a fresh process bound to that many cores."""
    cores = sorted(os.sched_getaffinity(0))[:n_cores]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.reading", "--side", side, "--slide", str(path)],
        capture_output=True, text=True, check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    result: dict[str, float] = json.loads(done.stdout)
    return result


def compare(name: str, slide: BenchSlide, n_runs: int) -> dict[str, object]:
    """Both sides in turn, on all cores and on one."""
    report: dict[str, object] = {"codec": slide.codec, "glass_noise_sigma": slide.noise_sigma}
    for n_cores in dict.fromkeys((CPU_COUNT, 1)):
        ours, theirs = [], []
        for _ in range(n_runs):
            ours.append(in_process("ours", slide.path, n_cores))
            theirs.append(in_process("openslide", slide.path, n_cores))
            print(name, n_cores, ours[-1], theirs[-1], file=sys.stderr, flush=True)  # noqa: T201
        mine = median(run["seconds"] for run in ours)
        other = median(run["seconds"] for run in theirs)
        words = f"threads_{n_cores}"
        report[words] = {
            "speedup": round(other / mine, 2),
            "ours_s": round(mine, 2),
            "ours_mask_s": round(median(run["mask_seconds"] for run in ours), 2),
            "openslide_s": round(other, 2),
            "openslide_mask_s": round(median(run["mask_seconds"] for run in theirs), 2),
            "n_tiles": [int(ours[0]["n_tiles"]), int(theirs[0]["n_tiles"])],
        }
    touched = np.load(slide.path.with_suffix(".touched.npy"))
    needed = int((touched | slide.has_tissue).sum())
    report["decoded_over_tissue"] = round(ours[0]["n_decoded"] / needed, 3)
    report["speedup"] = report[f"threads_{CPU_COUNT}"]["speedup"]  # type: ignore[index]
    return {name: report}


def peak_rss_gib(slides: Path, bags: Path) -> float:
    """Largest resident memory of ``mil embed``, GiB."""
    command = [sys.executable, "-m", "cli", "embed", str(slides), "--bags", str(bags), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / (1 << 20)  # kB on Linux


def measure_memory(folder: Path) -> dict[str, float]:
    """Peak above that of the same command on a blank slide of one tile."""
    blank = folder / "blank.tif"
    write_bench_slide(blank, width_px=512, height_px=512, codec="lzw", noise_sigma=1,
                      tissue_share=0)  # fmt: skip
    base = peak_rss_gib(blank, folder / "bags")
    result = {"model_rss_gib": round(base, 3)}
    for name, ((width, height), share) in LARGE.items():
        path = folder / f"large_{name}.tif"
        write_bench_slide(path, width_px=width, height_px=height, codec="lzw", noise_sigma=1,
                          tissue_share=share)  # fmt: skip
        started = time.perf_counter()
        result[f"peak_rss_gib_{name}_gpx"] = round(peak_rss_gib(path, folder / "bags") - base, 3)
        result[f"embed_s_{name}_gpx"] = round(time.perf_counter() - started, 1)
        print(result, file=sys.stderr, flush=True)  # noqa: T201
        path.unlink()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs a side")
    parser.add_argument("--only", choices=[*SLIDES, "memory"], action="append")
    parser.add_argument("--side", choices=["ours", "openslide"], help=argparse.SUPPRESS)
    parser.add_argument("--slide", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        read = read_ours if asked.side == "ours" else read_openslide
        print(json.dumps(read(asked.slide)))  # noqa: T201
        return
    wanted = asked.only or [*SLIDES, "memory"]
    report: dict[str, object] = {
        "n_cores": CPU_COUNT, "n_runs": asked.runs, "side_px": SIDE_PX,
        "tissue_share": TISSUE_SHARE, "tiff_tile_px": TIFF_TILE_PX,
        "openslide": openslide.__library_version__,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shares = []
        for kind, (codec, noise) in SLIDES.items():
            if kind not in wanted:
                continue
            slide = write_bench_slide(
                folder / f"{kind}.tif", width_px=SIDE_PX, height_px=SIDE_PX, codec=codec,
                noise_sigma=noise, tissue_share=TISSUE_SHARE,
            )  # fmt: skip
            result = compare(kind, slide, asked.runs)
            report |= result
            report[f"{kind}_speedup"] = result[kind]["speedup"]  # type: ignore[index]
            if kind != "noisy":  # there the header says nothing and all must be decoded
                shares.append(result[kind]["decoded_over_tissue"])  # type: ignore[index]
            slide.path.unlink()
        if shares:
            report["decoded_over_tissue"] = max(shares)
        if "memory" in wanted:
            report |= measure_memory(folder)
    print(json.dumps(report, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
