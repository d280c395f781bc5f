"""Typicality of a patient: its mark at a level, and where its unlike tiles are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.bags.bag import Bag
from mil.data.features import Features
from mil.typicality import TypicalityReference

__all__ = ["PatientTypicality", "score_patient"]

_MAX_PLACES = 5


@dataclass(frozen=True, kw_only=True)
class PatientTypicality:
    """Typicality of a patient, and its tiles that are unlike training tiles.

    Attributes
    ----------
    p_value
        See :class:`mil.typicality.reference.Typicality`.
    level
        Largest p-value of patients marked as unlike the training patients.
    unlike_share
        Share of the sampled tiles that are unlike training tiles, 0 to 1.
    unlike_by_slide
        The same by slide id, of slides with sampled tiles.
    places
        The farthest of these tiles, at most five, as ``slide@x,y`` (upper left corner, level-0 px)
        or ``series@source``.
    """

    p_value: float
    level: float
    unlike_share: float
    unlike_by_slide: Mapping[str, float]
    places: tuple[str, ...]

    @property
    def is_unlike(self) -> bool:
        """Whether the patient is marked."""
        return self.p_value <= self.level


def score_patient(
    reference: TypicalityReference,
    bags: Mapping[str, Bag],
    tiles: Features,
    *,
    level: float,
    training_patient: str,
) -> PatientTypicality:
    """Return the typicality of a patient, by slides with tiles.

    ``tiles``, shape (tiles, dim), are those of all ``bags``, in order; ``training_patient`` is the
    training patient that it is, or empty.
    """
    scored = reference.score(tiles, training_patient=training_patient)
    starts = np.cumsum([0, *(len(bag.features) for bag in bags.values())])
    slides = np.searchsorted(starts, scored.tile_indices, side="right") - 1
    names = list(bags)
    farthest = np.argsort(-scored.tile_distances, kind="stable")
    return PatientTypicality(
        p_value=scored.p_value,
        level=level,
        unlike_share=scored.unlike_share,
        unlike_by_slide={
            names[slide]: float(scored.is_unlike[slides == slide].mean())
            for slide in np.unique(slides).tolist()
        },
        places=tuple(
            _place(
                bags[names[slides[index]]], int(scored.tile_indices[index] - starts[slides[index]])
            )
            for index in farthest[scored.is_unlike[farthest]][:_MAX_PLACES].tolist()
        ),
    )


def _place(bag: Bag, row: int) -> str:
    """Return the position of a tile on its slide, or the name of an image of a series."""
    if bag.source is not None:
        return f"{bag.meta.slide_id}@{bag.source[row]}"
    x_px0, y_px0 = bag.coords_px0[row].tolist()
    return f"{bag.meta.slide_id}@{x_px0},{y_px0}"
