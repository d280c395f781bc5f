from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.bags.h5 import find_bags
from features.errors import BagError
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from mil.data.splits import patient_folds
from mil.errors import RunError, SplitError
from mil.evaluation.metrics import auroc, weighted_log_loss
from mil.heads import whitening
from mil.heads.ensemble import predict_members
from mil.heads.tile_moments import TileMoments
from mil.heads.whitening import fit_pca_whitening
from mil.training import fold_jobs, trainer
from mil.training.config import TrainConfig
from mil.training.cross_validation import (
    cross_fitted_probabilities,
    cross_validate,
    fit_calibrator,
)
from mil.training.ensemble import Ensemble, train_ensemble
from tests.fakes import FINGERPRINT, write_cohort

FAST = TrainConfig(head="gated", n_members=2, n_components=8, fixed_steps=20, max_epochs=6)


def noise_cohort(n_patients: int, seed: int, *, shift: float = 0.0) -> tuple[PatientBags, Cohort]:
    """Patients in memory; those of the second class have tiles raised by ``shift``."""
    from mil.data.cohort import Patient

    rng = np.random.default_rng(seed)
    patients, features = [], {}
    for number in range(n_patients):
        label = number % 3 == 0
        name = f"p{number:03d}"
        tiles = rng.normal(size=(int(rng.integers(5, 15)), 16)) + shift * label
        features[name] = tiles.astype(np.float16)
        patients.append(
            Patient(patient_id=name, slide_ids=(name,), label="ba"[not label], center_id=None)
        )
    cohort = Cohort(path=Path("noise.csv"), patients=tuple(patients), classes=("a", "b"))
    bags = PatientBags(features=features, fingerprint=replace(FINGERPRINT, dim=16), slides=())
    return bags, cohort


def labels_of(cohort: Cohort) -> dict[str, int]:
    return dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))


def states(heads: tuple[torch.nn.Module, ...]) -> list[bytes]:
    return [value.numpy().tobytes() for head in heads for value in head.state_dict().values()]


def test_bags_of_a_patient_are_joined_and_missing_ones_listed(tmp_path: Path) -> None:
    table = write_cohort(tmp_path, n_patients=12, shift=0.0, n_tiles=4)
    (tmp_path / "bags" / "001_0.h5").unlink()
    bags = load_patient_bags(read_cohort(table, labelled=True), find_bags(tmp_path / "bags"))
    assert bags.features["000"].shape == (8, 16)
    assert bags.features["001"].shape == (0, 16)
    assert bags.missing_slides == ("001_0",)
    assert "001" not in bags.nonempty()


def test_bags_made_differently_are_not_mixed(tmp_path: Path) -> None:
    from features.bags.h5 import write_bag
    from tests.fakes import make_bag

    table = write_cohort(tmp_path, n_patients=6, shift=0.0)
    write_bag(tmp_path / "bags" / "003_0.h5", make_bag("003_0", dim=5))
    with pytest.raises(
        BagError,
        match=r"003_0\.h5: made with embeddings of 5 numbers; expected embeddings of 16 numbers",
    ):
        load_patient_bags(read_cohort(table, labelled=True), find_bags(tmp_path / "bags"))


def test_a_cohort_none_of_whose_slides_has_a_bag_is_refused(tmp_path: Path) -> None:
    table = write_cohort(tmp_path, n_patients=6, shift=0.0)
    with pytest.raises(BagError, match="none of its 8 slides has a bag"):
        load_patient_bags(read_cohort(table, labelled=True), {"other": tmp_path})


def test_a_restricted_store_does_not_hold_the_others() -> None:
    bags, _ = noise_cohort(9, 0)
    part = bags.subset(["p002", "p001"])
    assert part.patient_ids == ("p002", "p001")
    with pytest.raises(KeyError):
        part.features["p003"]


