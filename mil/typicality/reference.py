"""Training patients' tiles and scores, and the conformal p-value of being like them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mil.arrays import Bools, Float32s, Floats, Ints
from mil.data.bags import PatientBags
from mil.data.features import Features
from mil.data.patient_groups import group_ids
from mil.errors import InputError
from mil.typicality.distances import CoreTiles, MeanTiles
from mil.typicality.projection import project_tiles, spread_indices

__all__ = ["DEFAULT_LEVEL", "SAMPLED_TILES", "Typicality", "TypicalityReference"]

DEFAULT_LEVEL = 0.05
"""Share of patients like the training patients that is marked by mistake."""

SAMPLED_TILES = 256
"""Tiles of a patient, evenly spaced, that a p-value is computed from."""

_CORE_TILES = 2048
_CORE_TILES_PER_PATIENT = (5, 64)  # five take 0.77 MB of 1,000 patients
_UNLIKE_TILES = 0.01  # share of the training patients' tiles beyond the limit of a tile


@dataclass(frozen=True, kw_only=True, eq=False)
class Typicality:
    """How much one patient is like the training patients.

    Attributes
    ----------
    p_value
        Conformal p-value: the share of patients as far from the others as this one, itself
        included; 1 / (patients + 1) to 1.
    distance
        Nonconformity score, see :class:`TypicalityReference`.
    tile_indices, tile_distances
        The sampled tiles as rows of the patient's bag, and their distances, shape (sampled,).
    is_unlike
        Whether each is farther than 99 % of the training tiles, bool, shape (sampled,).
    """

    p_value: float
    distance: float
    tile_indices: Ints
    tile_distances: Float32s
    is_unlike: Bools

    @property
    def unlike_share(self) -> float:
        """Share of the sampled tiles that are unlike training tiles, 0 to 1."""
        return float(self.is_unlike.mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class TypicalityReference:
    """Nearest-neighbour conformal test of whether a patient is like the training patients.

    The nonconformity score of a patient has two parts: the median over its tiles of the distance to
    the nearest core tile of any other training patient, and the distance of its mean tile to the
    nearest mean tile, less the part of chance (:class:`mil.typicality.distances.MeanTiles`).
    Distances are between directions of embeddings in a projection that was
    fitted on nothing (:func:`mil.typicality.projection.project_tiles`). A training patient's own
    score leaves out its own tiles, and those of patients who share a slide with it. The p-value of
    a new patient is (1 + number of training patients with at least its score) / (patients + 1), as
    in conformal anomaly detection (Laxhammar and Falkman, 2010; Bates et al., 2023).

    At any level, at most that share of patients drawn like the training patients gets a p-value as
    low, on average over cohorts, without a condition on encoder or tiles. For with a new patient
    among the neighbours of the others as well, all scores would be exchangeable and the p-value
    exact (full conformal prediction; Vovk et al., 2005); further neighbours could only lower the
    scores of the training patients, and so the p-value.

    Attributes
    ----------
    patient_ids
        Training patients with tiles.
    groups
        Equal for patients who share a slide, shape (patients,).
    core, means
        Evenly spaced tiles of each of them, projected, and their means.
    distances
        Nonconformity score of each, shape (patients,), sorted as ``patient_ids``.
    tile_limit
        Distance beyond which 1 % of the training tiles are, patients weighing the same.
    centres
        Centre of each patient; empty text where the table names none.
    centre_p_values
        P-value of each patient among the patients of all other centres, shape (patients,); NaN
        where there is no other centre.
    """

    patient_ids: tuple[str, ...]
    groups: Ints
    core: CoreTiles
    means: MeanTiles
    distances: Floats
    tile_limit: float
    centres: tuple[str, ...]
    centre_p_values: Floats

    def __post_init__(self) -> None:
        n = len(self.patient_ids)
        parts = (
            self.groups, self.core.counts, self.means.counts, self.distances, self.centres,
            self.centre_p_values,
        )  # fmt: skip
        lengths = {len(part) for part in parts}
        if lengths != {n} or not n or np.isnan([*self.distances, self.tile_limit]).any():
            raise ValueError(f"parts of {sorted(lengths)} patients for {n}, or NaN among them")

    @classmethod
    def fit(cls, bags: PatientBags, *, centres: Sequence[str]) -> Self:
        """Return the reference of the patients with tiles; ``centres`` are theirs, in order.

        Each bag, shape (tiles, dim), is read once.
        """
        names = bags.nonempty()
        least, most = _CORE_TILES_PER_PATIENT
        n_core = min(max(_CORE_TILES // len(names), least), most)
        sampled = [_project_evenly(bags.features[name])[1] for name in names]
        parts = [_core_of(tiles, n_core) for tiles in sampled]
        core = CoreTiles(
            tiles=np.concatenate(parts), counts=np.array([len(part) for part in parts], np.int64)
        )
        means = MeanTiles.of(sampled)
        groups = group_ids(names, bags.linked_patients())
        codes = np.unique(np.asarray(centres), return_inverse=True)[1]
        own, by_left_out, tile_distances = _score_patients(sampled, core, means, groups, codes)
        return cls(
            patient_ids=names,
            groups=groups,
            core=core,
            means=means,
            distances=own,
            tile_limit=_upper_quantile(tile_distances, _UNLIKE_TILES),
            centres=tuple(centres),
            centre_p_values=_between_centres(by_left_out, codes),
        )

    @property
    def min_level(self) -> float:
        """Smallest p-value that so many patients allow: 1 / (patients + 1)."""
        return 1 / (1 + len(self.patient_ids))

    @property
    def default_level(self) -> float:
        """Level for which nothing was asked: 0.05, or the smallest that can be reached."""
        return max(DEFAULT_LEVEL, self.min_level)

    def limit(self, level: float) -> float:
        """Return the score above which patients are marked at a level that can be reached."""
        n_above = int(np.floor(level * (1 + len(self.distances)) + 1e-9))
        return float(np.sort(self.distances)[len(self.distances) - n_above])

    @property
    def p_values(self) -> Floats:
        """P-value of each training patient among all of them, shape (patients,)."""
        return _ranks(self.distances, self.distances) / len(self.distances)

    def describe(self) -> dict[str, object]:
        """Return the size of the reference and its levels, as plain values."""
        return {
            "method": "conformal, nearest tiles of other patients",
            "n_patients": len(self.patient_ids),
            "n_core_tiles": len(self.core.tiles),
            "min_level": self.min_level,
            "default_level": self.default_level,
        }

    def resolve_level(self, level: float | None) -> float:
        """Return the level asked for, or :attr:`default_level` for None.

        Raises
        ------
        InputError
            If no p-value can be as low.
        """
        if level is None:
            return self.default_level
        if not level >= self.min_level:
            needed = f"{np.ceil(1 / level - 1e-9) - 1:,.0f}" if level > 0 else "any number of"
            raise InputError(
                f"typicality {level:g}",
                actual=f"{len(self.patient_ids)} training patients, which allow no "
                f"typicality below {self.min_level:.4g}",
                expected=f"at least {self.min_level:.4g}, or a run of {needed} patients",
                hint="Give a higher level, or none for the default of the run.",
            )
        return level

    def score(self, tiles: Features, *, training_patient: str = "") -> Typicality:
        """Score a patient by its tiles, shape (tiles, dim), of which there is at least one.

        A patient that the run was trained on, named by ``training_patient``, is compared without
        its own tiles and score, nor those of patients who share a slide with it.
        """
        indices, projected = _project_evenly(tiles)
        left_out = self._left_out(training_patient)
        distances = self.core.nearest(projected, without=left_out)
        to_means = MeanTiles.of([projected]).distances(self.means)[0, ~left_out]
        distance = float(np.median(distances)) + float(to_means.min(initial=np.inf))
        others = self.distances[~left_out]
        return Typicality(
            p_value=(1 + int((others >= distance).sum())) / (1 + len(others)),
            distance=distance,
            tile_indices=indices,
            tile_distances=distances,
            is_unlike=distances > self.tile_limit,
        )

    def tile_distances(self, tiles: Features, *, training_patient: str = "") -> Float32s:
        """Return the distance of every tile to the nearest of another training patient.

        ``tiles`` has shape (tiles, dim), the result (tiles,), float32; infinite for tiles that are
        not finite. A training patient is compared as in :meth:`score`.
        """
        left_out = self._left_out(training_patient)
        blocks = [
            self.core.nearest(project_tiles(tiles[at : at + _CORE_TILES]), without=left_out)
            for at in range(0, len(tiles), _CORE_TILES)
        ]
        return np.concatenate(blocks) if blocks else np.empty(0, np.float32)

    def are_unlike(self, tiles: Features, *, training_patient: str = "") -> Bools:
        """Return whether each tile is farther than 99 % of the training tiles, shape (tiles,).

        Arguments are those of :meth:`tile_distances`, tiles of shape (tiles, dim).
        """
        distances = self.tile_distances(tiles, training_patient=training_patient)
        return np.asarray(distances > self.tile_limit)

    def _left_out(self, training_patient: str) -> Bools:
        """Return who is not compared with, bool, shape (patients,)."""
        if training_patient not in self.patient_ids:
            return np.zeros(len(self.patient_ids), np.bool_)
        own = self.groups[self.patient_ids.index(training_patient)]
        return np.asarray(self.groups == own)


def _project_evenly(tiles: Features) -> tuple[Ints, Float32s]:
    """Return indices (sampled,) and projections (sampled, components) of sampled tiles."""
    indices = spread_indices(len(tiles), SAMPLED_TILES)
    return indices, project_tiles(tiles[indices])


def _core_of(projected: Float32s, n_core: int) -> Float32s:
    """Return evenly spaced finite tiles, shape (core, components), rounded as they are stored."""
    finite = projected[np.isfinite(projected).all(axis=1)]
    return finite[spread_indices(len(finite), n_core)].astype(np.float16).astype(np.float32)


def _score_patients(
    sampled: Sequence[Float32s], core: CoreTiles, means: MeanTiles, groups: Ints, centres: Ints
) -> tuple[Floats, Floats, list[Float32s]]:
    """Score each training patient without its own group.

    Returns scores (patients,), scores without each centre as well (patients, centres), and the
    distances of tiles, shape (sampled,) each.
    """
    n_centres = 1 + int(centres.max())
    order = np.argsort(centres, kind="stable")
    starts = np.searchsorted(centres[order], np.arange(n_centres))
    own = np.empty(len(sampled))
    by_left_out = np.full((len(sampled), n_centres), np.inf)
    of_tiles = []
    for index, projected in enumerate(sampled):
        linked = groups == groups[index]
        to_tiles = core.nearest_by_patient(projected)
        to_means = MeanTiles.of([projected]).distances(means)
        to_tiles[:, linked] = to_means[:, linked] = np.inf
        near_tiles = np.minimum.reduceat(to_tiles[:, order], starts, axis=1)
        near_means = np.minimum.reduceat(to_means[:, order], starts, axis=1)
        of_tiles.append(near_tiles.min(axis=1))
        own[index] = np.median(of_tiles[-1]) + near_means.min()
        if n_centres > 1:
            by_left_out[index] = np.median(_least_elsewhere(near_tiles), axis=0)
            by_left_out[index] += _least_elsewhere(near_means)[0]
    return own, by_left_out, of_tiles


def _least_elsewhere(distances: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Return the least of all columns but one, for each one, shape (rows, columns)."""
    two = np.partition(distances, 1, axis=1)[:, :2]
    # Where two columns have the least distance, the second is as near, so ties do no harm.
    return np.where(distances == two[:, :1], two[:, 1:], two[:, :1])


