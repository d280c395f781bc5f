"""What each learner of a run adds to a patient's logit, and each tile to a learner's logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mil.arrays import Floats
from mil.base_learners import learner_key
from mil.calibration import StackedPlattScaling
from mil.data.features import Features
from mil.heads import Head
from mil.inference.bundle import ModelBundle

__all__ = ["LearnerPart", "attribute_tiles", "learner_weights"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnerPart:
    """Part of one learner in a patient's logit.

    Attributes
    ----------
    name
        Name of the learner, see :attr:`mil.inference.bundle.ModelBundle.learner_names`.
    weight
        Weight of the learner in the run, 0 to 1; the weights of a run sum to 1.
    factor
        What the calibrator multiplies the patient's logits by, the slope where they are small and
        less where they saturate; 1 for a single head.
    logits
        Logits of the learner, mean over heads and any views, shape (classes,).
    of_tiles
        Summands of ``logits``, shape (tiles, classes); None where they are not a sum over tiles.
    """

    name: str
    weight: float
    factor: float
    logits: Floats
    of_tiles: Floats | None

    @property
    def key(self) -> str:
        """Name without spaces and signs, for columns."""
        return learner_key(self.name)

    @property
    def part(self) -> Floats:
        """What it adds to the run's logits, shape (classes,); sums to 0 over the classes."""
        return np.asarray(self.factor * (self.logits - self.logits.mean()), np.float64)

    @property
    def part_of_tiles(self) -> Floats | None:
        """Summands of :attr:`part`, shape (tiles, classes)."""
        if self.of_tiles is None:
            return None
        centred = self.of_tiles - self.of_tiles.mean(axis=1, keepdims=True)
        return np.asarray(self.factor * centred, np.float64)


def learner_weights(bundle: ModelBundle) -> dict[str, float]:
    """Return the weight of each learner of a stack by name; empty for a single head.

    Weights sum to 1, or are all 0 where no learner carries a signal.
    """
    if not isinstance(bundle.calibrator, StackedPlattScaling):
        return {}
    weights = bundle.calibrator.weights_.tolist()
    return dict(zip(bundle.learner_names, weights, strict=True))


def attribute_tiles(
    bundle: ModelBundle,
    tiles: Features,
    views: Features | None = None,
    *,
    covariates: Sequence[str] = (),
) -> tuple[Floats, tuple[LearnerPart, ...]]:
    """Return the attention, shape (tiles,), and the part of each learner.

    Parameters
    ----------
    bundle
        Model; with views, one with their calibrator.
    tiles
        Embeddings of the patient's tiles, shape (tiles, dim), at least one.
    views
        Augmented views of them to average over as well, shape (tiles, n_views, dim).
    covariates
        Cells of the patient's covariates, as of :class:`mil.data.cohort.Patient`.
    """
    versions = [tiles] if views is None else [tiles, *np.moveaxis(views, 1, 0)]
    attentions, logits, of_tiles = zip(*(_attribute(bundle, one) for one in versions), strict=True)
    attention = np.mean(attentions, axis=0)
    names = bundle.learner_names
    mean_logits = bundle.add_covariates(np.mean(logits, axis=0), covariates)
    factors, weights = np.ones(1), np.ones(1)
    if isinstance(bundle.calibrator, StackedPlattScaling):
        factors = bundle.calibrator.factors(mean_logits[None])[0]
        weights = bundle.calibrator.weights_
    parts = []
    for row, name in enumerate(names):
        own = [each[name] for each in of_tiles if name in each]
        parts.append(
            LearnerPart(
                name=name,
                weight=float(weights[row]),
                factor=float(factors[row]),
                logits=mean_logits[row],
                of_tiles=np.mean(own, axis=0) if own else None,
            )
        )
    return attention / attention.sum(), tuple(parts)  # sums in float32 are not exactly 1


def _attribute(bundle: ModelBundle, tiles: Features) -> tuple[Floats, Floats, dict[str, Floats]]:
    """Return attention (tiles,), logits (learners, classes), and summands (tiles, classes)."""
    attention, logits, parts = _attend(bundle.heads, tiles)
    of_tiles = {} if parts is None else {bundle.learner_names[0]: parts}
    if bundle.base_learners is None:
        return attention, logits[None], of_tiles
    whitening = bundle.heads[0].whitening
    of_base = bundle.base_learners.logits(tiles, whitening)
    of_tiles |= bundle.base_learners.contributions(tiles, whitening)
    return attention, np.concatenate([logits[None], of_base]), of_tiles


def _attend(heads: Sequence[Head], tiles: Features) -> tuple[Floats, Floats, Floats | None]:
    """Return means over heads: attention (tiles,), logits (classes,), summands or None."""
    features = torch.from_numpy(np.asarray(tiles, np.float32))[None]  # (1, tiles, dim)
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    with torch.inference_mode():
        components = heads[0].whitening(features)  # an ensemble shares one whitening
        outputs = [head.predict(components, mask) for head in heads]
    attention = torch.cat([output.attention for output in outputs]).double().numpy()
    logits = torch.cat([output.logits for output in outputs]).double().numpy()
    parts = [output.contributions for output in outputs if output.contributions is not None]
    of_tiles = torch.cat(parts).double().numpy().mean(axis=0) if parts else None
    return attention.mean(axis=0), logits.mean(axis=0), of_tiles