def test_whitening_gives_uncorrelated_components_every_patient_counting_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(whitening, "_TOTAL_TILES", 10_000)  # all
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6)) * [9, 5, 3, 2, 1, 0.5]
    # More bags than are taken at once, far from 0, of very different sizes.
    bags = [
        ((rng.normal(size=(int(n), 6)) + rng.normal(size=6)) @ mixing.T + 300).astype(np.float32)
        for n in rng.integers(1, 200, size=40)
    ]
    fitted = fit_pca_whitening(
        {str(i): bag for i, bag in enumerate(bags)}, [*map(str, range(40))], 4
    )
    found = [bag.astype(np.float64) - fitted.mean.numpy() for bag in bags]
    np.testing.assert_allclose(sum(bag.mean(axis=0) for bag in found) / 40, 0, atol=1e-3)
    moments = sum(bag.T @ bag / len(bag) for bag in found) / 40
    matrix = fitted.matrix.double().numpy()
    values = np.linalg.eigvalsh(moments)[::-1][:4]
    np.testing.assert_allclose(
        matrix.T @ moments @ matrix, np.diag(values / (values + values.mean())), atol=1e-4
    )


def test_training_sets_that_overlap_are_whitened_as_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6)) * [9, 5, 3, 2, 1, 0.5]
    bags = {
        f"p{i:03d}": ((rng.normal(size=(30, 6)) + rng.normal(size=6)) @ mixing.T + 300).astype(
            np.float32
        )
        for i in range(300)
    }
    names = list(bags)
    # The last is so small that more tiles of each of its patients are used.
    sets = [names[60:], names[:60] + names[120:], names, names[:10]]
    together = whitening.fit_pca_whitenings(bags, sets, 4)
    for own, (found,) in zip(sets, together, strict=True):
        alone = fit_pca_whitening(bags, own, 4)
        torch.testing.assert_close(found.mean, alone.mean)
        torch.testing.assert_close(found.matrix, alone.matrix, rtol=1e-4, atol=1e-5)


def test_nothing_of_a_patient_reaches_the_whitening_of_a_training_set_without_it() -> None:
    rng = np.random.default_rng(0)
    bags = {name: rng.normal(size=(20, 6)).astype(np.float32) for name in "abcdefgh"}
    poisoned = {**bags, "a": 1e4 * bags["a"]}
    sets = [list("bcdefgh"), list("abcdef")]
    clean, other = (whitening.fit_pca_whitenings(of, sets, 4) for of in (bags, poisoned))
    assert torch.equal(clean[0][0].matrix, other[0][0].matrix)
    assert torch.equal(clean[0][0].mean, other[0][0].mean)
    assert not torch.equal(clean[1][0].matrix, other[1][0].matrix)


