"""Tile filters: fitted by patient or slide, fitted again without some, written and read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from features.errors import FilterError
from features.filters.classifier import (
    EmbeddingSpec,
    ExampleSlide,
    LabelledTiles,
    TileFilter,
    apply_filter,
    check_compatible,
    read_filter,
    write_filter,
)
from features.filters.training import _assign_folds, fit_filter, refit_filter
from tests.fakes import FINGERPRINT, make_bag, make_examples, make_filter

SPEC = EmbeddingSpec.from_fingerprint(FINGERPRINT)


def test_a_filter_drops_what_looks_like_what_was_dropped() -> None:
    tile_filter = make_filter(n_slides=8)
    tiles = np.random.default_rng(9).normal(size=(60, 8))
    assert tile_filter.predict_drop(tiles + 3).mean() > 0.95
    assert tile_filter.predict_drop(tiles).mean() < 0.05
    counts = tile_filter.held_out
    assert counts is not None
    assert counts.n_dropped_rightly + counts.n_kept_wrongly == tile_filter.examples.drop.sum()
    assert counts.n_dropped_wrongly + counts.n_kept_rightly == (~tile_filter.examples.drop).sum()
    assert counts.precision > 0.9
    assert counts.recall > 0.9


def test_what_a_slide_looks_like_is_no_merit_where_slides_are_held_out() -> None:
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(20), 6)
    centres = rng.normal(size=(20, 8))[slide] * 5
    examples = LabelledTiles(
        features=(centres + rng.normal(size=(120, 8))).astype(np.float16),
        drop=slide % 2 == 0,  # The label follows from the slide alone.
        slide_index=slide,
        slides=tuple(ExampleSlide(slide_id=f"s{number}") for number in range(20)),
    )
    counts = fit_filter(examples, spec=SPEC).held_out
    assert counts is not None
    assert 0.2 < counts.recall < 0.8
    assert 0.2 < counts.precision < 0.8


def test_slides_of_one_patient_are_one_group() -> None:
    slides = tuple(
        ExampleSlide(slide_id=f"s{i}", patient_id="p" if i < 2 else "") for i in range(4)
    )
    examples = LabelledTiles(
        features=np.zeros((4, 8), np.float16), drop=np.zeros(4, bool), slide_index=np.arange(4),
        slides=slides,
    )  # fmt: skip
    groups = examples.groups()
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 3


@given(
    st.lists(st.sampled_from(["drop", "both", "keep"]), min_size=4, max_size=25).filter(
        lambda kinds: sum(k != "keep" for k in kinds) > 1 and sum(k != "drop" for k in kinds) > 1
    )
)
def test_whatever_part_is_held_out_the_others_teach_both_answers(kinds: list[str]) -> None:
    rows = [
        (number, answer)
        for number, kind in enumerate(kinds)
        for answer in {"drop": [True], "keep": [False], "both": [True, False]}[kind]
    ]
    groups, drop = np.array([g for g, _ in rows]), np.array([d for _, d in rows])
    parts = _assign_folds(drop, groups)
    for group in np.unique(groups):
        assert len(set(parts[groups == group].tolist())) == 1
    for part in np.unique(parts):
        assert set(drop[parts != part].tolist()) == {True, False}


def test_too_few_slides_of_an_answer_are_refused() -> None:
    examples = make_examples(n_slides=8)
    one_sided = replace(examples, drop=examples.drop & (examples.slide_index < 2))
    with pytest.raises(FilterError, match=r"tiles to drop from 2 patients or slides; expected 3"):
        fit_filter(one_sided, spec=SPEC)


def test_slides_taken_out_have_no_influence_on_what_is_fitted_again() -> None:
    clean = make_examples(n_slides=8)
    poisoned = replace(
        clean,
        features=np.where((clean.slide_index < 2)[:, None], np.float16(-7), clean.features),
        drop=np.where(clean.slide_index < 2, ~clean.drop, clean.drop),
    )
    out = frozenset(clean.slides[:2])
    first, second = (
        refit_filter(fit_filter(examples, spec=SPEC), without=out) for examples in (clean, poisoned)
    )
    assert first.coef.tobytes() == second.coef.tobytes()
    assert (first.intercept, first.strength) == (second.intercept, second.strength)
    assert not out & set(first.examples.slides)
    assert len(first.examples.features) == (clean.slide_index >= 2).sum()
    whole = fit_filter(clean, spec=SPEC)
    assert whole.coef.tobytes() != first.coef.tobytes()
    assert refit_filter(whole, without=frozenset()) is whole


def test_where_too_little_is_left_the_slides_and_the_way_out_are_named() -> None:
    tile_filter = make_filter(n_slides=4)
    with pytest.raises(FilterError, match=r"\(s0, s1, s2\).*Add examples from more slides"):
        refit_filter(tile_filter, without=frozenset(tile_filter.examples.slides[:3]))


def test_a_patient_is_known_by_id_by_slide_and_by_content() -> None:
    slides = (
        ExampleSlide(slide_id="a", patient_id="p"),
        ExampleSlide(slide_id="b", patient_id="p"),
        ExampleSlide(slide_id="c", content_id="xyz"),
    )
    examples = LabelledTiles(
        features=np.zeros((3, 8), np.float16), drop=np.zeros(3, bool), slide_index=np.arange(3),
        slides=slides,
    )  # fmt: skip
    assert examples.slides_of_patient("p", slide_ids=(), content_ids=()) == set(slides[:2])
    assert examples.slides_of_patient("q", slide_ids=("b",), content_ids=()) == set(slides[:2])
    assert examples.slides_of_patient("q", slide_ids=("d",), content_ids=("xyz",)) == {slides[2]}
    assert not examples.slides_of_patient("q", slide_ids=("d",), content_ids=("",))


def test_a_tile_is_classified_by_itself() -> None:
    tile_filter = make_filter(n_slides=8)
    tiles = np.random.default_rng(1).normal(1.5, 1, size=(2500, 8)).astype(np.float16)
    together = tile_filter.predict_drop(tiles)
    assert 0.1 < together.mean() < 0.9
    assert together[::40].tolist() == [
        bool(tile_filter.predict_drop(row[None])[0]) for row in tiles[::40]
    ]
    assert tile_filter.predict_drop(tiles[:0]).shape == (0,)


def test_a_higher_threshold_drops_less() -> None:
    tiles = np.random.default_rng(1).normal(1.5, 1, size=(400, 8))
    tile_filter = make_filter(n_slides=8)
    n_dropped = [
        replace(tile_filter, threshold=t).predict_drop(tiles).sum() for t in (0.05, 0.5, 0.95)
    ]
    assert n_dropped[0] > n_dropped[1] > n_dropped[2]


def test_a_written_filter_comes_back_and_equal_ones_have_equal_bytes(tmp_path: Path) -> None:
    tile_filter = make_filter(n_slides=8)
    write_filter(tmp_path / "a.safetensors", tile_filter)
    write_filter(tmp_path / "b.safetensors", make_filter(n_slides=8))
    content = (tmp_path / "a.safetensors").read_bytes()
    assert content == (tmp_path / "b.safetensors").read_bytes()
    again = read_filter(tmp_path / "a.safetensors")
    assert again.sha256 == tile_filter.sha256 == hashlib.sha256(content).hexdigest()
    assert again.examples.slides == tile_filter.examples.slides
    assert again.held_out == tile_filter.held_out
    tiles = np.random.default_rng(1).normal(1.5, 1, size=(50, 8))
    assert (again.predict_drop(tiles) == tile_filter.predict_drop(tiles)).all()
    assert refit_filter(
        again, without=frozenset(tile_filter.examples.slides[:1])
    ).coef.tobytes() == (
        refit_filter(tile_filter, without=frozenset(tile_filter.examples.slides[:1])).coef.tobytes()
    )


def write_changed(path: Path, **changes: object) -> Path:
    """Write a filter with other tensors or metadata, and return its path."""
    tile_filter = make_filter(n_slides=8)
    write_filter(path, tile_filter)
    tensors = load_file(path)
    described = json.loads(_metadata(path)) | {
        key: value for key, value in changes.items() if key not in tensors
    }
    tensors |= {key: value for key, value in changes.items() if key in tensors}
    save_file(tensors, path, metadata={"mil-filter": json.dumps(described)})
    return path


def _metadata(path: Path) -> str:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return str(header["__metadata__"]["mil-filter"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"format version 2; expected 1\. Install"),
        ({"threshold": 1.0}, r"threshold of 1"),
        ({"intercept": float("inf")}, r"NaN or infinity"),
        ({"intercept": 10**400}, r"not readable \(int too large"),
        ({"coef": np.zeros(7)}, r"coef is float64 of shape \(7,\)"),
        ({"drop": np.zeros(3, bool)}, r"drop is bool of shape \(3,\)"),
        ({"slide": np.full(80, 99)}, r"beyond the 8"),
        ({"recipe": {"encoder": "x"}}, r"not readable"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(FilterError, match=message):
        read_filter(write_changed(tmp_path / "f.safetensors", **changes))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    with pytest.raises(FilterError, match="there is no such file"):
        read_filter(path)
    save_file({"coef": np.zeros(3)}, path)
    with pytest.raises(FilterError, match="another kind of file"):
        read_filter(path)
    write_filter(path, make_filter(n_slides=8))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FilterError, match="not readable"):
        read_filter(path)
    for content in (b"\x80\x04a pickle", b"image_id,patient_id,label\n", b"<!DOCTYPE html>"):
        path.write_bytes(content)
        with pytest.raises(FilterError, match="another kind of file"):
            read_filter(path)
    for content in (b"", b"\x80\x04pickle"):
        path.write_bytes(content)
        with pytest.raises(FilterError, match="not readable"):
            read_filter(path)


def test_a_filter_of_other_tiles_is_refused_and_the_field_is_named() -> None:
    tile_filter = make_filter(n_slides=8)
    check_compatible(tile_filter, replace(FINGERPRINT, overlap_px=9), source="the bags")
    for changes, words in (
        ({"target_mpp": 1.0}, r"--mpp 0\.5; expected --mpp 1 as in the bags"),
        ({"weights_sha256": "f" * 64}, r"made with weights 000"),
        ({"encoder": "resnet50"}, r"made with --backbone fake; expected --backbone resnet50"),
    ):
        with pytest.raises(FilterError, match=words):
            check_compatible(tile_filter, replace(FINGERPRINT, **changes), source="the bags")  # type: ignore[arg-type]


def test_a_filtered_bag_counts_what_is_gone() -> None:
    tile_filter: TileFilter = make_filter(n_slides=8)
    bag = make_bag("s", n_tiles=30)
    bag.features[:10] += np.float16(4)
    filtered = apply_filter(tile_filter, bag)
    dropped = tile_filter.predict_drop(bag.features)
    assert 8 <= dropped.sum() <= 14
    assert (filtered.features == bag.features[~dropped]).all()
    assert (filtered.coords_px0 == bag.coords_px0[~dropped]).all()
    assert json.loads(filtered.meta.left_out) == {"filter": dropped.sum()}
    assert filtered.meta.empty_reason == ""
    empty = apply_filter(tile_filter, replace(bag, features=np.full_like(bag.features, 5)))
    assert empty.meta.empty_reason == "all 30 tiles dropped by the filter"
