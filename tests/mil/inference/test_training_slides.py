from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mil.data.copies import SlideIdentity
from mil.inference.training_slides import (
    linked_patients,
    read_training_slides,
    write_training_slides,
)


def slide(patient: str, file: str = "", embeddings: str = "", tiles: str = "", n_tiles: int = 3):
    return SlideIdentity(
        slide_id=f"{patient}_{file}", patient_id=patient, n_tiles=n_tiles, content_id=file,
        features_sha256=embeddings, tiles_sha256=tiles,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "is_linked"),
    [
        (slide("a", "f"), slide("b", "f"), True),
        (slide("a", "f", "e"), slide("b", "g", "e"), True),
        (slide("a", "f", "e", "t"), slide("b", "g", "h", "t"), True),
        (slide("a", "f"), slide("a", "f"), False),
        (slide("a", "f", "e"), slide("b", "g", "h"), False),
        (slide("a"), slide("b"), False),  # nothing is known of either
        (slide("a", "f", "e", n_tiles=0), slide("b", "g", "e", n_tiles=0), False),
    ],
)
def test_patients_are_linked_by_any_equal_content(
    one: SlideIdentity, other: SlideIdentity, is_linked: bool
) -> None:
    assert bool(linked_patients([one, other])) == is_linked


def sketched(first: int) -> SlideIdentity:
    return replace(
        slide(f"p{first}", f"f{first}"), tile_sketch=np.arange(first, 9, dtype=np.uint64)
    )


def test_sketches_come_back_and_link_patients(tmp_path: Path) -> None:
    slides = [sketched(0), slide("a"), sketched(1)]
    write_training_slides(tmp_path / "slides.csv", slides)
    back = read_training_slides(tmp_path / "slides.csv")
    assert back == tuple(slides)
    assert [own.tile_sketch.tolist() for own in back] == [
        own.tile_sketch.tolist() for own in slides
    ]
    assert linked_patients(back) == (("p0", "p1"),)
    (tmp_path / "slides.safetensors").unlink()  # as in runs trained earlier
    assert not any(len(own.tile_sketch) for own in read_training_slides(tmp_path / "slides.csv"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("keys", np.arange(3, dtype=np.uint64)), ("keys", np.zeros((3, 6), np.uint64)),
        ("keys", np.zeros(17, np.float32)), ("counts", np.array([9, 8])),
        ("counts", np.array([20, -11, 8])), ("counts", np.array([[9, 0, 8]])),
    ],
)  # fmt: skip
def test_sketches_that_do_not_fit_the_slides_are_refused(
    tmp_path: Path, name: str, values: np.ndarray
) -> None:
    write_training_slides(tmp_path / "slides.csv", [sketched(0), slide("a"), sketched(1)])
    path = tmp_path / "slides.safetensors"
    save_file({**load_file(path), name: values}, path)
    with pytest.raises(ValueError, match=r"slides\.safetensors: "):
        read_training_slides(tmp_path / "slides.csv")
