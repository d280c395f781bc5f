"""Logits of all learners of a model for one patient: attention heads and any base learners."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mil.arrays import Floats
from mil.base_learners.learners import BaseLearners
from mil.base_learners.pooling import mean_and_extremes
from mil.data.features import Features
from mil.heads import Head
from mil.heads.ensemble import predict_components, whiten_tiles

__all__ = ["predict_learner_views", "predict_learners", "with_base_learners"]


def predict_learners(
    heads: Sequence[Head], base_learners: BaseLearners | None, tiles: Features
) -> tuple[Floats, Floats]:
    """Return logits and attention, shape (heads, tiles), of a patient.

    Logits have shape (heads, classes), and with base learners (heads, learners, classes): the head
    first, then the base learners, which are the same for every head. ``tiles`` are the patient's
    embeddings, shape (tiles, dim), at least one; heads are on the CPU.
    """
    raw, components = whiten_tiles(tiles, heads[0].whitening)
    logits, attention = predict_components(heads, components)
    if base_learners is None:
        return logits, attention
    of_base = base_learners.logits_of(
        [mean_and_extremes(raw)], [base_learners.project(raw)], [components]
    )
    return with_base_learners(logits, of_base[0]), attention


def predict_learner_views(
    heads: Sequence[Head], base_learners: BaseLearners | None, tiles: Features, views: Features
) -> tuple[Floats, Floats]:
    """Return logits and attention on the plain tiles, then on each view of them.

    Shapes are those of :func:`predict_learners` after a first axis of 1 + n_views. ``views`` are
    embeddings of augmented views, shape (tiles, n_views, dim).
    """
    versions = [tiles, *np.moveaxis(views, 1, 0)]
    pairs = [predict_learners(heads, base_learners, each) for each in versions]
    return np.stack([logits for logits, _ in pairs]), np.stack([share for _, share in pairs])


def with_base_learners(logits: Floats, of_base: Floats) -> Floats:
    """Return logits of heads, (..., classes), with those of base learners, (learners, classes).

    The latter may have leading axes that go with those of the heads. The result has shape
    (..., 1 + learners, classes).
    """
    shared = np.broadcast_to(of_base, (*logits.shape[:-1], *of_base.shape[-2:]))
    return np.concatenate([logits[..., None, :], shared], axis=-2)
