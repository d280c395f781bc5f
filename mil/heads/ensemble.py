"""Logits and attention of an ensemble of heads for one patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mil.arrays import Floats
from mil.data.features import Features
from mil.heads.base import Head
from mil.heads.whitening import Whitening

__all__ = [
    "logit_spread", "predict_components", "predict_members", "predict_views", "whiten_tiles",
]  # fmt: skip

_LEAST_SPREAD = 0.1  # added, so that an ensemble that found no signal is not blown up


def predict_members(heads: Sequence[Head], tiles: Features) -> tuple[Floats, Floats]:
    """Return logits, shape (heads, classes), and attention, shape (heads, tiles), of a patient.

    ``tiles`` are its embeddings, shape (tiles, dim), at least one; heads are on the CPU.
    """
    # The heads of an ensemble share one whitening, so the large product is computed once.
    return predict_components(heads, whiten_tiles(tiles, heads[0].whitening)[1])


def whiten_tiles(tiles: Features, whitening: Whitening) -> tuple[Tensor, Tensor]:
    """Return tiles, shape (tiles, dim), and their components (tiles, n_components), float32.

    ``whitening`` is on the CPU.
    """
    raw = torch.from_numpy(np.asarray(tiles)).float()
    with torch.inference_mode():
        return raw, whitening(raw)


def predict_components(heads: Sequence[Head], components: Tensor) -> tuple[Floats, Floats]:
    """Return what :func:`predict_members` does, from components, shape (tiles, n_components)."""
    batch = components[None]
    mask = torch.ones(batch.shape[:2], dtype=torch.bool)
    with torch.inference_mode():
        outputs = [head.predict(batch, mask) for head in heads]
    logits = torch.cat([output.logits for output in outputs]).double().numpy()
    attention = torch.cat([output.attention for output in outputs]).double().numpy()
    return logits, attention


def logit_spread(logits: Floats) -> float:
    """Return the number that makes the logits of ensembles comparable: their spread plus 0.1.

    ``logits`` are those of an ensemble for its own training patients, shape (patients, classes).
    The spread is the root mean square, over patients and pairs of classes, of the difference
    between two logits less its mean; with two classes it is the standard deviation of their
    difference. Labels have no part in it.
    """
    centred = logits - logits.mean(axis=1, keepdims=True)
    squares = ((centred - centred.mean(axis=0)) ** 2).sum(axis=1).mean()
    return float(np.sqrt(2 * squares / (logits.shape[1] - 1)) + _LEAST_SPREAD)


def predict_views(heads: Sequence[Head], tiles: Features, views: Features) -> tuple[Floats, Floats]:
    """Return logits and attention of each head on the plain tiles, then on each view of them.

    Logits have shape (1 + n_views, heads, classes), attention (1 + n_views, heads, tiles).
    ``views`` are embeddings of augmented views, shape (tiles, n_views, dim).
    """
    versions = [tiles, *np.moveaxis(views, 1, 0)]
    logits, attention = zip(*(predict_members(heads, each) for each in versions), strict=True)
    return np.stack(logits), np.stack(attention)
