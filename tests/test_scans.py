"""The road of scans and patches as a user walks it: generated ones, and patches of real tissue."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.bags.h5 import find_bags, read_bag
from tests.cli.running import mil_ok
from tests.fakes import real_data
from tests.scans import BIRTH_DATE, PLANTED, write_scan, z_position_mm


def mil(*arguments: object) -> dict[str, object]:
    """Run a command that must succeed, and return the JSON that it prints."""
    summary: dict[str, object] = json.loads(mil_ok(*arguments, "--json").stdout)
    return summary


def write_studies(folder: Path, *, n_scans: int) -> None:
    """Scans of 20 to 28 slices; every second bleeds on two to four neighbouring slices.

    ``train.csv`` has a label a scan for three quarters of them, ``test.csv`` names the others, and
    ``slices.csv`` has a label a slice, for scoring alone.
    """
    rng = np.random.default_rng(5)
    scans, slices = ["slide_id,patient_id,label"], ["slide_id,source,label"]
    for number in range(n_scans):
        n_slices = int(rng.integers(20, 29))
        first = int(rng.integers(3, n_slices - 7))
        bleeding = range(first, first + int(rng.integers(2, 5))) if number % 2 else ()
        name = f"scan{number:02d}"
        sources = write_scan(
            folder / "scans" / name, n_slices=n_slices, seed=(number,), bleeding=tuple(bleeding)
        )
        scans.append(f"{name},p{number:02d},{'bleeding' if bleeding else 'well'}")
        by_position = sorted(sources.iterdir(), key=z_position_mm)
        slices += [
            f"{name},{name}/{path.name},{int(index in bleeding)}"
            for index, path in enumerate(by_position)
        ]
    n_train = n_scans * 3 // 4
    (folder / "train.csv").write_text("\n".join(scans[: n_train + 1]))
    (folder / "test.csv").write_text("\n".join([scans[0], *scans[n_train + 1 :]]))
    (folder / "slices.csv").write_text("\n".join(slices))


@pytest.mark.slow
def test_a_planted_bleed_is_found_from_labels_of_scans_and_looked_at(tmp_path: Path) -> None:
    write_studies(tmp_path, n_scans=60)
    embedded = mil("embed", "--series", tmp_path / "scans", "--bags", tmp_path / "bags")
    assert embedded["n_done"] == 60
    trained = mil(
        "train", "--cohort", tmp_path / "train.csv", "--bags", tmp_path / "bags", "--run",
        tmp_path / "run", "--device", "cpu",
    )  # fmt: skip
    assert trained["scores"]["calibrated"]["auroc"]["value"] > 0.95  # type: ignore[index]
    explained = mil(
        "explain", "--run", tmp_path / "run", "--bags", tmp_path / "bags", "--patients",
        tmp_path / "test.csv", "--image-labels", tmp_path / "slices.csv", "--out",
        tmp_path / "pages", "--series", tmp_path / "scans", "--top", 2,
    )  # fmt: skip
    result = explained["attention"]  # on scans that the heads had not seen
    assert explained["n_seen_in_training"] == 0
    assert result["n_patients"] == 8  # type: ignore[index]
    assert result["auroc"] > 0.9  # type: ignore[index]
    assert result["hits"] > 0.8  # type: ignore[index]
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            content = path.read_bytes()
            assert PLANTED.encode() not in content
            assert BIRTH_DATE.encode() not in content


def paint_patch(rng: np.random.Generator, *, dense: bool) -> Image.Image:
    """Pink ground with violet nuclei, many and dark where ``dense``."""
    pixels = np.full((96, 96, 3), (232, 190, 215), np.float64) + rng.normal(0, 8, (96, 96, 1))
    y, x = np.mgrid[:96, :96]
    for _ in range(int(rng.integers(30, 40) if dense else rng.integers(6, 14))):
        at_x, at_y = rng.uniform(0, 96, 2)
        inside = np.hypot(x - at_x, y - at_y) < rng.uniform(3, 6)
        pixels[inside] = (92, 60, 140) if dense else (120, 90, 165)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("n_patches", [1, 6])
def test_patches_are_told_apart_alone_and_in_groups(tmp_path: Path, n_patches: int) -> None:
    rng = np.random.default_rng(3)
    rows, labels = ["bag_id,path"], ["slide_id,patient_id,label"]
    for number in range(60):
        for patch in range(n_patches):  # of a group, only every third patch tells
            dense = number % 2 == 1 and patch % 3 == 0
            paint_patch(rng, dense=dense).save(tmp_path / f"{number}_{patch}.png")
            rows.append(f"g{number},{number}_{patch}.png")
        labels.append(f"g{number},p{number},{'dense' if number % 2 else 'loose'}")
    (tmp_path / "patches.csv").write_text("\n".join(rows))
    (tmp_path / "train.csv").write_text("\n".join(labels))
    mil("embed", "--series", tmp_path / "patches.csv", "--bags", tmp_path / "bags")
    trained = mil(
        "train", "--cohort", tmp_path / "train.csv", "--bags", tmp_path / "bags", "--run",
        tmp_path / "run", "--device", "cpu",
    )  # fmt: skip
    assert trained["scores"]["calibrated"]["auroc"]["value"] > 0.95  # type: ignore[index]


@real_data
@pytest.mark.slow
def test_patches_of_real_tissue_in_spatial_blocks_go_the_whole_road(
    tmp_path: Path, mil_data: Path
) -> None:
    with Image.open(mil_data / "images" / "histolytics" / "hgsc_nest.jpg") as image:
        width, height = image.size
        rows, labels = ["bag_id,path"], ["slide_id,patient_id,label"]
        for block in range(24):  # 6 × 4 blocks; which side they are from is no question of medicine
            left, top = (block % 6) * width // 6, (block // 6) * height // 4
            for patch in range(4):
                x, y = left + 96 * (patch % 2), top + 96 * (patch // 2)
                image.crop((x, y, x + 96, y + 96)).save(tmp_path / f"{block}_{patch}.png")
                rows.append(f"b{block},{block}_{patch}.png")
            labels.append(f"b{block},b{block},{'left' if block % 6 < 3 else 'right'}")
    (tmp_path / "patches.csv").write_text("\n".join(rows))
    (tmp_path / "train.csv").write_text("\n".join(labels))
    mil("embed", "--series", tmp_path / "patches.csv", "--bags", tmp_path / "bags")
    assert all(len(read_bag(p).features) == 4 for p in find_bags(tmp_path / "bags").values())
    mil(
        "train", "--cohort", tmp_path / "train.csv", "--bags", tmp_path / "bags", "--run",
        tmp_path / "run", "--device", "cpu", "--folds", 4,
    )  # fmt: skip
    mil(
        "infer", "--run", tmp_path / "run", "--bags", tmp_path / "bags", "--patients",
        tmp_path / "train.csv", "--out", tmp_path / "out.csv",
    )  # fmt: skip
    with (tmp_path / "out.csv").open() as file:
        values = [float(row["left"]) for row in csv.DictReader(file)]
    assert len(values) == 24
    assert all(0 < value < 1 for value in values)
