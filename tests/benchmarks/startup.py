"""How long ``mil embed`` takes from the command to the first slide, with few slides and with many.

The command runs as a user's does, in a process of its own, on a folder of links to one small
slide, with a stand-in backbone; it is ended as soon as it has claimed its first slide. Prints one
JSON object: seconds until then, and the most memory that the process held, MB.

    python -m tests.benchmarks.startup --slides 50000
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = {str(n): measure(Path(name), n, n_rounds=asked.rounds) for n in (1, asked.slides)}
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
