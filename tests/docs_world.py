"""Generated data for the commands of the documentation: painted slides, tables, bags and a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from features.bags.h5 import find_bags
from features.slides.synthetic import (
    SyntheticSlide,
    make_cohort,
    render_slide,
    write_slide,
    write_synthetic_cohort,
)
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.cli.running import mil_ok
from tests.scans import write_scan
from tests.studies import write_encoded_cohort

__all__ = ["PREPARATIONS", "build_world", "copy_world"]

_N_TRAIN, _N_TEST, _N_OTHER = 18, 6, 2
_KNOWN_IDS = ("006388", "008e5c")
_CT_LABELS = (
    "any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural",
)  # fmt: skip


def build_world(folder: Path) -> None:
    """Write slides of 26 patients, two unlabelled, with bags, tables, a run and predictions."""
    plan = _small(make_cohort(n_patients=_N_TRAIN + _N_TEST, seed=3, signal=1.0))
    write_synthetic_cohort(
        folder, plan, n_test_patients=_N_TEST, n_workers=1, on_slide=lambda: None
    )
    _paint_others(folder)
    for name in ("train", "test"):
        (folder / name).mkdir()
        for slide_id in pd.read_csv(folder / f"{name}.csv", dtype=str)["image_id"]:
            os.link(folder / "slides" / f"{slide_id}.tif", folder / name / f"{slide_id}.tif")
    mil_ok("embed", folder / "slides", folder / "other", "--bags", folder / "bags")
    train(folder)
    mil_ok(
        "infer", "--run", folder / "runs" / "first", "--bags", folder / "bags", "--patients",
        folder / "test.csv", "--out", folder / "submission.csv",
    )  # fmt: skip


def train(folder: Path) -> None:
    """Train ``runs/first`` with few and small heads."""
    cohort = read_cohort(folder / "train.csv", labelled=True)
    bags = load_patient_bags(cohort, find_bags(folder / "bags"))
    shutil.rmtree(folder / "runs", ignore_errors=True)
    train_run(
        cohort, bags, folder / "runs" / "first", n_folds=2, n_repeats=1, seed=0,
        config=TrainConfig(n_members=2, n_components=8, fixed_steps=10),
        on_head=lambda done, total: None,
    )  # fmt: skip


def copy_world(world: Path, folder: Path) -> None:
    """Copy the world for one page, with links to slides and bags, which are never changed."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith((".tif", ".h5")) else shutil.copyfile)(source, target)

    shutil.copytree(world, folder, copy_function=copy)


def _small(plan: list[SyntheticSlide]) -> list[SyntheticSlide]:
    """Return slides of few tiles, the first two of patients named in the documentation."""
    names = dict(zip(dict.fromkeys(slide.patient_id for slide in plan), _KNOWN_IDS, strict=False))
    return [
        replace(
            slide, patient_id=names.get(slide.patient_id, slide.patient_id), width_px0=1200,
            height_px0=1100,
        )
        for slide in plan
    ]  # fmt: skip


def _paint_others(folder: Path) -> None:
    """Write ``other/`` and ``other.csv``: slides without labels."""
    (folder / "other").mkdir()
    plan = _small(make_cohort(n_patients=_N_OTHER, seed=4, signal=1.0))
    plan = [replace(slide, patient_id=f"0ther{n}") for n, slide in enumerate(plan)]
    for slide in plan:
        write_slide(folder / "other" / f"{slide.slide_id}.tif", render_slide(slide))
    pd.DataFrame(
        [(s.slide_id, s.patient_id) for s in plan], columns=["image_id", "patient_id"]
    ).to_csv(folder / "other.csv", index=False)


def _demo(folder: Path) -> None:
    """Write the output of ``mil demo`` without its bags, which have tiles of another size."""
    copy_world(folder, folder.parent / "demo")
    (folder.parent / "demo").rename(folder / "demo")
    shutil.rmtree(folder / "demo" / "bags")


