"""How long tiles of ``mil view`` take: a generated slide of one level, panned and zoomed.

Each walk goes to a place with tissue, from the whole slide down to its finest level, and asks for
all tiles that a window of 1,400 × 900 px shows there: one after the other, and as many at a time as
the page does. Files are warm, the viewer's own cache of tiles is not: no tile is asked for twice.
Times are taken by a client over HTTP and told in ms as one JSON object; the overview, which is read
once a slide, is told by itself.

The list of 1,000 patients is timed in a browser: from a key pressed in the filter, or a click on
the head of a column, to the picture that shows it (Event Timing of the browser, in steps of 8 ms,
without those below 16 ms), and from one picture to the next while the list is scrolled.

    python -m tests.benchmarks.viewing --walks 12
    python -m tests.benchmarks.viewing --only list
"""

from __future__ import annotations

import argparse
import http.client
import json
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from cli.viewer.content import N_AT_ONCE, ViewerState
from cli.viewer.server import ViewServer
from features.bags.h5 import bag_path, write_bag
from features.utils.hardware import CPU_COUNT
from features.visualization.deepzoom import ZOOM_TILE_PX, DeepZoom
from mil.calibration.priors import balanced
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.benchmarks._slides import TIFF_TILE_PX, BenchSlide, write_bench_slide
from tests.browser import open_tab
from tests.fakes import make_bag, write_cohort

SLIDES = {  # name: width and height in px, codec, share of tissue
    "lzw": ((20_480, 20_480), "lzw", 0.3),
    "jpeg": ((20_480, 20_480), "jpeg", 0.3),
    "large": ((48_282, 101_406), "lzw", 0.12),
    "list": ((2_048, 2_048), "jpeg", 0.3),
}
WINDOW_PX = (1400, 900)
TILE_SPAN_PX0 = 448


def write_world(folder: Path, slide: BenchSlide, zoom: DeepZoom) -> ViewerState:
    """A run, and a bag with a tile on every TIFF tile's worth of tissue."""
    cohort = read_cohort(write_cohort(folder, n_patients=24, shift=0.7), labelled=True)
    bags = {path.stem: path for path in (folder / "bags").glob("*.h5")}
    train_run(
        cohort, load_patient_bags(cohort, bags), folder / "run", n_folds=2, n_repeats=1, seed=0,
        on_head=lambda done, total: None,
        config=TrainConfig(n_members=2, n_components=8, fixed_steps=15),
    )  # fmt: skip
    rows, columns = np.nonzero(slide.has_tissue)
    coords = np.unique(
        np.stack([columns, rows], axis=1) * TIFF_TILE_PX // TILE_SPAN_PX0 * TILE_SPAN_PX0, axis=0
    )
    bag = make_bag("bench", n_tiles=len(coords), dim=16)
    bag.coords_px0[:] = coords
    bag.meta.__dict__.update(width_px0=zoom.width_px0, height_px0=zoom.height_px0)
    write_bag(bag_path(folder / "bags", "bench"), bag)
    (folder / "bench.csv").write_text("image_id,patient_id\nbench,bench\n")
    run, asked = load_bundle(folder / "run"), read_cohort(folder / "bench.csv", labelled=False)
    prior = balanced(run.classes)
    return ViewerState(
        run, asked, predict(run, asked, folder / "bags", prior=prior),
        bags={"bench": bag_path(folder / "bags", "bench")}, prior=prior,
        paths={"bench": slide.path},
    )  # fmt: skip


