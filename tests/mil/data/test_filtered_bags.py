"""Bags behind a tile filter: no test patient has a part in it, and bundles store it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.bags.h5 import find_bags, read_bag, write_bag
from features.errors import FilterError
from features.filters.classifier import (
    EmbeddingSpec,
    LabelledTiles,
    TileFilter,
    save_filter_copy,
    write_filter,
)
from features.filters.training import fit_filter
from mil.calibration.priors import balanced
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from mil.data.filtered_bags import FilteredFeatures, apply_tile_filter
from mil.data.splits import patient_folds
from mil.errors import RunError
from mil.evaluation.baselines import embedding_baselines
from mil.inference.attention import explain_patients
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.training import fold_jobs
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.cross_validation import (
    calibrated_probabilities,
    cross_validate,
    inner_folds,
    nested_calibrators,
)
from mil.training.fold_jobs import FoldJob
from mil.training_run import train_run
from tests.fakes import FINGERPRINT, make_bag, make_examples, make_filter, write_cohort

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=10, max_epochs=3)
SEEN = tuple(f"{number:03d}" for number in range(0, 24, 2))
"""Patients whose slides the filter learned from, besides six slides of nobody here."""


def world(folder: Path) -> tuple[PatientBags, Cohort]:
    """Bags of 24 patients; the first three of twelve tiles of a slide are to be dropped."""
    cohort = read_cohort(write_cohort(folder, n_patients=24, shift=0.8), labelled=True)
    for path in find_bags(folder / "bags").values():
        bag = read_bag(path)
        bag.features[:3] += np.float16(3)
        write_bag(path, bag)
    return load_patient_bags(cohort, find_bags(folder / "bags")), cohort


def known_examples() -> LabelledTiles:
    return make_examples(n_slides=18, dim=16, slide_ids=[f"{name}_0" for name in SEEN])


def fitted(examples: LabelledTiles) -> TileFilter:
    return fit_filter(examples, spec=EmbeddingSpec.from_fingerprint(replace(FINGERPRINT, dim=16)))


def through(bags: PatientBags, cohort: Cohort, tile_filter: TileFilter) -> PatientBags:
    return apply_tile_filter(bags, cohort, bags_dir=Path("bags"), tile_filter=tile_filter)


def poisoned(examples: LabelledTiles, patient_ids: tuple[str, ...]) -> LabelledTiles:
    """The same with other tiles and the opposite answers of these patients."""
    slides = [s.slide_id.split("_")[0] in patient_ids for s in examples.slides]
    rows = np.array(slides)[examples.slide_index]
    return replace(
        examples,
        features=np.where(rows[:, None], np.float16(2), examples.features),
        drop=np.where(rows, ~examples.drop, examples.drop),
    )


def test_tiles_are_dropped_as_they_are_read_and_counted(tmp_path: Path) -> None:
    bags, cohort = world(tmp_path)
    found = through(bags, cohort, fitted(known_examples()))
    assert isinstance(found.features, FilteredFeatures)
    for patient_id in cohort.patient_ids:
        tiles = bags.features[patient_id]
        kept = ~found.features.tile_filter.predict_drop(tiles)
        assert (found.features[patient_id] == tiles[kept]).all()
        assert found.n_tiles[patient_id] == kept.sum()
    n_dropped = found.features.n_dropped
    assert n_dropped == sum(bags.n_tiles.values()) - sum(found.n_tiles.values())
    assert 0.2 < n_dropped / sum(bags.n_tiles.values()) < 0.45
    fewer = found.subset(cohort.patient_ids[:2])
    assert fewer.patient_ids == cohort.patient_ids[:2]
    assert fewer.n_tiles == {name: found.n_tiles[name] for name in cohort.patient_ids[:2]}


def test_bags_that_stay_in_their_files_are_filtered_alike(tmp_path: Path) -> None:
    bags, cohort = world(tmp_path)
    lazy = load_patient_bags(cohort, find_bags(tmp_path / "bags"), most_bytes=0)
    tile_filter = fitted(known_examples())
    kept, stored = (through(each, cohort, tile_filter) for each in (bags, lazy))
    assert kept.n_tiles == stored.n_tiles
    held_out = [each.refit_without(SEEN[:3]).subset(SEEN[3:6]) for each in (kept, stored)]
    for name in SEEN[3:6]:
        assert (held_out[0].features[name] == held_out[1].features[name]).all()


def test_the_store_that_trains_a_fold_holds_no_filter_that_saw_its_test_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags, cohort = world(tmp_path)
    found = through(bags, cohort, fitted(known_examples()))
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    inner = inner_folds(cohort, folds, by="patient", n_folds=3, seed=0)
    trained: list[tuple[set[str], set[str]]] = []
    train = fold_jobs.train_ensembles

    def watch(stores: Sequence[PatientBags], *args: Any, **kwargs: Any) -> object:
        for store in stores:
            assert isinstance(store.features, FilteredFeatures)
            assert store.tile_filter is store.features.tile_filter
            slides = store.features.tile_filter.examples.slides
            trained.append((set(store.patient_ids), {s.slide_id.split("_")[0] for s in slides}))
        return train(stores, *args, **kwargs)

    monkeypatch.setattr(fold_jobs, "train_ensembles", watch)
    cross_validate(found, cohort, folds, config=FAST, seed=0)
    nested_calibrators(found, cohort, folds, inner=inner, config=FAST, seed=0)
    assert len(trained) == 3 + 9
    for learned, examples_of in trained:
        tested = set(cohort.patient_ids) - learned
        assert not tested & examples_of
        assert learned.intersection(SEEN) <= examples_of
        assert {f"s{number}" for number in range(12, 18)} <= examples_of


def test_examples_of_a_fold_s_test_patients_change_nothing_that_judges_them(tmp_path: Path) -> None:
    bags, cohort = world(tmp_path)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)[:1]
    inner = inner_folds(cohort, folds, by="patient", n_folds=3, seed=0)
    tested = np.isin(cohort.patient_ids, folds[0].test_ids)
    assert set(folds[0].test_ids) & set(SEEN)
    results = []
    for examples in (known_examples(), poisoned(known_examples(), folds[0].test_ids)):
        store = through(bags, cohort, fitted(examples))
        out = cross_validate(store, cohort, folds, config=FAST, seed=0)
        calibrators = nested_calibrators(store, cohort, folds, inner=inner, config=FAST, seed=0)
        nested = calibrated_probabilities(out, calibrators)
        results.append((store.tile_filter, out.logits[0, tested], nested[0, tested]))
    assert results[0][0].sha256 != results[1][0].sha256  # type: ignore[union-attr]
    assert results[0][1].tobytes() == results[1][1].tobytes()
    assert results[0][2].tobytes() == results[1][2].tobytes()
    assert np.isfinite(results[0][2]).all()


def test_the_baseline_is_judged_through_the_same_filters(tmp_path: Path) -> None:
    bags, cohort = world(tmp_path)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    store = through(bags, cohort, fitted(known_examples()))
    out = cross_validate(store, cohort, folds, config=FAST, seed=0)
    asked: list[set[str]] = []
    held_out = PatientBags.refit_without
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PatientBags, "refit_without",
            lambda self, names: (asked.append(set(names)), held_out(self, names))[1],
        )  # fmt: skip
        proba = embedding_baselines(store, out, calibrator="platt", seed=0)
    assert asked == [set(fold.test_ids) for fold in folds]
    for values in proba.values():
        np.testing.assert_allclose(values.sum(axis=2), 1)


def test_a_patient_left_without_a_tile_in_a_fold_is_judged_on_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags, cohort = world(tmp_path)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    emptied = folds[0].test_ids[0]
    store = through(bags, cohort, fitted(known_examples()))
    held_out = PatientBags.refit_without

    def empty_one(self: PatientBags, names: Any) -> PatientBags:
        found = held_out(self, names)
        features = dict(found.features)
        features[emptied] = features[emptied][:0]
        return replace(found, features=features)

    monkeypatch.setattr(PatientBags, "refit_without", empty_one)
    out = cross_validate(store, cohort, folds, config=FAST, seed=0)
    row = out.patient_ids.index(emptied)
    np.testing.assert_array_equal(out.logits[0, row], 0)
    proba = embedding_baselines(store, out, calibrator="platt", seed=0)
    assert all(np.isfinite(values).all() for values in proba.values())


def test_patients_the_filter_did_not_see_need_no_other_filter(tmp_path: Path) -> None:
    bags, cohort = world(tmp_path)
    store = through(bags, cohort, make_filter(n_slides=8, dim=16))
    assert store.refit_without(cohort.patient_ids) is store
    assert bags.refit_without(cohort.patient_ids) is bags


def test_folds_that_leave_too_few_examples_are_refused(tmp_path: Path) -> None:
    bags, cohort = world(tmp_path)
    few = fitted(make_examples(n_slides=4, dim=16, slide_ids=["000_0", "001_0", "002_0"]))
    with pytest.raises(FilterError, match=r"\(000_0, 001_0, 002_0\)"):
        through(bags, cohort, few).refit_without(["000", "001", "002"])


def test_a_filter_of_other_embeddings_is_refused(tmp_path: Path) -> None:
    bags, cohort = world(tmp_path)
    other = replace(FINGERPRINT, dim=16, encoder="resnet50")
    tile_filter = fit_filter(known_examples(), spec=EmbeddingSpec.from_fingerprint(other))
    with pytest.raises(
        FilterError, match=r"made with --backbone resnet50; expected --backbone fake as in the bags"
    ):
        through(bags, cohort, tile_filter)


def embedded_with(folder: Path, tile_filter: TileFilter) -> tuple[PatientBags, Cohort]:
    """Return bags embedded with a filter, and write its copy to their folder."""
    _, cohort = world(folder)
    for path in find_bags(folder / "bags").values():
        bag = read_bag(path)
        made = replace(bag.meta.fingerprint, filter_sha256=tile_filter.sha256)
        write_bag(path, replace(bag, meta=replace(bag.meta, fingerprint=made)))
    save_filter_copy(folder / "bags", tile_filter)
    return load_patient_bags(cohort, find_bags(folder / "bags")), cohort


def test_bags_embedded_with_a_filter_keep_it_and_are_not_filtered_again(tmp_path: Path) -> None:
    tile_filter = make_filter(n_slides=8, dim=16)
    bags, cohort = embedded_with(tmp_path, tile_filter)
    for given in (None, tile_filter):
        found = apply_tile_filter(bags, cohort, bags_dir=tmp_path / "bags", tile_filter=given)
        assert found.features is bags.features
        assert found.tile_filter is not None
        assert found.tile_filter.sha256 == tile_filter.sha256
    with pytest.raises(FilterError, match=r"bags embedded with filter .*without --filter"):
        apply_tile_filter(
            bags, cohort, bags_dir=tmp_path / "bags", tile_filter=fitted(known_examples())
        )
    next((tmp_path / "bags").glob("filter-*")).unlink()
    with pytest.raises(FilterError, match=r"filter-.*there is no such file"):
        apply_tile_filter(bags, cohort, bags_dir=tmp_path / "bags", tile_filter=None)


def test_bags_embedded_with_a_filter_that_saw_their_patients_are_refused(tmp_path: Path) -> None:
    bags, cohort = embedded_with(tmp_path, fitted(known_examples()))
    message = r"12 slides of 12 patients .*000_0, 002_0.*'mil train --filter'"
    with pytest.raises(FilterError, match=message):
        apply_tile_filter(bags, cohort, bags_dir=tmp_path / "bags", tile_filter=None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PatientBags, Cohort]:
    """A folder with bags and a run that was trained on them through a filter."""
    folder = tmp_path_factory.mktemp("trained")
    bags, cohort = world(folder)
    store = through(bags, cohort, fitted(known_examples()))
    train_run(
        cohort, store, folder / "run", n_folds=3, n_repeats=1, seed=0, config=FAST,
        on_head=lambda done, total: None,
    )  # fmt: skip
    return folder, store, cohort


def test_a_run_applies_its_filter_where_it_predicts_and_explains(
    trained: tuple[Path, PatientBags, Cohort],
) -> None:
    folder, store, cohort = trained
    run = load_bundle(folder / "run")
    assert run.tile_filter is not None
    assert run.tile_filter.sha256 == store.tile_filter.sha256  # type: ignore[union-attr]
    predictions = predict(run, cohort, folder / "bags", prior=balanced(run.classes))
    assert {p.patient_id: sum(p.n_tiles.values()) for p in predictions} == store.n_tiles
    assert {p.matched_training_patient for p in predictions} == set(cohort.patient_ids)
    assert {p.patient_id for p in predictions if p.used_for_filter} == set(SEEN)
    explanations = list(explain_patients(run, cohort, folder / "bags", prior=balanced(run.classes)))
    assert {e.prediction.patient_id: e.n_tiles for e in explanations} == store.n_tiles


def test_sets_of_a_run_with_a_filter_are_of_the_tiles_left_and_without_a_guarantee(
    tmp_path: Path, trained: tuple[Path, PatientBags, Cohort]
) -> None:
    folder, _, _ = trained
    run = load_bundle(folder / "run")
    assert run.sets.conformal.guaranteed_coverage(0.6) is not None
    assert run.guaranteed_coverage(0.6) is None
    bag = make_bag("new_0", dim=16, shift=0.8)
    bag.features[:3] += np.float16(3)
    write_bag(tmp_path / "new_0.h5", bag)
    (tmp_path / "new.csv").write_text("image_id,patient_id\nnew_0,new\n")
    (prediction,) = predict(
        run, read_cohort(tmp_path / "new.csv", labelled=False), tmp_path,
        prior=balanced(run.classes), coverage=0.6,
    )  # fmt: skip
    left = run.apply_filter(read_bag(tmp_path / "new_0.h5")).features
    assert len(left) < len(bag.features)
    kept = run.sets.predict_set(run.sets.fold_logits(left), coverage=0.6)
    assert prediction.prediction_set == tuple(np.array(run.classes)[kept])


def test_a_run_says_what_was_dropped_and_whom_the_filter_knew(
    trained: tuple[Path, PatientBags, Cohort],
) -> None:
    folder, store, _ = trained
    notes = json.loads((folder / "run" / "notes.json").read_text())["notes"]
    assert any(note.startswith("tiles dropped by the filter: ") for note in notes)
    assert any("trained on slides of 12 of these patients" in note for note in notes)
    assert store.tile_filter is not None
    assert store.tile_filter.sha256[:12] in (folder / "run" / "MODEL_CARD.md").read_text()


def test_a_run_whose_filter_was_exchanged_is_damaged(
    tmp_path: Path, trained: tuple[Path, PatientBags, Cohort]
) -> None:
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    write_filter(tmp_path / "run" / "filter.safetensors", make_filter(n_slides=8, dim=16))
    with pytest.raises(RunError, match=r"filter\.safetensors was changed"):
        load_bundle(tmp_path / "run")


def test_folds_with_another_filter_are_not_read(tmp_path: Path) -> None:
    bags, cohort = world(tmp_path)
    fold = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)[0]
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    job = FoldJob(folds=[fold], labels=labels, n_classes=2, config=FAST, seeds=[(0,)])
    first = fitted(known_examples())
    stores = (
        bags,
        through(bags, cohort, first),
        through(bags, cohort, replace(first, threshold=0.51)),
    )
    names = {Checkpoints(tmp_path / "kept", store).keys(job)[0] for store in stores}
    assert len(names) == 3


def test_bags_with_views_or_normalised_stains_take_no_filter_when_they_are_read(
    tmp_path: Path,
) -> None:
    cohort = read_cohort(write_cohort(tmp_path, n_patients=6, shift=0.8, n_views=1), labelled=True)
    bags = load_patient_bags(cohort, find_bags(tmp_path / "bags"))
    with pytest.raises(FilterError, match="augmented views of tiles"):
        through(bags, cohort, fitted(known_examples()))
    alike = replace(bags, views={}, fingerprint=replace(bags.fingerprint, views="", stain_norm="x"))
    with pytest.raises(FilterError, match="without stain normalisation"):
        through(alike, cohort, fitted(known_examples()))