@pytest.mark.parametrize("room", [0, 2**28])
def test_moments_of_a_bag_are_computed_once_if_there_is_room(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(whitening, "_MOST_MOMENT_BYTES", room)
    read: list[str] = []
    original = TileMoments.of

    def watch(bags: Any, names: Any, n_tiles: int, **kwargs: Any) -> TileMoments:
        read.extend(names)
        return original(bags, names, n_tiles, **kwargs)

    monkeypatch.setattr(TileMoments, "of", watch)
    bags = {name: np.eye(6, dtype=np.float32) for name in "abcd"}
    known: dict[whitening.MomentsKey, TileMoments] = {}
    first = whitening.fit_pca_whitenings(bags, [list("abc"), list("bcd")], 2, known=known)
    assert sorted(read) == (list("abcd") if room else list("abbccd"))
    read.clear()
    again = whitening.fit_pca_whitenings(bags, [list("abc"), list("bcd")], 2, known=known)
    assert sorted(read) == ([] if room else list("abbccd"))
    assert all(torch.equal(a.matrix, b.matrix) for (a,), (b,) in zip(first, again, strict=True))


def test_embeddings_too_large_to_be_whitened_are_refused() -> None:
    tiles = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with pytest.raises(BagError, match="squares are beyond float32"):
        fit_pca_whitening({"a": tiles * np.float32(1e25)}, ["a"], 2)


@pytest.mark.parametrize("setting", [{"learning_rate": 1e30}, {"weight_decay": 1e30}])
def test_training_that_diverges_is_refused_with_the_settings(setting: dict[str, float]) -> None:
    bags, cohort = noise_cohort(12, seed=0)
    config = replace(FAST, **setting)
    with pytest.raises(RunError, match=r"1e\+30.*nearer to the defaults, 0.001 and 0.01"):
        train_ensemble(bags, labels_of(cohort), seed=(1,), n_classes=2, config=config)


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_global_stream_alone() -> None:
    bags, cohort = noise_cohort(30, 1, shift=0.5)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, same, other = (
        train_ensemble(bags, labels_of(cohort), n_classes=2, config=FAST, seed=(seed,))
        for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert states(first.heads) == states(same.heads)
    assert states(first.heads) != states(other.heads)


def test_a_poisoned_test_fold_changes_nothing_in_what_is_trained() -> None:
    bags, cohort = noise_cohort(36, 2, shift=0.6)
    fold = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)[0]
    poisoned = PatientBags(
        features={
            name: np.full_like(tiles, np.nan) if name in fold.test_ids else tiles
            for name, tiles in bags.features.items()
        },
        fingerprint=bags.fingerprint,
        slides=(),
    )
    turned = {
        name: 1 - label if name in fold.test_ids else label
        for name, label in labels_of(cohort).items()
    }
    seen: list[Ensemble] = []
    original = fold_jobs.train_ensembles

    def watch(*args: object, **kwargs: object) -> object:
        ensembles = original(*args, **kwargs)  # type: ignore[arg-type]
        seen.extend(ensembles)
        return ensembles

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold_jobs, "train_ensembles", watch)
        cross_validate(bags, cohort, [fold], config=FAST, seed=4)
        patients = tuple(
            replace(patient, label=cohort.classes[turned[patient.patient_id]])
            for patient in cohort.patients
        )
        cross_validate(poisoned, replace(cohort, patients=patients), [fold], config=FAST, seed=4)
    assert states(seen[0].heads) == states(seen[1].heads)


@pytest.mark.usefixtures("two_inner_folds")
def test_early_stopping_keeps_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "_STEPS_PER_VALIDATION", 1)
    bags, cohort = noise_cohort(60, 3, shift=0.15)
    settings = replace(FAST, early_stopping=True, max_epochs=25, patience=25, learning_rate=0.02)
    ensemble = train_ensemble(bags, labels_of(cohort), n_classes=2, config=settings, seed=(0,))
    from mil.data.splits import stratified_fold_ids

    parts = stratified_fold_ids(cohort.labels, n_folds=2, seed=(0,))
    for member, head in enumerate(ensemble.heads):
        curve = [r.val_loss for r in ensemble.history if r.member == member]
        stop = np.flatnonzero(parts == member)
        logits = np.concatenate(
            [predict_members([head], bags.features[cohort.patient_ids[index]])[0] for index in stop]
        ) * float(head.logit_scale)  # stopping looks at logits before they are divided
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert weighted_log_loss(proba, cohort.labels[stop]) == pytest.approx(min(curve), rel=1e-3)
        assert curve[-1] > min(curve)


def test_a_single_head_is_stopped_on_a_fifth_of_the_patients() -> None:
    bags, cohort = noise_cohort(75, 3)
    settings = replace(FAST, n_members=1, early_stopping=True)
    ensemble = train_ensemble(bags, labels_of(cohort), n_classes=2, config=settings, seed=(0,))
    assert np.isfinite([r.train_loss for r in ensemble.history]).all()
    # An epoch has four steps; the loss is looked at every ten.
    validated = [r.epoch for r in ensemble.history if np.isfinite(r.val_loss)]
    assert validated == [0, 2, 4]


@pytest.mark.usefixtures("two_inner_folds")
def test_without_early_stopping_all_patients_are_learned_from() -> None:
    bags, cohort = noise_cohort(18, 4)
    ensemble = train_ensemble(bags, labels_of(cohort), n_classes=2, config=FAST, seed=(0,))
    assert np.isnan([record.val_loss for record in ensemble.history]).all()
    assert len(ensemble.history) == FAST.n_members * FAST.fixed_steps // 2  # 2 steps an epoch
    with pytest.raises(SplitError, match="at least 10 of each"):
        train_ensemble(
            bags, labels_of(cohort), n_classes=2, config=replace(FAST, early_stopping=True),
            seed=(0,),
        )  # fmt: skip


