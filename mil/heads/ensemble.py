"""Logits and attention of an ensemble of heads for one patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from mil.data.bags import Features
from mil.heads.base import Head

__all__ = ["predict_members", "predict_views"]


def predict_members(
    heads: Sequence[Head], tiles: Features
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What each head says of one patient.

    Parameters
    ----------
    heads
        Heads of an ensemble, on the CPU.
    tiles
        The patient's embeddings, shape (tiles, dim); at least one.

    Returns
    -------
    tuple
        Logits of shape (heads, classes) and attention of shape (heads, tiles), float64.
    """
    features = torch.from_numpy(np.asarray(tiles)).float()[None]  # (1, tiles, dim)
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    with torch.inference_mode():
        # The heads of an ensemble share one whitening, so the long product is taken once.
        components = heads[0].whitening(features)
        outputs = [head.score(components, mask) for head in heads]
    logits = torch.cat([output.logits for output in outputs]).double().numpy()
    attention = torch.cat([output.attention for output in outputs]).double().numpy()
    return logits, attention


def predict_views(
    heads: Sequence[Head], tiles: Features, views: Features
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What each head says of one patient by each look at its tiles: the plain one, then the views.

    Parameters
    ----------
    heads
        Heads of an ensemble, on the CPU.
    tiles
        The patient's embeddings, shape (tiles, dim); at least one.
    views
        Those of their views, shape (tiles, n_views, dim).

    Returns
    -------
    tuple
        Logits of shape (looks, heads, classes) and attention of shape (looks, heads, tiles),
        float64.
    """
    looks = [tiles, *np.moveaxis(views, 1, 0)]
    logits, attention = zip(*(predict_members(heads, look) for look in looks), strict=True)
    return np.stack(logits), np.stack(attention)