def _study(folder: Path) -> None:
    """Write slides and tables of ``mil demo``, small ones."""
    plan = _small(make_cohort(n_patients=36, seed=5, signal=1.0))
    write_synthetic_cohort(
        folder / "demo", plan, n_test_patients=12, n_workers=1, on_slide=lambda: None
    )
    for stale in ("bags", "runs"):
        shutil.rmtree(folder / stale)


def _second_run(folder: Path) -> None:
    """Train ``runs/second`` on the same folds, and write its predictions as files of others."""
    first = folder / "runs" / "first"
    train_run(
        folder / "train.csv", folder / "bags", folder / "runs" / "second", folds_of=first, seed=1,
        config=TrainConfig(head="mean", n_members=2, n_components=8, fixed_steps=10), report=False,
    )  # fmt: skip
    (folder / "oof").mkdir()
    for name, run in (("ours", first), ("theirs", folder / "runs" / "second")):
        table = pd.read_csv(run / "judged.csv", dtype=str)[["patient_id", "calibrated_LAA"]]
        table.set_axis(["patient_id", "LAA"], axis=1).to_csv(
            folder / "oof" / f"{name}.csv", index=False
        )


def _external(folder: Path) -> None:
    """Write bags of two cohorts, and a run on the first."""
    shutil.rmtree(folder / "bags")
    for name, prefix in (("train", ""), ("external", "x")):
        write_encoded_cohort(folder, name, n_patients=24, encoders={"a": 0.8}, prefix=prefix)
    for path in (folder / "bags" / "a").iterdir():
        path.rename(folder / "bags" / path.name)
    shutil.copy(folder / "external.csv", folder / "local.csv")
    train(folder)


