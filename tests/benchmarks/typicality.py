"""Which patients typicality marks: false alarms on cohorts, and detection of what is foreign.

``false_alarms``
    Generated cohorts of patients with their own mean, spread and number of tiles. Of new patients
    of the same kind, the share marked at a stated level: mean over cohorts with its standard
    error, and the 99 % binomial interval around the share that the level allows (p-values are
    multiples of 1 / (patients + 1)).
``cost``
    Processor seconds to fit and to score a patient of 1,280 numbers per tile, and bytes of the
    files.
``stains``
    With MIL_DATA: in how many degrees of colour the stains of real slides and pictures differ. The
    limit is chosen on the centres of odd numbers, and reported on the others and on pictures.
``of_inference``
    Processor seconds that typicality adds to the prediction of a patient from its bag, and its
    share of a prediction without it, paired.
``detection``
    Held-out patients of the demo, versions of their tiles, and foreign slides and pictures of the
    folder that MIL_DATA names. Number of patients, share marked at 0.05, median share of unlike
    tiles, and AUROC of the score against held-out patients.
``asked``
    What the project asks of typicality, and whether these figures have it.
``seconds``
    How long each part took.

The demo is made (3 minutes) unless ``--demo`` names one; the rest takes 3 minutes.

    MIL_DATA=data python -m tests.benchmarks.typicality
    MIL_DATA=data python -m tests.benchmarks.typicality --demo demo --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from cli.console import let_waiting_threads_sleep
from features.bags.h5 import bag_path, read_slide_bag, write_bag
from features.bags.store import open_bags
from features.embedding.config import EmbedConfig
from features.encoders.encoder import DEFAULT_BACKBONE, load_encoder
from features.slides.base import RgbArray
from features.slides.reader import open_slide
from features.tiling.slide_tiles import open_slide_tiles
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.cohort import Cohort, Patient, read_cohort
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.predict import predict
from mil.typicality import TypicalityReference, write_reference
from tests.benchmarks._stains import stains
from tests.fakes import FINGERPRINT, make_bag

__all__ = ["draw_patient", "false_alarms", "main", "measure_cost"]

Tiles = npt.NDArray[np.float32]
Edit = Callable[[RgbArray, int], RgbArray]

_LEVELS = (0.05, 0.01)
_TILE_PX = 224
_TILES_PER_SLIDE = 16
_STAINS = {  # optical densities of haematoxylin and eosin, and of what replaces them
    "haematoxylin and eosin": ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)),
    "haematoxylin and DAB": ((0.65, 0.70, 0.29), (0.27, 0.57, 0.78)),
    "trichrome": ((0.21, 0.85, 0.48), (0.98, 0.18, 0.08)),
}


def draw_patient(rng: np.random.Generator, *, dim: int = 96, n_tiles: int | None = None) -> Tiles:
    """Return tiles, shape (tiles, dim), of a patient with its own mean, spread and mixture."""
    count = int(np.exp(rng.normal(3, 0.8))) + 1 if n_tiles is None else n_tiles
    kinds = np.stack([np.cos(np.arange(dim) * k) for k in range(1, 5)])
    mixture = rng.dirichlet(np.ones(len(kinds)), size=count)
    mean = 1 + 0.2 * rng.normal(size=dim)
    noise = np.exp(rng.normal(-0.7, 0.2)) * rng.normal(size=(count, dim))
    return np.asarray(mean + mixture @ kinds + noise, np.float32)


def fit(patients: Mapping[str, Tiles]) -> TypicalityReference:
    """Return the reference of patients, shape (tiles, dim) each."""
    dim = next(iter(patients.values())).shape[1]
    bags = PatientBags(features=patients, fingerprint=replace(FINGERPRINT, dim=dim), slides=())
    return TypicalityReference.fit(bags, centres=[""] * len(patients))


def false_alarms(*, n_patients: int, n_cohorts: int, n_new: int, seed: int = 0) -> dict[str, Any]:
    """Return how many new patients of the same kind are marked, by stated level."""
    p_values = np.empty((n_cohorts, n_new))
    for number in range(n_cohorts):
        rng = np.random.default_rng([seed, n_patients, number])
        reference = fit({str(index): draw_patient(rng) for index in range(n_patients)})
        p_values[number] = [reference.score(draw_patient(rng)).p_value for _ in range(n_new)]
    levels = {}
    for level in _LEVELS:
        shares = (p_values <= level).mean(axis=1)
        allowed = np.floor(level * (n_patients + 1) + 1e-9) / (n_patients + 1)
        ends = binom.ppf([0.005, 0.995], p_values.size, allowed) / p_values.size
        levels[f"{level:g}"] = {
            "marked": float(shares.mean()),
            "standard_error": float(shares.std(ddof=1) / n_cohorts**0.5),
            "allowed": float(allowed),
            "interval": ends.tolist(),
            "inside": bool(ends[0] <= shares.mean() <= ends[1]),
        }
    return {"n_patients": n_patients, "n_cohorts": n_cohorts, "n_new": n_new, "levels": levels}


def measure_cost(*, n_patients: int, n_tiles: int, dim: int = 1280) -> dict[str, float]:
    """Return seconds to fit and to score one patient, and bytes of the files per 1,000 patients."""
    rng = np.random.default_rng(0)
    patients = {
        f"{index:06x}": rng.normal(1, 1, (n_tiles, dim)).astype(np.float16)
        for index in range(n_patients)
    }
    started = time.process_time()
    reference = fit(patients)
    fitted = time.process_time()
    new = rng.normal(1, 1, (n_tiles, dim)).astype(np.float16)
    for _ in range(20):
        reference.score(new)
    scored = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        write_reference(Path(folder), reference)
        n_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "n_patients": n_patients, "n_tiles": n_tiles, "fit_s": fitted - started,
        "score_s": (scored - fitted) / 20, "n_bytes": n_bytes,
    }  # fmt: skip


def share_of_inference(demo: Path, *, n_pairs: int = 40) -> list[dict[str, float]]:
    """Return what typicality adds to the prediction of a patient, by number of tiles.

    Both are whole predictions from a bag on disk, in turn, with the run of the demo. Medians over
    the pairs; the standard error is that of the median of a normal distribution.
    """
    run = load_bundle(next((demo / "runs").iterdir()))
    name, ref = next(iter(open_bags(demo / "bags").items()))
    usual = read_slide_bag(name, ref).features.astype(np.float32)
    rng = np.random.default_rng(0)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for n_tiles in (1000, 2000, 4000):
            bag = make_bag(str(n_tiles), n_tiles=n_tiles)
            tiles = usual[rng.integers(0, len(usual), n_tiles)]
            tiles += 0.1 * rng.normal(size=tiles.shape).astype(np.float32)
            meta = replace(bag.meta, fingerprint=run.fingerprint)
            path = bag_path(Path(folder), str(n_tiles))
            write_bag(path, replace(bag, features=tiles.astype(np.float16), meta=meta))
        refs = open_bags(Path(folder))
        for slide_id in refs:
            patient = Patient(patient_id="new", slide_ids=(slide_id,), label="", center_id="")
            cohort = Cohort(path=Path("new.csv"), patients=(patient,), classes=())
            seconds: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(n_pairs):
                for is_asked, own in seconds.items():
                    model = run if is_asked else replace(run, typicality=None)
                    own.append(_processor_seconds(model, cohort, refs))
            without = float(np.median(seconds[False][1:]))
            added = np.subtract(seconds[True], seconds[False])[1:]
            quartiles = np.percentile(added, [25, 75])
            error = 1.253 * float(np.diff(quartiles)[0]) / 1.349 / len(added) ** 0.5
            found.append(
                {"n_tiles": int(slide_id), "without_s": without,
                 "added_s": float(np.median(added)), "share": float(np.median(added)) / without,
                 "standard_error": error / without}
            )  # fmt: skip
    return found


def _processor_seconds(run: ModelBundle, cohort: Cohort, refs: Mapping[str, Any]) -> float:
    started = time.process_time()
    predict(run, cohort, refs)
    return time.process_time() - started


def detect(demo: Path, data: Path | None) -> dict[str, Any]:
    """Return what the reference of the demo's training patients marks, by kind of patient."""
    refs = open_bags(demo / "bags")
    train = read_cohort(demo / "train.csv", labelled=True)
    bags = load_patient_bags(train, refs)
    centre_of = {patient.patient_id: patient.center_id or "" for patient in train.patients}
    reference = TypicalityReference.fit(bags, centres=[centre_of[name] for name in bags.nonempty()])
    test = read_cohort(demo / "test.csv", labelled=False)
    held_out = load_patient_bags(test, refs)
    scores = {"held out": [reference.score(held_out.features[n]) for n in held_out.nonempty()]}
    encoder = load_encoder(
        DEFAULT_BACKBONE, weights_path=None, device=torch.device("cpu"), execution="onnx float32"
    )
    for kind, tiles in _versions(demo, refs, test.patients):
        scores.setdefault(kind, []).append(reference.score(encoder.embed(np.stack(tiles))))
    for kind, tiles in _foreign(data) if data else ():
        scores.setdefault(kind, []).append(reference.score(encoder.embed(np.stack(tiles))))
    usual = [one.distance for one in scores["held out"]]
    kinds = {}
    for kind, scored in scores.items():
        distances = [one.distance for one in scored]
        truth = [0] * len(usual) + [1] * len(distances)
        kinds[kind] = {
            "n_patients": len(scored),
            "marked": float(np.mean([one.p_value <= _LEVELS[0] for one in scored])),
            "unlike_tiles": float(np.median([one.unlike_share for one in scored])),
            "distance": float(np.median(distances)),
            "auroc": float(roc_auc_score(truth, [*usual, *distances])),
        }
    return {
        "n_training_patients": len(reference.patient_ids),
        "largest_training_distance": float(reference.distances.max()),
        "kinds": kinds,
    }


