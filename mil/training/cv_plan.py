"""Who is learnt from and judged, and how: settled before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from features.utils.text import pluralize
from mil.calibration import MIN_PATIENTS_PER_CLASS, build_calibrator
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.splits import Fold, SplitBy, make_folds
from mil.errors import SplitError
from mil.training.config import TrainConfig
from mil.training.cross_validation import inner_folds, resolve_stopping

__all__ = ["CrossValidationPlan"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossValidationPlan:
    """A cross-validation, and the ensemble that is deployed after it."""

    cohort: Cohort
    """Patients with tiles."""
    bags: PatientBags
    """Their bags, and those of the patients without."""
    folds: Sequence[Fold]
    """Whom the ensembles of the cross-validation learn from, and whom they judge."""
    inner: Sequence[Sequence[Fold]]
    """Folds inside each fold's training patients; none unless scores are nested."""
    by: SplitBy
    """Whether folds are stratified folds of patients or leave one centre out."""
    n_repeats: int
    """Cross-validations with other folds."""
    nested: bool
    """Whether scores are of calibrators fitted inside each fold's training patients."""
    config: TrainConfig
    """How ensembles are trained, with the rule by which they stop."""
    seed: int
    """Decides everything random."""
    calibrator: str
    """Its name."""

    @classmethod
    def of(
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
        """The design for a cohort, whose patients without a tile are left out.

        Parameters
        ----------
        cohort, bags, by, n_folds, n_repeats, nested, config, seed, calibrator
            As for :func:`mil.training_run.train_run`.
        folds
            Folds of the patients with tiles; None to make them.

        Raises
        ------
        SplitError
            If a class has too few patients with tiles, in all or to learn from in a fold.
        CalibrationError
            If the calibrator is unknown.
        """
        usable = _with_tiles(cohort, bags)
        build_calibrator(calibrator)  # refuse an unknown one before hours of training
        linked = bags.linked_patients()
        if folds is None:
            folds = make_folds(
                usable, by=by, n_folds=n_folds, n_repeats=n_repeats, seed=seed, linked=linked
            )
        inner = inner_folds(
            usable, folds if nested else (), by=by, n_folds=len(folds) // n_repeats, seed=seed,
            linked=linked,
        )  # fmt: skip
        _refuse_small_folds(usable, folds)
        every_fold = (*folds, *(fold for of_fold in inner for fold in of_fold))
        n_images = sum(note.n_tiles for note in bags.slides if note.sources)
        return cls(
            cohort=usable, bags=bags, folds=folds, inner=inner, by=by, n_repeats=n_repeats,
            nested=nested, seed=seed, calibrator=calibrator,
            config=resolve_stopping(config, usable, every_fold, n_images=n_images),
        )  # fmt: skip

    @property
    def n_heads(self) -> int:
        """Heads to train: an ensemble for each fold, and the one that is deployed."""
        n_ensembles = len(self.folds) + sum(len(of_fold) for of_fold in self.inner) + 1
        return n_ensembles * self.config.n_members

    def as_settings(self) -> dict[str, object]:
        """What the run keeps of it."""
        return {
            **asdict(self.config),
            "by": self.by,
            "n_folds": len(self.folds) // self.n_repeats,
            "n_repeats": self.n_repeats,
            "seed": self.seed,
            "calibrator": self.calibrator,
            "nested": self.nested,
            "n_views": self.bags.fingerprint.n_views,
        }


def _with_tiles(cohort: Cohort, bags: PatientBags) -> Cohort:
    """The cohort without patients that have no tile: they can teach nothing."""
    filled = set(bags.nonempty())
    patients = tuple(p for p in cohort.patients if p.patient_id in filled)
    left = {patient.label for patient in patients}
    if gone := [name for name in cohort.classes if name not in left]:
        raise SplitError(
            cohort.path,
            actual=f"no patient of class {gone[0]!r} has a tile",
            expected="patients of every class",
            hint="Look at embed.csv beside the bags.",
        )
    return replace(cohort, patients=patients)


def _refuse_small_folds(cohort: Cohort, folds: Sequence[Fold]) -> None:
    """Refuse what a calibrator would refuse when all heads are trained."""
    label_of = {patient.patient_id: patient.label for patient in cohort.patients}
    for fold in folds:
        counts = Counter(label_of[name] for name in fold.train_ids)
        smallest = min(cohort.classes, key=lambda name: counts[name])
        if counts[smallest] < MIN_PATIENTS_PER_CLASS:
            raise SplitError(
                cohort.path,
                actual=f"{pluralize(counts[smallest], 'patients')} of class {smallest!r} to learn "
                f"from in fold {fold.index} of repeat {fold.repeat}",
                expected=f"at least {MIN_PATIENTS_PER_CLASS}, or nothing can be calibrated",
                hint="Add patients of that class.",
            )
