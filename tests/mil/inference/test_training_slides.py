from __future__ import annotations

import pytest

from mil.inference.training_slides import TrainingSlide, linked_patients


def slide(patient: str, file: str = "", embeddings: str = "", tiles: str = "", n_tiles: int = 3):
    return TrainingSlide(
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
    one: TrainingSlide, other: TrainingSlide, is_linked: bool
) -> None:
    assert bool(linked_patients([one, other])) == is_linked