def _versions(
    demo: Path, refs: Mapping[str, Any], patients: Sequence[Any]
) -> Iterator[tuple[str, list[RgbArray]]]:
    """Yield versions of the tiles of each held-out patient's first slide."""
    for patient in patients:
        name = patient.slide_ids[0]
        bag = read_slide_bag(name, refs[name])
        coords, whole, mpp = bag.coords_px0, round(bag.meta.span_x_px0), bag.meta.mpp_x
        tile_mpp = mpp * whole / _TILE_PX
        some = coords[
            np.linspace(0, len(coords) - 1, min(len(coords), _TILES_PER_SLIDE)).astype(int)
        ]
        slide = open_slide(demo / "slides" / f"{name}.tif")
        level = slide.levels[0]
        pixels = slide.read(
            level=0, x_px=0, y_px=0, width_px=level.width_px, height_px=level.height_px
        )
        slide.close()
        plain = [_window(pixels, corner, whole) for corner in some]
        edits: dict[str, Edit] = {
            "blur, 0.5 µm": lambda tile, _, mpp=tile_mpp: _blur(tile, 0.5 / mpp),
            "blur, 1 µm": lambda tile, _, mpp=tile_mpp: _blur(tile, 1 / mpp),
            "blur, 2 µm": lambda tile, _, mpp=tile_mpp: _blur(tile, 2 / mpp),
            "half of the tiles blurred, 2 µm": lambda tile, i, mpp=tile_mpp: (
                _blur(tile, 2 / mpp) if i % 2 else tile
            ),
            "ink": _draw_ink,
            "DAB for eosin": lambda tile, _: _restain(tile, "haematoxylin and DAB"),
            "trichrome": lambda tile, _: _restain(tile, "trichrome"),
            "stain 1.5 times as strong": lambda tile, _: _scale_density(tile, 1.5),
            "stain half as strong": lambda tile, _: _scale_density(tile, 0.5),
        }
        for kind, edit in edits.items():
            yield kind, [edit(tile, index) for index, tile in enumerate(plain)]
        for wrong in (0.5, 0.125, 2.0):
            span = round(whole * wrong / mpp)
            middle = some + (whole - span) // 2
            kind = f"{wrong:g} µm/px read as {mpp:g}"
            yield kind, [_window(pixels, corner, span) for corner in middle]
        coarse = (round(_TILE_PX * tile_mpp / 2),) * 2
        yield (
            "2 µm/px, stated",
            [
                np.asarray(
                    Image.fromarray(tile)
                    .resize(coarse, Image.Resampling.BOX)
                    .resize((_TILE_PX, _TILE_PX))
                )
                for tile in plain
            ],
        )
        right, bottom = pixels.shape[1] - whole, pixels.shape[0] - whole
        corners = ((0, 0), (right, 0), (0, bottom))
        yield "blank glass", [_window(pixels, corner, whole) for corner in corners]