def _between_centres(by_left_out: Floats, centres: Ints) -> Floats:
    """Return each patient's p-value among all other centres, shape (patients,); NaN for one.

    ``by_left_out`` are scores without the tiles of each centre, shape (patients, centres).
    """
    p_values = np.full(len(centres), np.nan)
    for centre in np.unique(centres) if by_left_out.shape[1] > 1 else ():
        inside = centres == centre
        others = by_left_out[~inside, centre]
        ranks = (others >= by_left_out[inside, centre][:, None]).sum(axis=1)
        p_values[inside] = (1 + ranks) / (1 + len(others))
    return p_values


def _ranks(values: Floats, among: Floats) -> Floats:
    """Return how many of ``among`` are at least each value, shape (values,)."""
    below = np.searchsorted(np.sort(among), values, side="left")
    return np.asarray(len(among) - below, np.float64)


def _upper_quantile(parts: Sequence[Float32s], share: float) -> float:
    """Return the least value that at most ``share`` exceed, every part weighing the same.

    Values that are not finite do not count; the result is infinite without any that is.
    """
    parts = [part[np.isfinite(part)] for part in parts if np.isfinite(part).any()]
    if not parts:
        return np.inf
    values = np.concatenate(parts).astype(np.float64)
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in parts])
    order = np.argsort(values)
    above = 1 - np.cumsum(weights[order]) / len(parts)
    return float(values[order][np.flatnonzero(above <= share + 1e-12)[0]])
