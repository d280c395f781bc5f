from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from features.slides import synthetic
from features.slides.synthetic import (
    GLASSES_RGB,
    make_cohort,
    render_slide,
    write_slide,
    write_synthetic_cohort,
)
from features.tiling.tissue import TissueSettings, segment_tissue


def test_a_plan_holds_both_classes_in_every_centre_and_ids_like_numbers() -> None:
    plan = make_cohort(n_patients=60, seed=0, signal=1.0)
    table = pd.DataFrame([vars(slide) for slide in plan])
    patients = table.drop_duplicates("patient_id")
    assert len(patients) == 60
    assert (table.groupby("patient_id").size() == 2).sum() == 12
    assert patients.groupby("center_id")["label"].nunique().tolist() == [2, 2, 2]
    assert patients["patient_id"].str.fullmatch(r"[0-9a-f]{6}").all()
    assert patients["patient_id"].str.fullmatch(r"0\d{5}").any()
    assert patients["patient_id"].str.fullmatch(r"\d{3}e\d{2}").any()
    assert plan == make_cohort(n_patients=60, seed=0, signal=1.0)
    assert plan != make_cohort(n_patients=60, seed=1, signal=1.0)


@pytest.mark.parametrize(
    ("signal", "low", "high", "shares"),
    [
        (0.0, 0.46, 0.54, (0.5, 0.5)),
        (0.5, 0.62, 0.72, (0.28, 0.72)),
        (1.0, 0.75, 0.85, (0.06, 0.94)),
    ],
)
def test_mixture_and_focus_separate_the_classes_as_far_as_asked(
    signal: float, low: float, high: float, shares: tuple[float, float]
) -> None:
    from sklearn.metrics import roc_auc_score

    plan = make_cohort(n_patients=3000, seed=2, signal=signal)
    area = roc_auc_score([s.label == "LAA" for s in plan], [s.red_share for s in plan])
    assert low < area < high
    table = pd.DataFrame([(s.patient_id, s.label, s.has_focus) for s in plan])
    of_patients = table.groupby([1, 0])[2].sum()
    assert of_patients.max() == 1  # on one of the patient's slides
    np.testing.assert_allclose(of_patients.groupby(level=1).mean(), shares, atol=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_a_focus_covers_a_few_tiles_inside_the_tissue(seed: int) -> None:
    rng = np.random.default_rng(seed)
    island = synthetic._island(rng, (200, 220))  # of 16 px each
    focus = synthetic._focus(rng, island) > 0.5
    assert 1 < focus.sum() * 16**2 / 224**2 < 8
    assert (island[focus] > 0.5).mean() > 0.9


def test_a_focus_shows_on_the_slide_and_only_there() -> None:
    (slide, *_) = make_cohort(n_patients=1, seed=0, signal=1.0)
    small = replace(slide, width_px0=1800, height_px0=1700, white_share=0.0)
    violet = []
    for has_focus in (True, False):
        pixels = render_slide(replace(small, has_focus=has_focus)).astype(int)
        violet.append(((pixels[..., 2] > pixels[..., 0] + 10) & (pixels[..., 1] < 120)).sum())
    assert violet[0] > 224**2 / 2 > 100 * violet[1]


def test_every_slide_has_tissue_for_sixty_tiles() -> None:
    for slide in make_cohort(n_patients=4, seed=6, signal=1.0):
        pixels = render_slide(slide)[::16, ::16].astype(int)
        tissue = (np.abs(pixels - slide.glass_rgb).max(axis=2) > 20).sum() * 16**2
        assert tissue > 60 * 224**2


def test_glass_is_no_matter_of_the_class() -> None:
    plan = make_cohort(n_patients=3000, seed=3, signal=1.0)
    table = pd.DataFrame([(s.glass_rgb, s.label == "LAA") for s in plan], columns=["glass", "laa"])
    shares = table.groupby("glass")["laa"].mean()
    assert shares.max() - shares.min() < 0.1


@pytest.mark.ci
def test_the_same_plan_renders_the_same_image_with_tissue_as_on_real_slides() -> None:
    for plan in make_cohort(n_patients=6, seed=4, signal=1.0)[:4]:
        pixels = render_slide(plan)
        assert pixels.shape == (plan.height_px0, plan.width_px0, 3)
        np.testing.assert_array_equal(pixels, render_slide(plan))
        assert (pixels[:40, :40] == plan.glass_rgb).all()
        mask = segment_tissue(
            pixels[::32, ::32], downsample=32, mpp=0.25, settings=TissueSettings()
        )
        assert mask.background_rgb == plan.glass_rgb
        assert 0.05 < mask.mask.mean() < 0.5


def test_slides_are_written_as_promised(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.tif", np.full((300, 200, 3), GLASSES_RGB[1], np.uint8))
    with tifffile.TiffFile(tmp_path / "s.tif") as tiff:
        page = tiff.pages[0]
        assert len(tiff.pages) == 1
        assert (page.tilewidth, page.tilelength) == (128, 128)
        assert page.compression.name == "LZW"
        assert page.tags["XResolution"].value == (10, 1)
        assert page.tags["ResolutionUnit"].value == 3


def test_a_cohort_is_painted_with_tables_and_not_painted_twice(tmp_path: Path) -> None:
    plan = [
        type(slide)(**{**vars(slide), "width_px0": 400, "height_px0": 400})
        for slide in make_cohort(n_patients=6, seed=5, signal=1.0)
    ]
    painted: list[int] = []
    options = {"n_test_patients": 2, "n_workers": 1, "on_slide": lambda: painted.append(1)}
    write_synthetic_cohort(tmp_path, plan, **options)
    assert len(painted) == len(plan) == len(list((tmp_path / "slides").glob("*.tif")))
    train, test, labels = (
        pd.read_csv(tmp_path / name, dtype=str)
        for name in ("train.csv", "test.csv", "test_labels.csv")
    )
    assert list(train.columns) == [
        "image_id",
        "center_id",
        "patient_id",
        "image_num",
        "label",
        "age",
        "atrial_fibrillation",
    ]
    assert "label" not in test
    assert test["patient_id"].nunique() == 2
    assert labels["image_id"].tolist() == test["image_id"].tolist()
    assert not set(train["patient_id"]) & set(test["patient_id"])
    first = tmp_path / "slides" / f"{plan[0].slide_id}.tif"
    first.write_bytes(b"kept")
    write_synthetic_cohort(tmp_path, plan, **options)
    assert first.read_bytes() == b"kept"