def _foreign(data: Path) -> Iterator[tuple[str, list[RgbArray]]]:
    """Yield tiles of real slides of other tissue, as they would be embedded, and of pictures."""
    slides = {
        "skin": [(data / "slides/cmu-1-small-region.svs", None)],
        "skin, read as 0.25 µm/px": [(data / "slides/cmu-1-small-region.svs", 0.25)],
        "kidney": [(data / "slides/kidney-48-5.tif", 0.25)],
        "ovary": [(path, 0.25) for path in sorted((data / "images/histolytics").glob("*.jpg"))],
        "other pictures": [
            (path, 0.25)
            for folder in ("histolab", "histoprep")
            for path in sorted((data / "images" / folder).glob("*.*"))
            if path.suffix in {".png", ".jpeg"}
        ],
    }  # fmt: skip
    config = EmbedConfig()
    for kind, files in slides.items():
        for path, mpp in files:
            with open_slide_tiles(
                path, tiles=config.tiles, tissue=config.tissue, given_mpp=mpp
            ) as opened:
                order = np.linspace(0, opened.n_tiles - 1, min(opened.n_tiles, 64)).astype(int)
                tiles = [opened.read(index) for index in order.tolist()]
                kept = [tile for tile in tiles if isinstance(tile, np.ndarray)]
            if kept:
                yield kind, kept


