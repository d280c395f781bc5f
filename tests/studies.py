"""Cohorts embedded by several made-up encoders, for commands on more than one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.bags.h5 import find_bags, write_bag
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.fakes import make_bag

__all__ = ["FAST", "train_on", "write_encoded_cohort", "write_judged_run"]

FAST = TrainConfig(n_members=1, n_components=8, fixed_steps=10)
"""Few and small heads."""


def write_encoded_cohort(
    folder: Path,
    name: str,
    *,
    n_patients: int,
    encoders: Mapping[str, float],
    prefix: str = "",
    n_tiles: int = 6,
    dim: int = 8,
    bias: float = 0.0,
) -> Path:
    """Write ``name.csv`` and the bags of its slides in one folder per encoder.

    ``encoders`` are the shifts of the second class's tiles by name of the encoder; every encoder
    has noise of its own for the slides, and one part of it in common. ``bias`` is added to all.
    """
    rng = np.random.default_rng(len(prefix))
    rows = ["image_id,patient_id,label,center_id,sex,scanner"]
    for number in range(n_patients):
        label = number % 2
        slide_id = f"{prefix}{number:03d}_0"
        common = 0.4 * rng.normal()
        for order, (encoder, shift) in enumerate(encoders.items()):
            bag = make_bag(slide_id, n_tiles=n_tiles, dim=dim + order, seed=order)
            bag.features[:] += np.float16(shift * label + bias + common)
            meta = replace(bag.meta, fingerprint=replace(bag.meta.fingerprint, encoder=encoder))
            (folder / "bags" / encoder).mkdir(parents=True, exist_ok=True)
            write_bag(folder / "bags" / encoder / f"{slide_id}.h5", replace(bag, meta=meta))
        rows.append(
            f"{slide_id},{prefix}{number:03d},{('CE', 'LAA')[label]},c{number % 3},"
            f"{'fm'[number // 2 % 2]},s{number // 4 % 2}"
        )
    table = folder / f"{name}.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def train_on(
    folder: Path,
    table: Path,
    encoder: str,
    *,
    run: str = "",
    config: TrainConfig = FAST,
    **options: Any,
) -> Path:
    """Train ``runs/<encoder>``, or a run of another name, on the bags of an encoder."""
    cohort = read_cohort(table, labelled=True)
    path = folder / "runs" / (run or encoder)
    train_run(
        cohort, load_patient_bags(cohort, find_bags(folder / "bags" / encoder)), path,
        config=config, report=False, **{"n_folds": 3, "seed": 0, **options},
    )  # fmt: skip
    return path


def write_judged_run(
    folder: Path,
    logits: np.ndarray,
    labels: Sequence[str],
    *,
    fold: np.ndarray | None = None,
    classes: Sequence[str] = ("CE", "LAA"),
    patient_ids: Sequence[str] = (),
    content: str = "content",
) -> Path:
    """Write what a finished run tells of its patients, without heads.

    ``logits`` of the second of two classes have shape (repeats, patients), and so has ``fold``.
    """
    ids = list(patient_ids) or [f"p{number}" for number in range(len(labels))]
    n_repeats = len(logits)
    folds = np.tile(np.arange(len(ids)) % 4, (n_repeats, 1)) if fold is None else fold
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    of_repeats = []
    for repeat in range(n_repeats):
        proba = 1 / (1 + np.exp(-logits[repeat]))
        columns = dict(zip(classes, (1 - proba, proba), strict=True))
        of_repeats.append(
            pd.DataFrame({
                "repeat": repeat, "fold": folds[repeat], "patient_id": ids, "label": labels,
                "center_id": "", "n_slides": 1, "n_tiles": 4,
                **{f"{kind}_{name}": p for kind in ("calibrated", "raw")
                   for name, p in columns.items()},
            })
        )  # fmt: skip
    pd.concat(of_repeats).to_csv(folder / "judged.csv", index=False)
    slides = pd.DataFrame({"slide_id": [f"{name}_0" for name in ids], "patient_id": ids})
    slides.assign(content_id=[f"{content} of {name}" for name in ids]).to_csv(
        folder / "slides.csv", index=False
    )
    return folder
