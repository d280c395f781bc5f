"""Advice of functions to those who call them: each message is followed, and arrives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.multioutput import MultiOutputClassifier

from cli.viewer.slides import check_slide_size
from features.bags import store_writer
from features.bags.h5 import find_bags, read_bag, read_meta, write_bag
from features.bags.store import BagStore, open_bags
from features.bags.store_writer import write_store
from features.errors import MilError
from features.filters.classifier import TileFilter
from features.tiling.stain import MacenkoNormalizer
from mil import MILClassifier
from mil.calibration import build_calibrator, calibrator_from_dict
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.data.covariates import with_covariates
from mil.data.features import OnDiskFeatures
from mil.data.filtered_bags import apply_tile_filter
from mil.data.splits import make_folds, read_folds, write_folds
from mil.heads.whitening import fit_pca_whitening
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.fakes import FakeSlide, make_bag, make_filter, write_cohort
from tests.features.tiling.test_stain import GLASS, concentrations, stained
from tests.mil.training.test_ensemble import noise_cohort

FAST = {"n_members": 2, "n_components": 8, "fixed_steps": 5, "n_folds": 3}
QUICK = TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=2)


def follow(wrong: Callable[[], object], advice: str, then: Callable[[], object]) -> None:
    """Call what fails with an advice, and then what it says."""
    with pytest.raises(MilError) as caught:
        wrong()
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)
    then()


def pack(folder: Path, store: Path) -> None:
    write_store(folder, store, overwrite=True, on_bag=lambda done, total: None)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_cohort(folder, n_patients=15, shift=0.8)
    rows = (folder / "train.csv").read_text().splitlines()
    ages = [f"{row},{40 + 7 * int(row.split(',')[1]) % 31}" for row in rows[1:]]
    (folder / "ages.csv").write_text("\n".join([f"{rows[0]},age", *ages]) + "\n")
    return folder


def drawn() -> tuple[list[np.ndarray], np.ndarray]:
    bags, cohort = noise_cohort(18, 1, shift=0.6)
    return list(bags.features.values()), np.array(cohort.classes)[cohort.labels]


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ({"calibrator": None}, "Or take a single head, such as head='gated'.",
         {"calibrator": None, "head": "gated"}),
        ({"n_folds": 12, "head": "gated"}, "Use fewer folds, or calibrator=None.",
         {"n_folds": 3, "head": "gated"}),
        ({"n_folds": 12, "head": "gated"}, "Use fewer folds, or calibrator=None.",
         {"n_folds": 12, "head": "gated", "calibrator": None}),
    ],
)  # fmt: skip
def test_advice_of_the_classifier_leads_to_a_fit(
    wrong: dict[str, object], advice: str, then: dict[str, object]
) -> None:
    follow(
        lambda: MILClassifier(**FAST | wrong).fit(*drawn()), advice,
        lambda: MILClassifier(**FAST | then).fit(*drawn()),
    )  # fmt: skip


def test_several_labels_are_wrapped() -> None:
    bags, labels = drawn()
    several = np.column_stack([labels == labels[0], np.arange(len(labels)) % 2])
    model = MILClassifier(**FAST | {"head": "gated"}, calibrator=None)
    follow(
        lambda: model.fit(bags, several),
        "For several labels per bag, wrap it: sklearn.multioutput.MultiOutputClassifier.",
        lambda: MultiOutputClassifier(model).fit(bags, several),
    )


def test_a_class_of_few_patients_is_calibrated_on_fewer_folds() -> None:
    logits, labels = np.linspace(-2, 2, 12)[:, None] * [1.0, -1.0], np.arange(12) % 2
    few = np.r_[0:12:2, 1]  # one of the second class
    follow(
        lambda: build_calibrator("platt").fit(logits[few], labels[few]),
        "Use fewer folds or more patients.",
        lambda: build_calibrator("platt").fit(logits, labels),
    )


def test_a_calibrator_of_an_earlier_version_is_replaced_by_platt() -> None:
    follow(
        lambda: calibrator_from_dict({"kind": "beta", "slopes": [1.0], "bias": [0.0]}),
        "Train the run again with --calibrator platt.",
        lambda: build_calibrator("platt"),
    )


def test_folds_are_read_from_a_finished_run(study: Path, tmp_path: Path) -> None:
    cohort = read_cohort(study / "train.csv", labelled=True)
    write_folds(
        tmp_path / "folds.csv", make_folds(cohort, by="patient", n_folds=3, n_repeats=1, seed=0)
    )
    follow(
        lambda: read_folds(study / "train.csv", cohort), "Name the folder of a finished run.",
        lambda: read_folds(tmp_path / "folds.csv", cohort),
    )  # fmt: skip


def test_a_run_with_covariates_predicts_a_cohort_that_has_them(study: Path, tmp_path: Path) -> None:
    cohort = with_covariates(read_cohort(study / "ages.csv", labelled=True), ["age"])
    bags = load_patient_bags(cohort, find_bags(study / "bags"))
    train_run(cohort, bags, tmp_path / "run", n_folds=3, report=False,
              config=TrainConfig(n_members=1, n_components=4, fixed_steps=2))  # fmt: skip
    bundle, new = load_bundle(tmp_path / "run"), read_cohort(study / "ages.csv", labelled=False)
    assert bundle.covariates is not None
    covariates = bundle.covariates.covariates
    prior = np.array([0.5, 0.5])
    follow(
        lambda: predict(bundle, new, study / "bags", prior=prior),
        "In Python: mil.data.covariates.with_covariates(cohort, bundle.covariates.covariates).",
        lambda: predict(bundle, with_covariates(new, covariates), study / "bags", prior=prior),
    )


def test_bags_that_were_read_are_given_by_their_path_to_be_filtered(
    study: Path, tmp_path: Path
) -> None:
    cohort = read_cohort(study / "train.csv", labelled=True)
    bags = load_patient_bags(cohort, find_bags(study / "bags"))
    options = {"config": QUICK, "n_folds": 3, "report": False, "unlabelled": study / "train.csv"}
    follow(
        lambda: train_run(cohort, bags, tmp_path / "a", **options),
        "Give the path, or 'unlabelled' as bags and bags behind their filter.",
        lambda: train_run(cohort, study / "bags", tmp_path / "b", **options),
    )


def test_a_filter_does_not_drop_views_when_they_are_read(tmp_path: Path) -> None:
    cohort = read_cohort(write_cohort(tmp_path, n_patients=6, shift=0.8, n_views=2), labelled=True)
    bags = load_patient_bags(cohort, find_bags(tmp_path / "bags"))
    tile_filter = make_filter(n_slides=8, dim=bags.fingerprint.dim)

    def apply(given: TileFilter | None) -> object:
        return apply_tile_filter(bags, cohort, bags_dir=tmp_path / "bags", tile_filter=given)

    follow(
        lambda: apply(tile_filter), "Embed with both: 'mil embed --views N --filter FILE'.",
        lambda: apply(None),
    )  # fmt: skip


def test_bags_are_left_alone_while_they_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "bags"
    folder.mkdir()
    for name in "ab":
        write_bag(folder / f"{name}.h5", make_bag(name))
    pack(folder, tmp_path / "bags.zarr")
    old = BagStore(tmp_path / "bags.zarr")["a"]
    pack(folder, tmp_path / "bags.zarr")
    follow(
        lambda: read_bag(old), "Leave bags alone while they are read.",
        lambda: read_bag(open_bags(tmp_path / "bags.zarr")["a"]),
    )  # fmt: skip
    info = store_writer._read_infos(find_bags(folder))["a"]
    write_bag(folder / "a.h5", make_bag("a", n_tiles=7))
    follow(
        lambda: store_writer._read_unchanged(folder / "a.h5", info),
        "Wait until no program writes them any more, and pack again.",
        lambda: pack(folder, tmp_path / "bags.zarr"),
    )
    files = {"p": (folder / "a.h5",)}
    follow(
        lambda: OnDiskFeatures(files, {"p": 4}, dim=8)["p"],
        "Do not change bags while they are trained on.",
        lambda: OnDiskFeatures(files, {"p": 7}, dim=8)["p"],
    )


def test_a_store_that_cannot_be_written_is_packed_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("the bucket\nis full")

    def of_study() -> None:
        pack(study / "bags", tmp_path / "bags.zarr")

    with monkeypatch.context() as patched:
        patched.setattr(store_writer._StoreWriter, "_write_table", full)
        follow(of_study, "Check free space and permissions there; then pack again.", lambda: None)
    of_study()


def test_large_numbers_are_scaled_down_to_be_whitened() -> None:
    tiles = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    follow(
        lambda: fit_pca_whitening({"a": tiles * np.float32(1e25)}, ["a"], 2),
        "Scale them down before training.",
        lambda: fit_pca_whitening({"a": tiles}, ["a"], 2),
    )


def test_a_slide_of_one_stain_is_left_as_it_is() -> None:
    one = np.full((64, 64, 3), GLASS, np.uint8)
    two = stained(concentrations(128, seed=1))
    follow(
        lambda: MacenkoNormalizer(one, glass_rgb=GLASS, where="s"),
        "Embed these slides without --stain-norm.",
        lambda: MacenkoNormalizer(two, glass_rgb=GLASS, where="s"),
    )


def test_the_viewer_is_given_the_slides_of_the_bags(study: Path) -> None:
    meta = read_meta(next(iter(find_bags(study / "bags").values())))
    meta = replace(meta, width_px0=300, height_px0=200)
    wrong, right = (FakeSlide(np.zeros((200, side, 3), np.uint8)) for side in (200, 300))
    follow(
        lambda: check_slide_size(wrong, meta),
        "Name the slides that the bags were made from with --slides.",
        lambda: check_slide_size(right, meta),
    )