def _window(pixels: RgbArray, corner: Sequence[int], span_px: int) -> RgbArray:
    """Return a square of pixels, (224, 224, 3), padded with the colour of the first pixel."""
    height, width = pixels.shape[:2]
    x, y = (
        int(np.clip(at, 0, max(0, n - span_px)))
        for at, n in zip(corner, (width, height), strict=True)
    )
    part = pixels[y : y + span_px, x : x + span_px]
    square = np.full((span_px, span_px, 3), pixels[0, 0], np.uint8)
    square[: part.shape[0], : part.shape[1]] = part
    how = Image.Resampling.BOX if span_px >= 224 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(square).resize((224, 224), how))


def _blur(tile: RgbArray, sigma_px: float) -> RgbArray:
    return np.asarray(ndimage.gaussian_filter(tile, (sigma_px, sigma_px, 0)))


def _draw_ink(tile: RgbArray, seed: int) -> RgbArray:
    """Return a tile under three lines of a green or blue marker."""
    picture = Image.fromarray(tile)
    draw = ImageDraw.Draw(picture)
    ends = np.random.default_rng(seed).integers(0, 224, (3, 4)).tolist()
    for line in ends:
        draw.line(line, fill=((20, 110, 70), (30, 40, 140))[seed % 2], width=30)
    return np.asarray(picture)


def _density(tile: RgbArray) -> Tiles:
    return -np.log(np.maximum(tile, 1).astype(np.float32) / 255)