def walk(zoom: DeepZoom, slide: BenchSlide, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Tiles, as level, column and row, seen on the way down to a place with tissue."""
    row, column = rng.choice(np.argwhere(slide.has_tissue))
    centre = (np.array([column, row]) + 0.5) * TIFF_TILE_PX
    seen = []
    for level in range(min(8, zoom.last_level), zoom.last_level + 1):
        middle = centre / (1 << (zoom.last_level - level))
        first = np.floor((middle - np.array(WINDOW_PX) / 2) / ZOOM_TILE_PX).astype(int)
        last = np.floor((middle + np.array(WINDOW_PX) / 2) / ZOOM_TILE_PX).astype(int)
        for y in range(max(0, first[1]), last[1] + 1):
            for x in range(max(0, first[0]), last[0] + 1):
                if zoom.region(level, x, y):
                    seen.append((level, x, y))
    return seen


def asking(server: ViewServer) -> Callable[[str], float]:
    """Seconds that an address takes, over a connection of the thread's own, kept open."""
    own = threading.local()

    def ask(address: str) -> float:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        started = time.perf_counter()
        own.connection.request("GET", f"/{server.token}/{address}")
        answer = own.connection.getresponse()
        answer.read()
        assert answer.status == 200, (address, answer.status)
        return time.perf_counter() - started

    return ask


def told(seconds: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return {
        "n": len(seconds), "p50_ms": round(p50, 1), "p95_ms": round(p95, 1),
        "most_ms": round(max(seconds) * 1000, 1),
    }  # fmt: skip


def measure(
    server: ViewServer, slide: BenchSlide, zoom: DeepZoom, n_walks: int
) -> dict[str, object]:
    """Both ways of asking, on different walks, and an overlay."""
    ask = asking(server)
    ask("patients/0.json")
    report: dict[str, object] = {"first_tile_ms": round(1000 * ask("slides/0/8/0_0.jpg"), 1)}
    rng = np.random.default_rng(0)
    done: set[tuple[int, int, int]] = {(8, 0, 0)}
    for name, n_at_once in (("one_by_one", 1), (f"{N_AT_ONCE}_at_a_time", N_AT_ONCE)):
        tiles = []
        for _ in range(n_walks):
            fresh = [tile for tile in walk(zoom, slide, rng) if tile not in done]
            done.update(fresh)
            tiles += fresh
        with ThreadPoolExecutor(n_at_once) as pool:
            took = list(pool.map(lambda t: ask(f"slides/0/{t[0]}/{t[1]}_{t[2]}.jpg"), tiles))
            overlay = list(
                pool.map(lambda t: ask(f"slides/0/overlays/2/{t[0]}/{t[1]}_{t[2]}.png"), tiles)
            )
        by_level: dict[int, list[float]] = {}
        for (level, _, _), seconds in zip(tiles, took, strict=True):
            by_level.setdefault(1 << (zoom.last_level - level), []).append(seconds)
        report[name] = {
            "slide": told(took),
            "overlay": told(overlay),
            "slide_by_downsample": {str(d): told(some) for d, some in sorted(by_level.items())},
        }
    return report


TIMED_EVENTS = """
window.took = [];
new PerformanceObserver((list) => {
  for (const { name, duration } of list.getEntries()) {
    if (["keydown", "click"].includes(name)) took.push(duration);
  }
}).observe({ type: "event", durationThreshold: 16 });
"""
TIMED_FRAMES = """
window.frames_ms = [];
let last = 0;
const next = (now) => {
  if (last) frames_ms.push(now - last);
  last = now;
  requestAnimationFrame(next);
};
requestAnimationFrame(next);
"""
N_LISTED, PAUSE_S = 1000, 0.4


def add_patients(viewed: ViewerState) -> None:
    """List the patient a thousand times more, each with its own probabilities."""
    first = viewed._predictions[0]
    for number in range(N_LISTED):
        share = (number * 7919 % N_LISTED + 0.5) / N_LISTED
        viewed._predictions.append(
            replace(
                first, patient_id=f"patient {number}", probabilities=np.array([share, 1 - share])
            )
        )


def measure_list(server: ViewServer, profile: Path) -> dict[str, object]:
    """Times of the filter, the order and the scrolling of the list of patients."""
    report: dict[str, object] = {}
    middle = (
        "(() => { const b = %s.getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    with open_tab(profile) as tab:
        tab.open(server.url)
        tab.wait_for("list && list.chosen === 0 && panes[0].item()?.getFullyLoaded()")
        tab.evaluate(TIMED_EVENTS)
        tab.press("/")
        for text in ("patient 99", "999", "bench"):
            for key in [*text, *["Backspace"] * len(text)]:
                tab.type(key)
                time.sleep(PAUSE_S)
            assert tab.evaluate("byId('filter').value") == ""
        report["key_to_picture"] = told_ms(tab.evaluate("took.splice(0)"))
        for number in range(9):
            tab.click(*tab.evaluate(middle % f"byId('columns').children[{number % 3}]"))
            time.sleep(PAUSE_S)
        report["click_to_picture"] = told_ms(tab.evaluate("took.splice(0)"))
        x, y = tab.evaluate(middle % "byId('list')")
        tab.evaluate(TIMED_FRAMES)
        tab.send(
            "Input.synthesizeScrollGesture", x=x, y=y, yDistance=-20_000, speed=4000,
            gestureSourceType="mouse",
        )  # fmt: skip
        report["picture_to_picture_scrolling"] = told_ms(tab.evaluate("frames_ms"))
        report["n_rows_scrolled_to"] = tab.evaluate("byId('rows').children.length")
    return report


def told_ms(times_ms: list[float]) -> dict[str, float]:
    return told([ms / 1000 for ms in times_ms])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--walks", type=int, default=12, help="positions visited per way of asking")
    parser.add_argument("--only", choices=SLIDES, action="append")
    asked = parser.parse_args()
    report: dict[str, object] = {"n_cores": CPU_COUNT, "n_walks": asked.walks}
    for name in asked.only or SLIDES:
        (width, height), codec, share = SLIDES[name]
        with tempfile.TemporaryDirectory() as folder:
            slide = write_bench_slide(
                Path(folder) / "bench.tif", width_px=width, height_px=height, codec=codec,
                noise_sigma=1.0, tissue_share=share,
            )  # fmt: skip
            zoom = DeepZoom(width_px0=width, height_px0=height)
            viewed = write_world(Path(folder), slide, zoom)
            if name == "list":
                add_patients(viewed)
            server = ViewServer(viewed)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            if name == "list":
                report[name] = measure_list(server, Path(folder) / "profile")
            else:
                times = measure(server, slide, zoom, asked.walks)
                report[name] = {"size_px": [width, height], **times}
            peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            report["peak_rss_gib_so_far"] = round(peak_kb / (1 << 20), 2)
            server.shutdown()
            server.server_close()
            viewed.close()
    print(json.dumps(report, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
