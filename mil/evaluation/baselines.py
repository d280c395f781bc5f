"""Baselines of a run: simple models of pooled embeddings, and variables other than tissue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mil.arrays import Bools, Floats, Ints
from mil.calibration import clipped_log, cross_fit
from mil.data.bags import PatientBags
from mil.data.cohort import Patient
from mil.data.patient_groups import group_ids
from mil.evaluation.baseline_models import BASELINE_MODELS, baseline_logits, pool_embeddings
from mil.evaluation.metrics import Interval
from mil.evaluation.shortcut_model import ALL_SHORTCUTS, shortcut_features, shortcut_model
from mil.training.cross_validation import OutOfFoldPredictions, cross_fitted_probabilities

__all__ = [
    "COVARIATES_ALONE",
    "SHORTCUT",
    "SLIDES_ALONE",
    "BaselineComparison",
    "compare_with_baselines",
    "covariate_probabilities",
    "decisive_comparison",
    "embedding_baselines",
    "shortcut_probabilities",
]

SHORTCUT = "shortcut: "
"""Prefix of the names of predictions from variables other than tissue."""

COVARIATES_ALONE, SLIDES_ALONE = "covariates alone", "slides alone"
"""Names of the predictions of a run with covariates from one of its two sources."""

_METRIC_WORDS = {"weighted_log_loss": "log loss", "auroc": "AUROC"}


@dataclass(frozen=True, kw_only=True)
class BaselineComparison:
    """Paired comparison of a run with the best of its baselines on pooled embeddings.

    ``gain`` is by how much the run is better by ``metric``, with its 95 % interval.
    """

    baseline: str
    metric: str
    gain: Interval

    @property
    def verdict(self) -> Literal["better", "worse", "no difference shown"]:
        """Whether the interval excludes 0, and on which side."""
        if self.gain.low > 0:
            return "better"
        return "worse" if self.gain.high < 0 else "no difference shown"

    @property
    def phrase(self) -> str:
        """Words that complete "the run is …"."""
        name, words = self.baseline, _METRIC_WORDS[self.metric]
        # Rounded here, so that none is written as -0.000.
        value, low, high = (
            round(one, 3) + 0.0 for one in (self.gain.value, self.gain.low, self.gain.high)
        )
        if self.verdict == "better":
            return f"better than the best baseline, {name}, by {value:.3f} [{low:.3f}, {high:.3f}]"
        if self.verdict == "worse":
            lead, least, most = (0.0 - one for one in (value, high, low))
            return f"worse than the baseline {name} by {lead:.3f} [{least:.3f}, {most:.3f}]"
        way = f"{abs(value):.3f} {'better' if value > 0 else 'worse'}" if value else "equal"
        return (
            f"not shown to differ from the best baseline, {name} ({words} {way}; "
            f"gain between {low:.3f} and {high:.3f})"
        )

    def __str__(self) -> str:
        """Return one sentence that says which is better, and by how much."""
        return f"By {_METRIC_WORDS[self.metric]}, the run is {self.phrase}."


def compare_with_baselines(
    gains: Mapping[str, Mapping[str, Interval]], metric: str = "weighted_log_loss"
) -> BaselineComparison:
    """Return the comparison with the baseline on pooled embeddings that is hardest to beat.

    ``gains`` are those of ``scores.json``, by baseline and metric. A baseline that is better than
    the run beyond its interval comes first, then the one with the smallest gain over it. Earlier
    runs have one such baseline.

    Raises
    ------
    ValueError
        If there is none.
    """
    own = {name: gains[name][metric] for name in BASELINE_MODELS if name in gains}
    name = min(own, key=lambda name: (own[name].high >= 0, own[name].value))
    return BaselineComparison(baseline=name, metric=metric, gain=own[name])


def decisive_comparison(gains: Mapping[str, Mapping[str, Interval]]) -> BaselineComparison:
    """Return the comparison by log loss, or that by AUROC if a baseline is better there only.

    ``gains`` are those of :func:`compare_with_baselines`; better means beyond the interval.
    """
    by_loss, by_auroc = (compare_with_baselines(gains, of) for of in _METRIC_WORDS)
    return by_auroc if by_auroc.verdict == "worse" != by_loss.verdict else by_loss


def embedding_baselines(
    bags: PatientBags, oof: OutOfFoldPredictions, *, calibrator: str, seed: int
) -> dict[str, Floats]:
    """Return cross-fitted probabilities of :data:`BASELINE_MODELS` by name.

    They have shape (repeats, patients, classes), at the balanced prior. Patients, folds and
    calibrator are those of the run's own probabilities, so that only the learner differs. All is
    fitted inside each training fold; nothing is tuned. Bags are read once, and once more per fold
    where the fold fits a tile filter of its own.
    """
    names, dim = oof.patient_ids, bags.fingerprint.dim
    of_all = pool_embeddings(bags.features, names, dim=dim)

    def fold_logits(excluded: Bools, held_out: Bools) -> dict[str, Floats]:
        refit = bags.refit_without(np.array(names)[excluded].tolist())
        pooled = of_all if refit is bags else pool_embeddings(refit.features, names, dim=dim)
        train, test = (
            {pooling: values[rows] for pooling, values in pooled.items()}
            for rows in (~excluded, held_out)
        )
        return {
            name: baseline_logits(name, train, oof.labels[~excluded], test, seed=seed)
            for name in BASELINE_MODELS
        }

    return _cross_fitted(oof, BASELINE_MODELS, fold_logits, calibrator=calibrator)


def covariate_probabilities(oof: OutOfFoldPredictions, *, calibrator: str) -> dict[str, Floats]:
    """Return cross-fitted probabilities from the slides alone and from the covariates alone.

    They have shape (repeats, patients, classes) each, at the balanced prior; patients, folds and
    calibrator are those of the run. There are none without covariates.
    """
    if not oof.covariates:
        return {}
    logits = {COVARIATES_ALONE: oof.logits[:, :, -1:], SLIDES_ALONE: oof.logits[:, :, :-1]}
    return {
        name: cross_fitted_probabilities(replace(oof, logits=own), calibrator=calibrator)
        for name, own in logits.items()
    }


def shortcut_probabilities(
    patients: Sequence[Patient], bags: PatientBags, oof: OutOfFoldPredictions, *, calibrator: str
) -> dict[str, Floats]:
    """Return cross-fitted probabilities from variables other than tissue.

    These are centre, number of slides, number of tiles, and all of them together, without those
    that do not vary. As for :func:`embedding_baselines`, probabilities have shape (repeats,
    patients, classes); names have the prefix :data:`SHORTCUT`. Further ``patients`` are ignored.
    """
    by_id = {patient.patient_id: patient for patient in patients}
    n_tiles: Counter[str] = Counter()
    for slide in bags.slides:
        n_tiles[slide.patient_id] += slide.n_tiles
    columns = shortcut_features([by_id[name] for name in oof.patient_ids])
    tiles = np.log1p([[n_tiles[name]] for name in oof.patient_ids])
    if np.ptp(tiles) > 0:
        columns["tiles"] = tiles
    if len(columns) > 1:
        columns[ALL_SHORTCUTS] = np.concatenate(list(columns.values()), axis=1)

    def fold_logits(excluded: Bools, held_out: Bools) -> dict[str, Floats]:
        return {
            name: clipped_log(
                shortcut_model(name)
                .fit(values[~excluded], oof.labels[~excluded])
                .predict_proba(values[held_out])
            )
            for name, values in columns.items()
        }

    proba = _cross_fitted(oof, columns, fold_logits, calibrator=calibrator)
    return {SHORTCUT + name: values for name, values in proba.items()}


def _cross_fitted(
    oof: OutOfFoldPredictions,
    names: Iterable[str],
    fold_logits: Callable[[Bools, Bools], Mapping[str, Floats]],
    *,
    calibrator: str,
) -> dict[str, Floats]:
    """Return cross-fitted probabilities by name, shape (repeats, patients, classes).

    ``fold_logits`` takes two masks of patients: those to leave out, which are the held-out ones and
    those who share a slide with one of them, and the held-out ones. It returns the logits of the
    latter by name, shape (held out, classes).
    """
    logits = {name: np.full(oof.proba_shape, np.nan) for name in names}
    groups: Ints = group_ids(oof.patient_ids, oof.linked)
    for repeat, folds in enumerate(oof.fold):
        for fold in np.unique(folds):
            held_out = folds == fold
            excluded = np.isin(groups, groups[held_out])
            for name, values in fold_logits(excluded, held_out).items():
                logits[name][repeat, held_out] = values
    return {
        name: cross_fit(values, oof.labels, oof.fold, calibrator=calibrator, groups=groups)
        for name, values in logits.items()
    }