def _scale_density(tile: RgbArray, factor: float) -> RgbArray:
    return np.asarray(np.clip(255 * np.exp(-factor * _density(tile)), 0, 255).astype(np.uint8))


def _restain(tile: RgbArray, stain: str) -> RgbArray:
    """Return a tile whose haematoxylin and eosin are replaced; the residual stays."""
    old, new = (_basis(*_STAINS[name]) for name in ("haematoxylin and eosin", stain))
    density = _density(tile).reshape(-1, 3) @ np.linalg.inv(old) @ new
    return np.asarray(np.clip(255 * np.exp(-density), 0, 255).astype(np.uint8).reshape(tile.shape))


def _basis(first: Sequence[float], second: Sequence[float]) -> npt.NDArray[np.float64]:
    vectors = np.array([first, second, np.cross(first, second)])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def judge(result: Mapping[str, Any]) -> dict[str, bool]:
    """Return what is asked of typicality, and whether a result has it."""
    asked = {
        "false alarms inside the binomial interval": all(
            level["inside"] for cohorts in result["false_alarms"]
            for level in cohorts["levels"].values()
        ),
        "files of 1,000 patients below 1 MB": result["cost"][-1]["n_bytes"] < 1_000_000,
        "below 5 % of a prediction from a bag of 1,000 to 4,000 tiles": all(
            size["share"] < 0.05 for size in result["of_inference"]
        ),
    }  # fmt: skip
    kinds = result["detection"]["kinds"]
    foreign = [kinds[kind]["auroc"] for kind in ("skin", "kidney", "ovary") if kind in kinds]
    if foreign:
        asked["AUROC of skin, kidney and ovary at least 0.95"] = min(foreign) >= 0.95
    return asked


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--demo", type=Path, help="folder of mil demo (default: make it)")
    parser.add_argument("--seed", type=int, default=0, help="other generated cohorts")
    parser.add_argument("--cohorts", type=int, default=100, help="generated cohorts per size")
    asked = parser.parse_args(arguments)
    named = os.environ.get("MIL_DATA")
    data = Path(named) if named else None
    with tempfile.TemporaryDirectory() as made:
        demo = asked.demo or Path(made) / "demo"
        parts: dict[str, Callable[[], Any]] = {
            "false_alarms": lambda: [
                false_alarms(n_patients=n, n_cohorts=asked.cohorts, n_new=20, seed=asked.seed)
                for n in (60, 199)
            ],
            "cost": lambda: [
                measure_cost(n_patients=60, n_tiles=1000),
                measure_cost(n_patients=1000, n_tiles=256),
            ],
            "of_inference": lambda: share_of_inference(demo),
            "detection": lambda: detect(demo, data),
        }
        if data:
            parts["stains"] = lambda: stains(data)
        if asked.demo is None:
            parts = {"demo": lambda: _make_demo(demo), **parts}
        result: dict[str, Any] = {}
        seconds = {}
        for name, measure in parts.items():
            started = time.monotonic()
            result[name] = measure()
            seconds[name] = round(time.monotonic() - started, 1)
            sys.stderr.write(f"{name}: {seconds[name]:.0f} s\n")
    result |= {"asked": judge(result), "seconds": seconds}
    sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _make_demo(folder: Path) -> dict[str, int]:
    """Run ``mil demo``; return the numbers of patients."""
    command = [sys.executable, "-m", "cli", "demo", "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    tables = {name: len(pd.read_csv(folder / f"{name}.csv")) for name in ("train", "test")}
    return {f"n_{name}_slides": n for name, n in tables.items()}


if __name__ == "__main__":
    if "OPENBLAS_THREAD_TIMEOUT" not in os.environ:  # is read when NumPy is loaded
        let_waiting_threads_sleep()
        again = [sys.executable, "-m", "tests.benchmarks.typicality", *sys.argv[1:]]
        raise SystemExit(subprocess.run(again, check=False).returncode)
    main()