def _labels(folder: Path) -> None:
    """Write labels of 0 and 1 for the slides of both tables."""
    shutil.rmtree(folder / "runs")
    rng = np.random.default_rng(0)
    for table, name in (("train.csv", "labels.csv"), ("test.csv", "truth.csv")):
        slides = pd.read_csv(folder / table, dtype=str).rename(columns={"image_id": "slide_id"})
        label_values = {
            patient: rng.permutation([number % 2, number // 2 % 2])
            for number, patient in enumerate(slides["patient_id"].unique())
        }
        values = np.array([label_values[patient] for patient in slides["patient_id"]])
        slides = slides[["slide_id", "patient_id"]].assign(
            any=values.max(axis=1), epidural=values[:, 0], subdural=values[:, 1]
        )
        slides.to_csv(folder / name, index=False)


def _scans(folder: Path) -> None:
    """Write fourteen short scans and their labels, and those of slices in ``slices.csv``."""
    for stale in ("bags", "runs"):
        shutil.rmtree(folder / stale)
    scans, slices = [], []
    for number in range(14):
        name, bleeds = f"scan_{number}", number % 2
        files = write_scan(
            folder / "scans" / name, n_slices=3, seed=(number,), bleeding=(1,) if bleeds else ()
        )
        labels = dict.fromkeys(_CT_LABELS, number // 2 % 2) | {"any": bleeds}
        scans.append({"slide_id": name, "patient_id": f"p{number}"} | labels)
        slices += [
            {"slide_id": name, "source": f"{name}/{path.name}", "any": bleeds * (index == 1)}
            for index, path in enumerate(sorted(files.iterdir()))
        ]
    pd.DataFrame(scans).to_csv(folder / "labels.csv", index=False)
    pd.DataFrame(scans)[["slide_id", "patient_id"]].to_csv(folder / "test.csv", index=False)
    pd.DataFrame(slices).to_csv(folder / "slices.csv", index=False)


def _patches(folder: Path) -> None:
    """Write bags of three patches, a run on them, and a table of patients."""
    shutil.rmtree(folder / "bags")
    (folder / "patches").mkdir()
    rng = np.random.default_rng(0)
    rows, patients = [], []
    for number in range(12):
        patients.append((f"biopsy_{number}", f"p{number}", "AB"[number % 2]))
        for order in range(3):
            path = f"patches/{number}_{order}.png"
            pixels = rng.integers(0, 255, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / path)
            rows.append((f"biopsy_{number}", path, order, f"p{number}"))
    pd.DataFrame(rows, columns=["bag_id", "path", "order", "patient_id"]).to_csv(
        folder / "patches.csv", index=False
    )
    table = pd.DataFrame(patients, columns=["slide_id", "patient_id", "label"])
    table.to_csv(folder / "train.csv", index=False)
    table[:2].drop(columns="label").to_csv(folder / "test.csv", index=False)
    mil_ok("embed", "--series", folder / "patches.csv", "--bags", folder / "bags")
    train(folder)


def _examples(folder: Path) -> None:
    """Write crops of painted tissue to keep and of ink to drop, and ``examples.csv``."""
    (folder / "crops").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number, slide in enumerate(_small(make_cohort(n_patients=5, seed=9, signal=1.0))[:5]):
        tissue = Image.fromarray(render_slide(slide)).crop((150, 100, 1046, 996)).resize((448, 448))
        ink = np.clip(rng.normal((200, 30, 50), 2, (224, 224, 3)), 0, 255).astype(np.uint8)
        for label, picture in (("keep", tissue), ("drop", Image.fromarray(ink))):
            path = f"crops/{label}_{number}.png"
            picture.save(folder / path)
            rows.append((path, label, f"shown_{number}"))
    pd.DataFrame(rows, columns=["path", "label", "slide_id"]).to_csv(
        folder / "examples.csv", index=False
    )


def _checkpoints(folder: Path) -> None:
    """Write weights of an untrained network, in timm's names and in another library's."""
    torch.manual_seed(0)
    ours = timm.create_model("resnet18", num_classes=0).state_dict()
    save_file(ours, folder / "mine.safetensors")
    save_file({f"backbone.{name}": v for name, v in ours.items()}, folder / "theirs.safetensors")


def _others_tables(folder: Path) -> None:
    """Write the world's cohort in the tables of CLAM and of STAMP."""
    cohort = pd.read_csv(folder / "train.csv", dtype=str)
    cohort.rename(columns={"patient_id": "case_id", "image_id": "slide_id"})[
        ["case_id", "slide_id", "label"]
    ].to_csv(folder / "tumor_vs_normal.csv", index=False)
    cohort.rename(columns={"patient_id": "PATIENT", "label": "isMSIH"})[
        ["PATIENT", "isMSIH"]
    ].drop_duplicates().to_csv(folder / "clinical.csv", index=False)
    pd.DataFrame({"PATIENT": cohort["patient_id"], "FILENAME": cohort["image_id"] + ".h5"}).to_csv(
        folder / "slides.csv", index=False
    )


def _clam(folder: Path) -> None:
    """Export the world's bags to the layout of CLAM."""
    mil_ok("bags", "export", folder / "bags", "--to", "clam", "--out", folder / "clam_features")


def _resolutions(folder: Path) -> None:
    """Write ``mpp.csv`` as shown on the page."""
    (folder / "mpp.csv").write_text("slide_id,mpp\n006388_0,0.25\n008e5c_0,0.5\n")


PREPARATIONS: dict[str, Callable[[Path], None]] = {
    "docs/how-to/combine-runs.md": _second_run,
    "docs/how-to/compare-runs.md": _second_run,
    "docs/how-to/exchange-bags.md": _clam,
    "docs/how-to/external-cohort.md": _external,
    "docs/how-to/filter-tiles.md": _examples,
    "docs/how-to/head-ct.md": _scans,
    "docs/how-to/image-series.md": _patches,
    "docs/how-to/move-from-other-tools.md": _others_tables,
    "docs/how-to/own-backbone.md": _checkpoints,
    "docs/how-to/plan-a-study.md": _study,
    "docs/how-to/slides-without-mpp.md": _resolutions,
    "docs/reference/labels.md": _labels,
    "docs/start/five-minutes.md": _demo,
}
"""Further data that a page needs."""
