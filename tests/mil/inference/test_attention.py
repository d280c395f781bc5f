from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features.bags.h5 import find_bags, read_bag, write_bag
from features.errors import BagError
from mil.calibration.priors import balanced
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.heads.ensemble import predict_members
from mil.inference.attention import Explanation, explain_patients, percentiles
from mil.inference.attention_export import tile_table, write_geojson, write_tile_table
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.predict import predict
from mil.reporting.explanation import write_index, write_page
from mil.reporting.explanation_views import SlideView
from mil.reporting.html import folder_name
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.fakes import make_bag, write_cohort

HOSTILE = "\"><script>alert(1)</script>&\n'{{ 7*7 }}%3f#?../x"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bags, a cohort, and runs of two kinds of head."""
    folder = tmp_path_factory.mktemp("world")
    cohort = read_cohort(write_cohort(folder, n_patients=24, shift=0.7), labelled=True)
    bags = load_patient_bags(cohort, find_bags(folder / "bags"))
    for head in ("gated", "additive"):
        train_run(
            cohort, bags, folder / head, n_folds=2, n_repeats=1, seed=0,
            config=TrainConfig(head=head, n_members=2, n_components=8, fixed_steps=15),
            on_head=lambda done, total: None,
        )  # fmt: skip
    for name, n_tiles in (("new_0", 7), ("new_1", 5), ("bare_0", 0)):
        write_bag(
            folder / "bags" / f"{name}.h5",
            make_bag(name, n_tiles=n_tiles, dim=16, seed=3, empty_reason="" if n_tiles else "none"),
        )
    return folder


def explain(world: Path, head: str, *rows: str) -> tuple[ModelBundle, list[Explanation]]:
    table = world / "asked.csv"
    table.write_text("\n".join(["image_id,patient_id", *rows]) + "\n")
    run = load_bundle(world / head)
    cohort = read_cohort(table, labelled=False)
    return run, list(explain_patients(run, cohort, world / "bags", prior=balanced(run.classes)))


@pytest.mark.parametrize("head", ["gated", "additive"])
def test_probabilities_and_shares_are_those_of_inference(world: Path, head: str) -> None:
    run, explanations = explain(world, head, "new_0,new", "new_1,new", "000_0,000", "000_1,000")
    inferred = predict(
        run, read_cohort(world / "asked.csv", labelled=False), world / "bags",
        prior=balanced(run.classes),
    )  # fmt: skip
    for explanation, prediction in zip(explanations, inferred, strict=True):
        assert (explanation.prediction.probabilities == prediction.probabilities).all()
        assert (
            explanation.prediction.matched_training_patient == prediction.matched_training_patient
        )
        for slide in explanation.slides:
            assert slide.share == pytest.approx(
                prediction.attention_share[slide.meta.slide_id], abs=1e-12
            )
        assert sum(slide.share for slide in explanation.slides) == pytest.approx(1)
    matched = [each.prediction.matched_training_patient for each in explanations]
    assert list(map(bool, matched)) == [False, True]


def test_attention_is_the_mean_over_the_heads_of_each_heads_attention(world: Path) -> None:
    run, (explanation,) = explain(world, "gated", "new_0,new", "new_1,new")
    tiles = [read_bag(world / "bags" / f"new_{i}.h5").features for i in range(2)]
    _, attention = predict_members(run.heads, np.concatenate(tiles))
    together = np.concatenate([slide.attention for slide in explanation.slides])
    assert together == pytest.approx(attention.mean(axis=0), rel=1e-6)
    assert together.sum() == pytest.approx(1, abs=1e-12)
    assert explanation.n_tiles == 12
    ranks = np.concatenate([slide.percentile for slide in explanation.slides])
    assert ranks.argsort().tolist() == together.argsort().tolist()
    assert (ranks.min(), ranks.max()) == (pytest.approx(50 / 12), pytest.approx(100 - 50 / 12))


@pytest.mark.parametrize("head", ["gated", "additive"])
def test_contributions_sum_to_the_logits_that_are_calibrated(world: Path, head: str) -> None:
    run, (explanation,) = explain(world, head, "new_0,new", "new_1,new")
    tiles = [read_bag(world / "bags" / f"new_{i}.h5").features for i in range(2)]
    logits = predict_members(run.heads, np.concatenate(tiles))[0].mean(axis=0)
    assert explanation.logits == pytest.approx(logits, abs=1e-5)
    proba = run.calibrator.predict_proba(np.asarray(explanation.logits)[None])[0]
    assert proba == pytest.approx(explanation.prediction.probabilities, abs=1e-5)
    contributions = [explanation.slides[0].signed_contribution(index) for index in range(2)]
    assert contributions[0] == pytest.approx(-np.asarray(contributions[1]), abs=1e-12)


def test_without_contributions_there_are_no_columns_of_them(world: Path) -> None:
    _, (explanation,) = explain(world, "gated", "new_0,new")
    slide = replace(explanation.slides[0], contributions=None)
    assert replace(explanation, slides=(slide,)).logits is None
    assert slide.signed_contribution(0) is None
    assert not any("contribution" in name for name in tile_table(slide, classes="ab"))


def test_most_and_least_attended_tiles_never_overlap(world: Path) -> None:
    _, (explanation,) = explain(world, "gated", "new_0,new")
    slide = explanation.slides[0]
    for top in (1, 3, 5, 20):
        most, least = slide.top(top).tolist(), slide.bottom(top).tolist()
        assert not set(most) & set(least)
        assert len(most) + len(least) == min(7, 2 * top)
        values = slide.attention[most + least[::-1]]
        assert (np.diff(values) <= 0).all()


def test_patients_without_tiles_are_explained_by_the_prior(world: Path) -> None:
    _, explanations = explain(world, "gated", "bare_0,bare", "gone_0,gone")
    assert [each.prediction.status for each in explanations] == ["no_tissue", "no_bag"]
    assert all(each.slides == () and each.n_tiles == 0 for each in explanations)


def test_bags_of_another_make_alone_are_refused_and_one_among_others_is_not_used(
    world: Path,
) -> None:
    write_bag(world / "bags" / "odd_0.h5", make_bag("odd_0", dim=8))
    with pytest.raises(
        BagError,
        match="made with embeddings of 8 numbers; expected embeddings of 16 numbers as in the run",
    ):
        explain(world, "gated", "odd_0,odd")
    _, (of_new, of_odd) = explain(world, "gated", "new_0,new", "odd_0,odd")
    assert of_new.slides
    assert not of_odd.slides
    assert of_odd.prediction.status == "bag_refused"


@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)))
def test_percentiles_keep_order_and_average_50(values: np.ndarray) -> None:
    ranks = percentiles(values)
    assert ranks.mean() == pytest.approx(50)
    assert ((ranks > 0) & (ranks < 100)).all()
    order = values.argsort()
    assert (np.diff(ranks[order]) >= 0).all()
    assert len(set(ranks.tolist())) == len(set(values.tolist()))


def test_exports_hold_every_tile_in_level_0_px(world: Path, tmp_path: Path) -> None:
    run, (explanation,) = explain(world, "additive", "new_0,new")
    (slide,) = explanation.slides
    write_tile_table(tmp_path / "t.csv", slide, classes=run.classes)
    table = pd.read_csv(tmp_path / "t.csv")
    assert list(table) == [
        "slide_id", "x_px0", "y_px0", "attention", "percentile", "contribution_CE",
        "contribution_LAA", "unlike",
    ]  # fmt: skip
    assert table[["x_px0", "y_px0"]].to_numpy().tolist() == slide.coords_px0.tolist()
    assert table["attention"].to_numpy() == pytest.approx(slide.attention)
    write_geojson(tmp_path / "t.geojson", slide, span_px0=(448.0, 448.0), classes=run.classes)
    features = json.loads((tmp_path / "t.geojson").read_text())["features"]
    assert len(features) == 7
    for feature, (x, y), attention in zip(
        features, slide.coords_px0.tolist(), slide.attention.tolist(), strict=True
    ):
        ring = feature["geometry"]["coordinates"][0]
        assert ring == [[x, y], [x + 448, y], [x + 448, y + 448], [x, y + 448], [x, y]]
        assert feature["properties"]["objectType"] == "tile"
        assert feature["properties"]["measurements"]["attention"] == attention


@pytest.mark.parametrize(
    "name",
    ["..", ".", "../../etc", "a/b", HOSTILE, "index.html", "049194", "x" * 300, "é" * 300, "a\nb"],
)
def test_a_patients_folder_stays_in_the_folder_of_pages(name: str, tmp_path: Path) -> None:
    folder = tmp_path / folder_name(name)
    folder.mkdir()
    assert folder.resolve().parent == tmp_path.resolve()


def test_different_patients_have_different_folders_that_windows_can_have_too() -> None:
    names = ["con", "Con", "CON.1", "nul", "com1", "a.", "a", "a ", "é" * 300, "é" * 301, ".a"]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert folder.partition(".")[0].lower() not in {"con", "nul", "com1"}
        assert not folder.endswith((".", " "))


def test_pages_escape_names_and_say_what_must_be_known(world: Path, tmp_path: Path) -> None:
    quoted = HOSTILE.replace('"', '""')
    rows = (f'new_0,"{quoted}"', "gone_0,000", "000_0,000", "bare_0,000")
    run, explanations = explain(world, "additive", *rows)
    for each, name in zip(explanations, ("a.html", "b.html"), strict=True):
        write_page(
            tmp_path / name, each, [SlideView(slide=slide) for slide in each.slides], run=run,
            prior=balanced(run.classes),
        )  # fmt: skip
    write_index(
        tmp_path / "index.html", [each.prediction for each in explanations], run=run,
        prior=balanced(run.classes), thumbnails={},
    )  # fmt: skip
    hostile, seen = (tmp_path / name for name in ("a.html", "b.html"))
    for page in (hostile, tmp_path / "index.html"):
        assert "<script>alert" not in page.read_text()
        assert "{{ 7*7 }}" in page.read_text()
    text = seen.read_text()
    assert "Seen in training" in text
    assert "Heads not trained on it predict" in text
    assert "Slide gone_0 has no bag" in text
    assert "Slide bare_0 has no tile" in text
    assert "Seen in training" not in hostile.read_text()
    assert f'<data value="{explanations[0].prediction.probabilities[0]}">' in hostile.read_text()
    assert "over all slides they are" not in hostile.read_text()
