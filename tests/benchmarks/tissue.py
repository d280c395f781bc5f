"""Tissue on painted slides of which the truth is known, by group of what makes it hard to find.

Prints one JSON object: by group the mean and the least intersection over union of mask and tissue,
and the milliseconds of processor time per mask of 300 x 400 px. Settings were chosen on seeds below
100; report on others.

    python -m tests.benchmarks.tissue --seeds 100-110
"""

from __future__ import annotations

import argparse
import json
import time

from features.tiling.tissue import TissueSettings, segment_tissue
from tests.benchmarks._tissue_scenes import GROUPS, MPP, paint_scene

__all__: list[str] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="100-110", help="first and last but one")
    first, last = map(int, parser.parse_args().seeds.split("-"))
    report: dict[str, object] = {}
    seconds = 0.0
    for group in GROUPS:
        values = []
        for seed in range(first, last):
            scene = paint_scene(group, seed)
            started = time.process_time()
            found = segment_tissue(scene.overview, downsample=1, mpp=MPP, settings=TissueSettings())
            seconds += time.process_time() - started
            values.append(scene.iou(found.mask))
        report[group] = {
            "mean": round(sum(values) / len(values), 3),
            "least": round(min(values), 3),
        }
    report["mask_ms"] = round(1000 * seconds / len(GROUPS) / (last - first))
    print(json.dumps(report, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
