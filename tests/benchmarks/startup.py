"""How long ``mil embed`` takes from the command to the first slide, with few slides and with many.

The command runs as a user's does, in a process of its own, on a folder of links to one small
slide, with a stand-in backbone; it is ended as soon as it has claimed its first slide. Prints one
JSON object: seconds until then, and the most memory that the process held, MB.

    python -m tests.benchmarks.startup --slides 50000

With ``--warm``: the same command again over 100 finished slides; a new slide of few tiles with the
default backbone, until its bag is written, by its export in the cache and eagerly; and ``--tiles``
tiles of resnet50 with random weights, eagerly and by the runtime that is chosen, first with an
empty cache and then with a filled one, in turn. Each is a process of its own; seconds on the clock
and of processor time, medians. A runtime is chosen for long runs only, so that without a filled
cache this one may run eagerly.

    python -m tests.benchmarks.startup --warm --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
import timm
import torch
from safetensors.torch import save_file

from features.slides.synthetic import make_cohort, render_slide, write_slide
from tests.benchmarks._slides import write_bench_slide

__all__ = ["main"]

_BACKBONE = "test_vit"


def start(slides: Path, bags: Path, weights: Path) -> tuple[float, float]:
    """Seconds until the first claim, and MB of memory held then."""
    command = [
        sys.executable, "-m", "cli", "embed", str(slides), "--bags", str(bags), "--backbone",
        _BACKBONE, "--weights", str(weights), "--tile-px", "160", "--execution", "eager",
        "--device", "cpu",
    ]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not list(bags.glob(".claims/*.claim")) and not list(bags.glob("*.h5")):
            if process.poll() is not None:
                assert process.stderr is not None
                raise SystemExit(process.stderr.read().decode())
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        return seconds, psutil.Process(process.pid).memory_info().rss / 1e6
    finally:
        process.kill()
        process.communicate()


def measure(folder: Path, n_slides: int, *, n_rounds: int) -> dict[str, float]:
    weights = folder / "weights.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(_BACKBONE, pretrained=False).state_dict(), weights)
    slides = folder / f"slides-{n_slides}"
    slides.mkdir()
    painted = folder / f"painted-{n_slides}.tif"
    plan = make_cohort(n_patients=1, seed=1, signal=1.0)[0]
    write_slide(painted, render_slide(plan)[800:1600, 800:1600])
    for number in range(n_slides):
        os.link(painted, slides / f"{number:06d}.tif")
    result = [
        start(slides, folder / f"bags-{n_slides}-{number}", weights) for number in range(n_rounds)
    ]
    return {
        "seconds": round(median(seconds for seconds, _ in result), 2),
        "rss_mb": round(median(rss for _, rss in result)),
    }


def run_embed(slides: Path, bags: Path, *options: str) -> dict[str, float]:
    """One whole ``mil embed``: seconds on the clock and of processor time, and its profile."""
    command = [sys.executable, "-m", "cli", "embed", str(slides), "--bags", str(bags), "--device",
               "cpu", "--json", *options]  # fmt: skip
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        output.seek(0)
        report = json.load(output)
    cpu_s = usage.ru_utime + usage.ru_stime
    whole = {"seconds": seconds, "cpu_s": cpu_s, "n_tiles": report["n_tiles"]}
    return whole | {f"{key}_s": value for key, value in report.get("profile_s", {}).items()}


def measure_warm(folder: Path, *, n_tiles: int, n_rounds: int) -> dict[str, dict[str, float]]:
    os.environ["MIL_CACHE"] = str(folder / "cache")
    torch.manual_seed(0)
    weights = {}
    for name in (_BACKBONE, "resnet50"):
        weights[name] = folder / f"{name}.safetensors"
        save_file(timm.create_model(name, pretrained=False).state_dict(), weights[name])
    plan = make_cohort(n_patients=1, seed=1, signal=1.0)[0]
    (folder / "many").mkdir()
    write_slide(folder / "few.tif", render_slide(plan)[800:1600, 800:1600])
    for number in range(100):
        os.link(folder / "few.tif", folder / "many" / f"{number:03d}.tif")
    finished = [
        "--backbone", _BACKBONE, "--weights", str(weights[_BACKBONE]), "--tile-px", "160",
        "--execution", "eager",
    ]  # fmt: skip
    run_embed(folder / "many", folder / "bags", *finished)
    run_embed(folder / "few.tif", folder / "first", "--execution", "onnx")  # fills the cache
    large = folder / "large.tif"
    write_bench_slide(large, width_px=23_296, height_px=23_296, codec="jpeg", noise_sigma=1.0,
                      tissue_share=0.25)  # fmt: skip
    resnet = ["--backbone", "resnet50", "--weights", str(weights["resnet50"]), "--profile",
              "--max-tiles", str(n_tiles)]  # fmt: skip
    run_embed(large, folder / "export", *resnet, "--execution", "onnx")
    filled = os.environ["MIL_CACHE"]
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(n_rounds):
        for kind, slides, options in (
            ("finished", folder / "many", finished), ("new_slide", folder / "few.tif", []),
            ("new_slide_eager", folder / "few.tif", ["--execution", "eager"]),
            ("eager", large, [*resnet, "--execution", "eager"]), ("empty_cache", large, resnet),
            ("filled_cache", large, resnet),
        ):  # fmt: skip
            bags = folder / ("bags" if kind == "finished" else f"{kind}-{number}")
            os.environ["MIL_CACHE"] = str(folder / bags.name if kind == "empty_cache" else filled)
            runs.setdefault(kind, []).append(run_embed(slides, bags, *options))
            print(kind, runs[kind][-1], file=sys.stderr, flush=True)  # noqa: T201
    report = {
        kind: {key: round(median(one[key] for one in some), 2) for key in some[0]}
        for kind, some in runs.items()
    }
    for kind in ("empty_cache", "filled_cache"):
        for key in ("seconds", "cpu_s"):
            ratios = [
                eager[key] / one[key] for eager, one in zip(runs["eager"], runs[kind], strict=True)
            ]
            report[kind][f"eager_over_this_{key}"] = round(median(ratios), 2)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="finished, new and cached, see above")
    parser.add_argument("--tiles", type=int, default=489, help="tiles of resnet50 with --warm")
    asked = parser.parse_args()
    if asked.warm:
        with tempfile.TemporaryDirectory() as name:
            warm = measure_warm(Path(name), n_tiles=asked.tiles, n_rounds=asked.rounds)
        sys.stdout.write(json.dumps(warm, indent=2) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        data = {str(n): measure(Path(name), n, n_rounds=asked.rounds) for n in (1, asked.slides)}
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
