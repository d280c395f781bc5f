"""The script that compares settings on painted scans, and what it paints."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from mil.multilabel.table import LabelTable
from mil.training.config import TrainConfig
from tests.benchmarks.small_scans import Setting, World, measure
from tests.heads_in_jpeg import KINDS, LABELS, paint_head, write_cohort
from tests.mil.training.test_ensemble import noise_cohort


def test_every_kind_of_bleed_is_bright_and_inside_the_skull() -> None:
    for kind in KINDS:
        well, ill = (
            paint_head(np.random.default_rng(3), height=0.5, kinds=kinds, side_px=200).astype(int)
            for kinds in ((), (kind,))
        )
        raised = uniform_filter((ill - well).astype(float), 5) > 20  # noise is evened out
        assert 0.0005 < raised.mean() < 0.1, kind
        assert not raised[:8].any()


def test_a_cohort_has_grey_jpegs_and_a_row_a_slice(tmp_path: Path) -> None:
    write_cohort(tmp_path, n_scans=3, seed=1, side_px=40)
    with (tmp_path / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    counts = Counter(row["slide_id"] for row in rows)
    assert len(counts) == 3
    assert all(20 <= count <= 40 for count in counts.values())
    for row in rows:
        assert int(row["any"]) == max(int(row[kind]) for kind in KINDS)
    with Image.open(tmp_path / rows[0]["source"]) as picture:
        assert (picture.mode, picture.size, picture.format) == ("L", (40, 40), "JPEG")


def test_a_setting_is_judged_by_its_scores_and_by_where_it_looks() -> None:
    bags, cohort = noise_cohort(30, 1, shift=0.2)
    truth = np.repeat(cohort.labels[:, None], len(LABELS), axis=1)
    marks = {}
    for name, has_it in zip(cohort.patient_ids, cohort.labels.tolist(), strict=True):
        marks[name] = np.zeros(len(bags.features[name]), np.int8)
        marks[name][0] = has_it
        bags.features[name][0] += np.float16(3 * has_it)
    world = World(
        table=LabelTable(patients=cohort, names=LABELS, truth=truth),
        bags=bags,
        taught=dict.fromkeys(LABELS, replace(bags, instance_labels=marks)),
    )
    train = TrainConfig(n_members=1, fixed_steps=20)
    plain, taught = (
        measure(Setting(train=train, taught=taught), [world], world) for taught in (False, True)
    )
    assert plain["auroc"]["mean"] > 0.8  # type: ignore[index]
    assert taught["attention"]["auroc"] > 0.8  # type: ignore[index]
    assert set(plain["auroc"]) == {"mean", "by cohort", *LABELS}  # type: ignore[call-overload]
