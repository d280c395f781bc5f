"""scikit-learn estimator: calibrated ensemble of multiple-instance heads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from features.bags.bag import UNKNOWN, Fingerprint
from features.bags.tile_keys import hash_tiles, make_tile_keys, sketch_tiles
from features.parallel.devices import choose_device
from mil.arrays import Floats, Ints
from mil.base_learners import STACK
from mil.base_learners.stack import predict_learners
from mil.calibration import Calibrator, build_calibrator
from mil.calibration.priors import shift_prior
from mil.data.bags import PatientBags, SlideRecord
from mil.data.cohort import Cohort, Patient
from mil.data.features import Features
from mil.data.splits import Fold, patient_folds
from mil.errors import InputError
from mil.heads.ensemble import predict_members
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate, fit_calibrator, resolve_components
from mil.training.ensemble import train_ensemble
from mil.training.trainer import EpochRecord

__all__ = ["MILClassifier"]


class MILClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Ensemble of multiple-instance heads, calibrated on out-of-fold patients.

    A bag is an array of embeddings, shape (tiles, dim). ``n_folds`` ensembles like the deployed one
    are trained by cross-validation, and the calibrator is fitted on their out-of-fold logits; then
    the deployed ensemble is trained on all patients. Works in ``cross_val_score`` and
    ``GridSearchCV``. The same bags, labels and ``random_state`` give the same numbers on one
    machine.

    Parameters
    ----------
    head
        ``stack``, gated attention heads and convex base learners that the calibrator weights; or a
        kind of head by itself, see :func:`mil.heads.head_names`.
    calibrator
        Name, see :func:`mil.calibration.calibrator_names`; None for uncalibrated logits, without
        cross-validation, of a single head. A stack needs ``platt``.
    n_folds
        Folds of the inner cross-validation.
    prior
        Class shares of the probabilities: ``balanced``, or those of the training ``cohort``. With
        the loss ``cross-entropy`` and no calibrator the probabilities are for neither, because the
        heads are biased towards the frequent class.
    n_members, n_components, early_stopping, max_epochs, fixed_steps, patience, batch_patients, \
max_tiles, learning_rate, weight_decay, schedule, clip_norm, loss, label_smoothing, \
instance_dropout, feature_noise, mixup, device
        As in :class:`mil.training.config.TrainConfig`.
    random_state
        Seed: an int, a ``numpy.random.RandomState``, or None for another
        result every time.

    Attributes
    ----------
    classes_
        Labels in order, shape (classes,).
    heads_
        Heads of the ensemble; its logit is their mean.
    base_learners_
        Base learners of a stack, or None.
    calibrator_
        Fitted calibrator, or None.
    history_
        Learning curves of the heads.
    n_features_in_
        Length of an embedding.

    Examples
    --------
    >>> import numpy as np
    >>> from mil import MILClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.array(["LAA", "CE", "CE"] * 10)
    >>> bags = [rng.normal(loc=label == "LAA", size=(rng.integers(3, 9), 16)) for label in y]
    >>> classifier = MILClassifier(n_members=2, n_folds=3, fixed_steps=20).fit(bags, y)
    >>> classifier.predict_proba(bags[:2]).shape
    (2, 2)
    >>> classifier.predict(bags[:2]).tolist()
    ['LAA', 'CE']
    """

    def __init__(
        self,
        *,
        head: str = "stack",
        calibrator: str | None = "platt",
        n_folds: int = 5,
        prior: Literal["balanced", "cohort"] = "balanced",
        n_members: int = 5,
        n_components: int = 64,
        early_stopping: bool = False,
        max_epochs: int = 60,
        fixed_steps: int = 120,
        patience: int = 12,
        batch_patients: int = 16,
        max_tiles: int = 64,
        learning_rate: float | None = None,
        weight_decay: float = 1e-2,
        schedule: str = "constant",
        clip_norm: float = 1.0,
        loss: str = "balanced",
        label_smoothing: float = 0.0,
        instance_dropout: float = 0.0,
        feature_noise: float = 0.0,
        mixup: float = 0.0,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.head = head
        self.calibrator = calibrator
        self.n_folds = n_folds
        self.prior = prior
        self.n_members = n_members
        self.n_components = n_components
        self.early_stopping = early_stopping
        self.max_epochs = max_epochs
        self.fixed_steps = fixed_steps
        self.patience = patience
        self.batch_patients = batch_patients
        self.max_tiles = max_tiles
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.instance_dropout = instance_dropout
        self.feature_noise = feature_noise
        self.mixup = mixup
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        bags: Sequence[npt.ArrayLike],
        y: npt.ArrayLike,
        groups: npt.ArrayLike | None = None,
        *,
        unlabelled: Sequence[npt.ArrayLike] | None = None,
    ) -> Self:
        """Train the ensemble and its calibrator.

        Parameters
        ----------
        bags
            Embeddings of each bag, shape (tiles, dim); float16 and float32 are kept, others become
            float32. A bag without tiles is ignored.
        y
            Label of each bag, shape (bags,).
        groups
            Patient of each bag, shape (bags,). Bags of one patient must have one label; their
            tiles are joined, so that a patient is never on both sides of a split. By default each
            bag is a patient.
        unlabelled
            Further bags without labels, one per patient, that the whitening is fitted on. Copies of
            ``bags``, detected by their bytes, are left out. Bags of test patients must not be here.

        Raises
        ------
        InputError
            If bags have another form, lengths differ, a patient has two labels, a class has fewer
            patients with tiles than folds, ``prior`` or ``n_folds`` is invalid, or a stack has no
            calibrator. It is a ValueError.
        RunError
            If a setting is unknown or out of range.
        MilError
            If the device does not exist.
        CalibrationError
            If the calibrator is unknown or has too few patients of a class.
        SplitError
            If a class has fewer patients than folds when patients with equal bags count as one,
            because they are kept in one fold.
        """
        if self.prior not in ("balanced", "cohort"):
            raise InputError("prior", actual=repr(self.prior), expected="'balanced' or 'cohort'")
        if self.head == STACK and self.calibrator is None:
            raise InputError(
                "calibrator", actual="None with the head 'stack'",
                expected="'platt', which holds the weights of the stack's learners",
                hint="Or take a single head, such as head='gated'.",
            )  # fmt: skip
        arrays = _as_bags(bags)
        classes, labels = _as_labels(y, arrays)
        store, cohort = _as_cohort(arrays, labels, groups)
        if unlabelled is not None and len(unlabelled):
            others = _as_bags(unlabelled, dim=store.fingerprint.dim)
            store = store.with_unlabelled(_unseen_cohort(others, store.fingerprint))
        settings = TrainConfig(**{f.name: getattr(self, f.name) for f in fields(TrainConfig)})
        settings = replace(settings, device=str(choose_device(self.device)))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.classes_ = classes
        self.n_features_in_ = store.fingerprint.dim
        self.class_counts_ = np.bincount(cohort.labels, minlength=len(classes))
        if not self.class_counts_.all():
            raise InputError(
                "bags",
                actual=f"{self.class_counts_.tolist()} patients with tiles of each class",
                expected="at least one of each",
            )
        everyone = Fold(repeat=0, index=0, train_ids=cohort.patient_ids, test_ids=())
        folds = self._folds(store, cohort, seed) if self.calibrator is not None else (everyone,)
        settings = resolve_components(settings, folds)
        self.calibrator_ = self._calibrate(store, cohort, folds, settings=settings, seed=seed)
        ensemble = train_ensemble(
            store,
            dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True)),
            n_classes=len(classes),
            config=settings,
            seed=(seed, 2),
        )
        self.heads_ = ensemble.heads
        self.base_learners_ = ensemble.base_learners
        self.history_: tuple[EpochRecord, ...] = ensemble.history
        return self

    def predict_proba(self, bags: Sequence[npt.ArrayLike]) -> Floats:
        """Return calibrated probabilities, shape (bags, classes); the prior without tiles.

        Raises
        ------
        InputError
            If bags are not arrays of shape (tiles, dim) with the dim of the training.
        """
        arrays = self._checked(bags)
        n_classes = len(self.classes_)
        proba = np.full((len(arrays), n_classes), 1 / n_classes)
        nonempty = np.array([len(tiles) > 0 for tiles in arrays], bool)
        if nonempty.any():
            logits = np.stack(
                [
                    predict_learners(self.heads_, self.base_learners_, tiles)[0].mean(axis=0)
                    for tiles in arrays
                    if len(tiles)
                ]
            )
            calibrator = self.calibrator_ or build_calibrator("none")
            proba[nonempty] = calibrator.predict_proba(logits)
        if self.prior == "balanced":
            return proba
        shares = self.class_counts_ / self.class_counts_.sum()
        return shift_prior(proba, old=np.full(n_classes, 1 / n_classes), new=shares)

    def decision_function(self, bags: Sequence[npt.ArrayLike]) -> Floats:
        """Return calibrated log odds of ``classes_[1]``, shape (bags,).

        With more than two classes, calibrated log probabilities, shape (bags, classes).
        """
        log_proba = np.log(self.predict_proba(bags))
        return log_proba[:, 1] - log_proba[:, 0] if len(self.classes_) == 2 else log_proba

    def predict(self, bags: Sequence[npt.ArrayLike]) -> npt.NDArray[Any]:
        """Return the most probable label of each bag, shape (bags,)."""
        most_probable = self.predict_proba(bags).argmax(axis=1)
        return np.asarray(self.classes_[most_probable])

    def attention(self, bags: Sequence[npt.ArrayLike]) -> list[Floats]:
        """Return the attention of each bag's tiles, shape (tiles,): mean over heads, sum 1.

        A high attention does not mean that the tile supports the predicted class.
        """
        return [
            predict_members(self.heads_, tiles)[1].mean(axis=0) if len(tiles) else np.empty(0)
            for tiles in self._checked(bags)
        ]

    def _folds(self, store: PatientBags, cohort: Cohort, seed: int) -> tuple[Fold, ...]:
        if self.n_folds % 1 or self.n_folds < 2 or self.class_counts_.min() < self.n_folds:
            raise InputError(
                "n_folds",
                actual=f"{self.n_folds} for {self.class_counts_.tolist()} patients of each class",
                expected="a whole number, 2 or more, and no more than patients of any class",
                hint="Use fewer folds, or calibrator=None.",
            )
        linked = store.linked_patients()
        return patient_folds(cohort, n_folds=self.n_folds, n_repeats=1, seed=seed, linked=linked)

    def _calibrate(
        self,
        store: PatientBags,
        cohort: Cohort,
        folds: Sequence[Fold],
        *,
        settings: TrainConfig,
        seed: int,
    ) -> Calibrator | None:
        if self.calibrator is None:
            return None
        # An unknown one is refused before training.
        build_calibrator(self.calibrator, stacked=settings.is_stack)
        oof = cross_validate(store, cohort, folds, config=settings, seed=seed)
        every_row = np.ones(oof.fold.shape, bool)
        return fit_calibrator(oof, every_row, calibrator=self.calibrator)

    def _checked(self, bags: Sequence[npt.ArrayLike]) -> list[Features]:
        check_is_fitted(self)
        return _as_bags(bags, dim=self.n_features_in_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # ragged: a list of arrays
        return tags


def _as_bags(bags: Sequence[npt.ArrayLike], *, dim: int | None = None) -> list[Features]:
    """Return bags as finite float16 or float32 arrays, shape (tiles, dim)."""
    if len(bags) == 0:
        raise InputError("bags", actual="none", expected="one or more arrays of shape (tiles, dim)")
    arrays = [np.asarray(bag) for bag in bags]
    expected = dim or (arrays[0].shape[1] if arrays[0].ndim == 2 else 0)
    for index, tiles in enumerate(arrays):
        if tiles.ndim != 2 or tiles.shape[1] != expected or tiles.dtype.kind not in "fiu":
            raise InputError(
                f"bag {index}",
                actual=f"{tiles.dtype} of shape {tiles.shape}",
                expected=f"numbers of shape (tiles, {expected or 'dim'})",
            )
        if tiles.dtype not in (np.float16, np.float32):
            with np.errstate(over="ignore"):  # overflow gives infinity, which is refused below
                arrays[index] = tiles.astype(np.float32)
        if not np.isfinite(arrays[index]).all():
            raise InputError(f"bag {index}", actual="NaN or infinity", expected="finite float32")
    return arrays


def _as_labels(y: npt.ArrayLike, arrays: Sequence[Features]) -> tuple[npt.NDArray[Any], Ints]:
    check_consistent_length(arrays, y)
    if np.ndim(y) == 2 and np.shape(y)[1] > 1:
        raise InputError(
            "y",
            actual=f"labels of shape {np.shape(y)}",
            expected="one label per bag, shape (bags,)",
            hint="For several labels per bag, wrap it: sklearn.multioutput.MultiOutputClassifier.",
        )
    check_classification_targets(y)
    classes, labels = np.unique(column_or_1d(y), return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            "y", actual=f"one class only, {classes.tolist()[0]!r}", expected="two or more"
        )
    return classes, labels.astype(np.int64)


def _as_cohort(
    arrays: Sequence[Features], labels: Ints, groups: npt.ArrayLike | None
) -> tuple[PatientBags, Cohort]:
    """Return the patients with tiles; the bags of a patient are joined."""
    patient_ids = np.arange(len(arrays)) if groups is None else column_or_1d(groups)
    check_consistent_length(arrays, patient_ids)
    if pd.isna(patient_ids).any():
        row = int(np.flatnonzero(pd.isna(patient_ids))[0])
        raise InputError("groups", actual=f"none for bag {row}", expected="a patient for each bag")
    names, patient_of_bag = np.unique(patient_ids, return_inverse=True)
    features, patients, slides = {}, [], []
    for index in dict.fromkeys(patient_of_bag.tolist()):  # in the order of the bags
        rows = np.flatnonzero(patient_of_bag == index).tolist()
        if len(np.unique(labels[rows])) > 1:
            raise InputError(
                f"patient {names.tolist()[index]!r}",
                actual=f"{len(np.unique(labels[rows]))} labels",
                expected="one label for all bags of a patient",
            )
        tiles = np.concatenate([arrays[row] for row in rows])
        if len(tiles):
            name = str(index)
            features[name] = tiles
            slides += [_slide_record(name, arrays[row]) for row in rows]
            patients.append(
                Patient(patient_id=name, slide_ids=(), label=str(labels[rows[0]]), center_id=None)
            )
    cohort = Cohort(
        path=Path("y"), patients=tuple(patients), classes=tuple(map(str, range(labels.max() + 1)))
    )
    fingerprint = _fingerprint(arrays[0].shape[1])
    return PatientBags(features=features, fingerprint=fingerprint, slides=tuple(slides)), cohort


def _unseen_cohort(arrays: Sequence[Features], fingerprint: Fingerprint) -> PatientBags:
    """Return one patient per bag, with ids that no labelled patient has."""
    features = {f"unlabelled {index}": tiles for index, tiles in enumerate(arrays)}
    return PatientBags(
        features=features,
        fingerprint=fingerprint,
        slides=tuple(_slide_record(name, tiles) for name, tiles in features.items()),
    )


def _slide_record(name: str, tiles: Features) -> SlideRecord:
    """Return the record of a bag, identified by the hashes of its embeddings."""
    keys = make_tile_keys(tiles)
    return SlideRecord(
        slide_id=name, patient_id=name, n_tiles=len(tiles), content_id="",
        features_sha256=hashlib.sha256(np.ascontiguousarray(tiles).data).hexdigest(),
        tiles_sha256=hash_tiles(keys, dim=tiles.shape[1]), tile_sketch=sketch_tiles(keys),
    )  # fmt: skip


def _fingerprint(dim: int) -> Fingerprint:
    """Return the fingerprint of bags with a known dim and nothing else."""
    return Fingerprint(
        encoder=UNKNOWN, weights_sha256=UNKNOWN, transform=UNKNOWN, dim=dim, tile_px=0,
        target_mpp=float("nan"), overlap_px=0, tissue=UNKNOWN,
    )  # fmt: skip
