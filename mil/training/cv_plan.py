"""Plan of a cross-validation, resolved and checked before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np

from features.utils.text import pluralize
from mil.calibration import MIN_PATIENTS_PER_CLASS, build_calibrator
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.patient_groups import LinkedPairs, group_ids
from mil.data.splits import Fold, SplitBy, make_folds
from mil.errors import SplitError
from mil.training.config import TrainConfig
from mil.training.cross_validation import inner_folds, resolve_components
from mil.training.pair_folds import N_MEMBERS, pair_folds

__all__ = ["CrossValidationPlan"]

_ADD_PATIENTS = "Add patients of that class, or take the class out of the table."
_WHY_EMPTY = "embed.csv in the folder of the bags says why."
_MAX_FOLDS = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossValidationPlan:
    """A cross-validation, and the ensemble that is deployed after it.

    ``cohort`` holds the patients with tiles, ``bags`` also the others. ``inner`` are the folds of
    the training patients of each fold, none unless scores are nested. ``config`` has the number
    of components resolved. ``pairs`` are folds that test the patients of two folds each, for the
    prediction sets of a stack, see :func:`mil.training.pair_folds.pair_folds`. The other fields are
    as for :func:`mil.training_run.train_run`.
    """

    cohort: Cohort
    bags: PatientBags
    folds: Sequence[Fold]
    inner: Sequence[Sequence[Fold]]
    pairs: Sequence[Fold]
    by: SplitBy
    n_repeats: int
    nested: bool
    config: TrainConfig
    seed: int
    calibrator: str

    @classmethod
    def build(
        cls,
        cohort: Cohort,
        bags: PatientBags,
        folds: Sequence[Fold] | None,
        *,
        by: SplitBy,
        n_folds: int,
        n_repeats: int,
        nested: bool,
        config: TrainConfig,
        seed: int,
        calibrator: str,
    ) -> CrossValidationPlan:
        """Return the plan for a cohort without its patients without tiles.

        ``folds`` are folds of the patients with tiles; None to make them.

        Raises
        ------
        SplitError
            If a class has too few patients with tiles, in all or in the training part of a fold.
        CalibrationError
            If the calibrator is unknown.
        """
        usable = _drop_empty(cohort, bags)
        if cohort.covariates and not config.is_stack:
            raise SplitError(
                cohort.path, actual=f"covariates with the head {config.head!r}",
                expected="the head 'stack', of which they are a learner",
                hint="Leave out --head, or --covariates.",
            )  # fmt: skip
        # An unknown one is refused before hours of training.
        build_calibrator(calibrator, stacked=config.is_stack)
        linked = bags.linked_patients()

        def make(number: int) -> tuple[Sequence[Fold], Sequence[Sequence[Fold]]]:
            outer = folds
            if outer is None:
                outer = make_folds(
                    usable, by=by, n_folds=number, n_repeats=n_repeats, seed=seed, linked=linked
                )
            _check_training_parts(usable, outer)
            return outer, inner_folds(
                usable, outer if nested else (), by=by, n_folds=len(outer) // n_repeats, seed=seed,
                linked=linked,
            )  # fmt: skip

        try:
            folds, inner = make(n_folds)
        except SplitError as error:
            if folds is not None or by != "patient":
                raise
            raise _class_too_small(
                usable, error, make, n_folds, nested=nested, linked=linked, everyone=cohort
            ) from error
        every_fold = (*folds, *(fold for of_fold in inner for fold in of_fold))
        # Nested weights serve the sets as well, and nothing is guaranteed for folds by centre.
        is_paired = config.is_stack and by == "patient" and not nested
        n_images = sum(record.n_tiles for record in bags.slides if record.sources)
        return cls(
            cohort=usable, bags=bags, folds=folds, inner=inner,
            pairs=pair_folds(usable, folds) if is_paired else (), by=by, n_repeats=n_repeats,
            nested=nested, seed=seed, calibrator=calibrator,
            config=resolve_components(config, every_fold, n_images=n_images),
        )  # fmt: skip

    @property
    def n_heads(self) -> int:
        """Number of heads of all ensembles: one for each fold, and the one that is deployed."""
        n_ensembles = len(self.folds) + sum(len(of_fold) for of_fold in self.inner) + 1
        return n_ensembles * self.config.n_members + len(self.pairs) * N_MEMBERS

    def as_settings(self) -> dict[str, object]:
        """Return the settings that a model bundle stores."""
        return {
            **asdict(self.config),
            "by": self.by,
            "n_folds": len(self.folds) // self.n_repeats,
            "n_repeats": self.n_repeats,
            "seed": self.seed,
            "calibrator": self.calibrator,
            "nested": self.nested,
            "n_views": self.bags.fingerprint.n_views,
            **(
                {"covariates": [own.name for own in self.cohort.covariates]}
                if self.cohort.covariates
                else {}
            ),
        }


def _drop_empty(cohort: Cohort, bags: PatientBags) -> Cohort:
    """Return the cohort without patients that have no tile."""
    usable = cohort.subset(bags.nonempty())
    labels = {patient.label for patient in usable.patients}
    if missing := [name for name in cohort.classes if name not in labels]:
        raise SplitError(
            cohort.path,
            actual=f"no patient of class {missing[0]!r} has a tile",
            expected="patients of every class",
            hint=f"{_WHY_EMPTY} {_ADD_PATIENTS}",
        )
    return usable


def _class_too_small(
    cohort: Cohort,
    error: SplitError,
    make: Callable[[int], object],
    n_folds: int,
    *,
    nested: bool,
    linked: LinkedPairs,
    everyone: Cohort,
) -> SplitError:
    """Return the error with advice that works: a number of folds that was tried, or patients.

    With k patients of a class and k folds, k - 1 of them are left to fit a calibrator on; nested
    folds take one more. ``everyone`` holds the patients without tiles as well.
    """
    for number in sorted(range(2, _MAX_FOLDS + 1), key=lambda other: abs(other - n_folds)):
        with suppress(SplitError):
            make(number)
            return SplitError(
                error.where, actual=error.actual, expected=error.expected,
                hint=f"Use --folds {number}, or add patients of that class.",
            )  # fmt: skip
    groups = np.unique(group_ids(cohort.patient_ids, linked))
    counts = np.bincount(cohort.labels[groups], minlength=len(cohort.classes))
    smallest = int(counts.argmin())
    least = MIN_PATIENTS_PER_CLASS + 1 + nested
    words = " if scores are nested" if nested else ""
    once = ", those that share a slide counted once" if linked else ""
    name = cohort.classes[smallest]
    used = set(cohort.patient_ids)
    without = [
        p.patient_id for p in everyone.patients if p.label == name and p.patient_id not in used
    ]
    hint = _ADD_PATIENTS
    if 2 * len(cohort.classes) > len(cohort.patients):
        hint = (
            f"These are {len(cohort.classes)} classes of {len(cohort.patients)} patients: name "
            "the column of classes with --column label=NAME; of numbers, write ranges into it."
        )
    if without:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        once += f", beside {', '.join(without[:3])}{more} without any"
        hint = f"{_WHY_EMPTY} {hint}"
    return SplitError(
        cohort.path,
        actual=f"{pluralize(int(counts[smallest]), 'patients')} of class {name!r}"
        f"{' with tiles' if without else ''}{once}",
        expected=f"at least {least} of each class, in however many folds{words}",
        hint=hint,
    )


def _check_training_parts(cohort: Cohort, folds: Sequence[Fold]) -> None:
    """Raise before the training for what a calibrator would raise after it."""
    label_of = {patient.patient_id: patient.label for patient in cohort.patients}
    for fold in folds:
        counts = Counter(label_of[name] for name in fold.train_ids)
        smallest = min(cohort.classes, key=lambda name: counts[name])
        if counts[smallest] < MIN_PATIENTS_PER_CLASS:
            raise SplitError(
                cohort.path,
                actual=f"{pluralize(counts[smallest], 'patients')} of class {smallest!r} in "
                f"the training part of fold {fold.index} of repeat {fold.repeat}",
                expected=f"at least {MIN_PATIENTS_PER_CLASS}, to fit a calibrator",
                hint="Add patients of that class.",
            )
