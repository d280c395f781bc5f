"""Typicality: validity of the p-values, bad bags, and comparison without a patient's own tiles."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from mil.data.bags import PatientBags, SlideRecord
from mil.errors import InputError
from mil.typicality import TypicalityReference, read_reference, write_reference
from mil.typicality.projection import N_COMPONENTS, project_tiles, spread_indices
from tests.fakes import FINGERPRINT


def make_tiles(
    rng: np.random.Generator, *, n_tiles: int = 20, dim: int = 96, shift: float = 0.0
) -> np.ndarray:
    """Return tiles around a mean of their patient; ``shift`` moves half of their numbers."""
    mean = 1 + 0.3 * rng.normal(size=dim) + shift * (np.arange(dim) % 2)
    return (mean + rng.normal(size=(n_tiles, dim))).astype(np.float32)


def make_bags(patients: dict[str, np.ndarray], *, linked: tuple[str, ...] = ()) -> PatientBags:
    """Return bags of one slide per patient; those ``linked`` have the same slide file."""
    dim = next(iter(patients.values())).shape[1]
    slides = tuple(
        SlideRecord(
            slide_id=name, patient_id=name, n_tiles=len(tiles), features_sha256=name,
            content_id="shared" if name in linked else name,
        )
        for name, tiles in patients.items()
    )  # fmt: skip
    return PatientBags(features=patients, fingerprint=replace(FINGERPRINT, dim=dim), slides=slides)


def fit(
    patients: dict[str, np.ndarray],
    *,
    centres: list[str] | None = None,
    linked: tuple[str, ...] = (),
) -> TypicalityReference:
    return TypicalityReference.fit(
        make_bags(patients, linked=linked), centres=centres or [""] * len(patients)
    )


def cohort(n_patients: int, *, seed: int = 0, **tiles: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"p{index}": make_tiles(rng, **tiles) for index in range(n_patients)}


def test_of_patients_like_the_training_patients_the_stated_share_is_marked() -> None:
    n_new, marked = 0, 0
    for seed in range(20):
        rng = np.random.default_rng([seed, 1])
        reference = fit(cohort(39, seed=seed))
        p_values = [reference.score(make_tiles(rng)).p_value for _ in range(20)]
        n_new += len(p_values)
        marked += sum(p <= 0.1 for p in p_values)
    low, high = binom.ppf([0.005, 0.995], n_new, 0.1)
    assert low <= marked <= high


def test_other_patients_are_marked_at_the_smallest_level() -> None:
    reference = fit(cohort(30))
    rng = np.random.default_rng(5)
    for tiles, share in ((make_tiles(rng, shift=4), 0), (-make_tiles(rng), 1)):
        scored = reference.score(tiles)
        assert scored.p_value == reference.min_level == 1 / 31
        assert scored.unlike_share == share  # the first are nearer each other, at another place
        assert scored.distance > reference.distances.max()


def test_a_training_patient_is_compared_without_its_own_tiles() -> None:
    patients = cohort(12)
    reference = fit(patients)
    for name, p_value in zip(reference.patient_ids, reference.p_values, strict=True):
        own = reference.score(patients[name], training_patient=name)
        assert own.p_value == p_value
        assert own.distance > reference.score(patients[name]).distance


def test_patients_who_share_a_slide_are_no_neighbours() -> None:
    patients = cohort(12)
    patients["p1"] = patients["p0"]
    apart, linked = fit(patients), fit(patients, linked=("p0", "p1"))
    assert apart.distances[:2] == pytest.approx([0, 0])
    assert (linked.distances[:2] > 0.1).all()


def test_the_patients_of_other_centres_are_the_only_neighbours_between_centres() -> None:
    patients = cohort(20) | {f"q{i}": t for i, t in enumerate(cohort(20, seed=1, shift=4).values())}
    own = fit(patients, centres=["1"] * 20 + ["2"] * 20)
    assert (own.centre_p_values <= 1 / 21 + 1e-9).mean() > 0.9
    assert (own.p_values > 0.05).mean() > 0.9
    assert np.isnan(fit(cohort(20), centres=["1"] * 20).centre_p_values).all()
    mixed = fit(cohort(40), centres=["1", "2"] * 20)
    assert (mixed.centre_p_values > 0.1).mean() > 0.7


def test_centres_are_compared_as_if_each_had_been_left_out() -> None:
    patients = cohort(12)
    centres = [str(index % 3) for index in range(12)]
    whole = fit(patients, centres=centres)
    for centre in "012":
        rest = {n: t for (n, t), c in zip(patients.items(), centres, strict=True) if c != centre}
        without = fit(rest)
        for index, (name, own) in enumerate(zip(patients, centres, strict=True)):
            if own == centre:
                expected = without.score(patients[name]).p_value
                assert whole.centre_p_values[index] == pytest.approx(expected)


@pytest.mark.parametrize("dim", [1, 3, 64, 65, 1280])
def test_any_length_of_embeddings_can_be_compared(dim: int) -> None:
    reference = fit(cohort(8, dim=dim))
    scored = reference.score(make_tiles(np.random.default_rng(3), dim=dim))
    assert 1 / 9 <= scored.p_value <= 1
    assert reference.core.tiles.shape[1] == min(dim, N_COMPONENTS)


def test_the_projection_keeps_distances_and_is_the_same_for_ever() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(40, 1280)).astype(np.float32)
    unit = tiles / np.linalg.norm(tiles, axis=1, keepdims=True)
    before = np.linalg.norm(unit[:20] - unit[20:], axis=1)
    projected = project_tiles(tiles)
    after = np.linalg.norm(projected[:20] - projected[20:], axis=1)
    assert np.abs(after / before - 1).max() < 0.35
    signs = project_tiles(np.eye(100, dtype=np.float32))[0] * 8
    np.testing.assert_allclose(signs[:8], [1, 1, 1, 1, -1, 1, -1, 1])


@pytest.mark.parametrize(
    "strange",
    [
        np.full((5, 96), np.nan), np.full((5, 96), np.inf), np.full((1, 96), 3.0),
        np.zeros((7, 96)), np.full((4, 96), 1e30), np.full((4, 96), -1e-30),
        np.eye(96)[:1] * 60_000,
    ],
    ids=["NaN", "infinite", "one tile", "zeros", "huge", "tiny", "one number"],
)  # fmt: skip
def test_strange_bags_are_unlike_and_do_no_harm_as_training_patients(strange: np.ndarray) -> None:
    others = cohort(24)
    strange = strange.astype(np.float32)
    scored = fit(others).score(strange)
    # Numbers that are all equal point in the direction of the patients' mean, which is ones.
    is_like = np.isfinite(strange).all() and (strange > 0).all()
    assert scored.p_value == 1 / 25 or is_like
    trained = fit({**others, "strange": strange})
    assert np.isfinite(trained.tile_limit)
    assert trained.score(make_tiles(np.random.default_rng(9))).p_value > 2 / 26


@pytest.mark.parametrize("n_tiles", [1, 9, 300])
def test_training_patients_who_are_all_the_same_mark_whoever_differs(n_tiles: int) -> None:
    tiles = make_tiles(np.random.default_rng(3))[:1].repeat(n_tiles, axis=0)
    tiles[::2] += 1
    reference = fit({f"p{i}": tiles for i in range(20)})
    assert reference.score(tiles).p_value == 1
    assert reference.score(-tiles).p_value == 1 / 21
    assert np.isnan(reference.centre_p_values).all()  # one centre has no other


def test_constant_training_patients_mark_whoever_differs() -> None:
    reference = fit({f"p{i}": np.full((3, 8), 2.0, np.float32) for i in range(20)})
    assert reference.distances.tolist() == [0.0] * 20
    assert reference.score(np.full((2, 8), 5.0, np.float32)).p_value == 1
    assert reference.score(np.eye(8, dtype=np.float32)).p_value == 1 / 21


def test_a_large_bag_is_scored_by_evenly_spaced_tiles() -> None:
    reference = fit(cohort(10))
    one = make_tiles(np.random.default_rng(2), n_tiles=256)
    large = np.lib.stride_tricks.as_strided(
        one, (1_000_000, 96), (0, 4), writeable=False
    )  # the first tile a million times
    scored = reference.score(large)
    assert len(scored.tile_indices) == 256
    assert scored.tile_indices[-1] == 999_999
    assert spread_indices(10, 20).tolist() == list(range(10))


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-12, 1e15, 1e37])
def test_the_size_of_numbers_makes_no_difference(scale: float) -> None:
    tiles = make_tiles(np.random.default_rng(1))
    mixed = np.concatenate([tiles * scale, tiles]).astype(np.float32)
    both = project_tiles(mixed)
    assert np.isfinite(both).all()
    # Numbers below 1e-38 have few digits.
    np.testing.assert_allclose(both[:20], both[20:], atol=0.01 if scale < 1e-38 else 1e-6)


def test_a_thousand_patients_take_less_than_a_megabyte(tmp_path: Path) -> None:
    patients = cohort(1000, n_tiles=6, dim=N_COMPONENTS)
    names = [f"{index:036d}" for index in range(1000)]  # as long as a UUID
    reference = fit(
        dict(zip(names, patients.values(), strict=True)),
        centres=[f"Hospital {index % 9}" for index in range(1000)],
    )
    write_reference(tmp_path, reference)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 0.95e6


def test_memory_does_not_grow_with_tiles() -> None:
    reference = fit(cohort(30, n_tiles=200))
    large = np.tile(make_tiles(np.random.default_rng(2)).astype(np.float16), (5000, 1))
    tracemalloc.start()
    try:
        assert len(reference.tile_distances(large)) == 100_000
        reference.score(large)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20


def test_every_tile_can_be_compared() -> None:
    patients = cohort(10, n_tiles=300)
    reference = fit(patients)
    tiles = make_tiles(np.random.default_rng(2), n_tiles=5000)
    every, scored = reference.tile_distances(tiles), reference.score(tiles)
    assert every.shape == (5000,)
    np.testing.assert_allclose(every[scored.tile_indices], scored.tile_distances, atol=1e-5)
    assert len(reference.tile_distances(tiles[:0])) == 0


def test_one_of_a_hundred_training_tiles_is_unlike() -> None:
    patients = cohort(20, n_tiles=100)
    reference = fit(patients)
    shares = [reference.score(t, training_patient=n).unlike_share for n, t in patients.items()]
    assert np.mean(shares) == pytest.approx(0.01, abs=0.0006)


@pytest.mark.parametrize(
    ("n_patients", "default"), [(60, 0.05), (19, 0.05), (18, 1 / 19), (7, 1 / 8), (400, 0.05)]
)
def test_the_default_level_can_be_reached(n_patients: int, default: float) -> None:
    reference = fit(cohort(n_patients, n_tiles=2))
    assert reference.resolve_level(None) == default
    far = reference.score(-make_tiles(np.random.default_rng(0)))
    assert far.p_value <= default
    with pytest.raises(InputError, match=rf"^typicality 0.001: {n_patients} training patients, .*"
                       r"or a run of 999 patients"):  # fmt: skip
        reference.resolve_level(0.001)
    assert reference.resolve_level(0.3) == 0.3


@pytest.mark.parametrize("level", [0.0, -1.0, float("nan")])
def test_impossible_levels_are_refused(level: float) -> None:
    with pytest.raises(InputError, match="typicality"):
        fit(cohort(8)).resolve_level(level)


def test_a_stored_reference_scores_the_same(tmp_path: Path) -> None:
    patients = cohort(25) | {"=x": np.full((2, 96), np.nan, np.float32)}
    reference = fit(patients, centres=["a", "b"] * 13)
    write_reference(tmp_path, reference)
    again = read_reference(tmp_path)
    for tiles in (make_tiles(np.random.default_rng(4)), patients["p3"]):
        assert again.score(tiles).p_value == reference.score(tiles).p_value
    assert again.patient_ids == reference.patient_ids
    np.testing.assert_array_equal(again.centre_p_values, reference.centre_p_values)
    assert again.score(patients["p3"], training_patient="p3").p_value == reference.p_values[3]