def test_a_large_cohort_is_learned_from_once_at_least() -> None:
    bags, cohort = noise_cohort(48, 4)
    settings = replace(FAST, batch_patients=1, fixed_steps=20)
    ensemble = train_ensemble(bags, labels_of(cohort), n_classes=2, config=settings, seed=(0,))
    assert [record.epoch for record in ensemble.history] == [0, 0]


def test_a_class_without_tiles_cannot_be_learned() -> None:
    bags, cohort = noise_cohort(9, 5)
    only_a = [p.patient_id for p in cohort.patients if p.label == "a"]
    with pytest.raises(SplitError, match="at least one of each"):
        train_ensemble(bags.subset(only_a), labels_of(cohort), n_classes=2, config=FAST, seed=(0,))


def test_every_patient_is_judged_once_a_repeat() -> None:
    bags, cohort = noise_cohort(30, 6)
    folds = patient_folds(cohort, n_folds=3, n_repeats=2, seed=0)
    found = cross_validate(bags, cohort, folds, config=FAST, seed=0)
    assert found.logits.shape == (2, 30, 2)
    assert np.isfinite(found.logits).all()
    assert (found.fold >= 0).all()
    proba = cross_fitted_probabilities(found)
    np.testing.assert_allclose(proba.sum(axis=2), 1)


def test_a_patients_own_label_does_not_reach_its_cross_fitted_calibrator() -> None:
    bags, cohort = noise_cohort(45, 7, shift=0.5)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    found = cross_validate(bags, cohort, folds, config=FAST, seed=0)
    tested = found.fold[0] == 1
    turned = replace(found, labels=np.where(tested, 1 - found.labels, found.labels))
    np.testing.assert_array_equal(
        cross_fitted_probabilities(found)[0, tested], cross_fitted_probabilities(turned)[0, tested]
    )


@pytest.mark.parametrize("head", ["attention", "gated", "mean"])
def test_a_planted_signal_is_found(head: str) -> None:
    bags, cohort = noise_cohort(60, 8, shift=0.6)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    settings = replace(FAST, head=head, fixed_steps=80, max_epochs=40)
    found = cross_validate(bags, cohort, folds, config=settings, seed=0)
    proba = cross_fitted_probabilities(found)[0]
    assert auroc(proba, found.labels) > 0.85
    assert weighted_log_loss(proba, found.labels) < 0.55


@pytest.mark.ci
def test_without_signal_held_out_patients_are_judged_at_chance() -> None:
    # Two-sided: a leak would lift the mean AUROC, a reversed sign would press it down.
    areas, losses = [], []
    for seed in range(24):
        bags, cohort = noise_cohort(60, 100 + seed)
        ids = cohort.patient_ids
        known = replace(cohort, patients=cohort.patients[:36])
        folds = patient_folds(known, n_folds=3, n_repeats=1, seed=seed)
        store = bags.subset(known.patient_ids)
        found = cross_validate(store, known, folds, config=FAST, seed=seed)
        calibrator = fit_calibrator(found, np.ones(found.fold.shape, bool))
        final = train_ensemble(store, labels_of(known), n_classes=2, config=FAST, seed=(seed, 9))
        logits = np.stack(
            [predict_members(final.heads, bags.features[name])[0].mean(axis=0) for name in ids[36:]]
        )
        proba = calibrator.predict_proba(logits)
        areas.append(auroc(logits, cohort.labels[36:]))
        losses.append(weighted_log_loss(proba, cohort.labels[36:]))
    error = np.std(areas, ddof=1) / np.sqrt(len(areas))
    assert error < 0.04
    assert abs(np.mean(areas) - 0.5) < 3 * error
    assert abs(np.mean(losses) - np.log(2)) < 0.05
