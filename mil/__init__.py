"""Bags and labels into calibrated patient probabilities.

The packages, in the order in which data pass through them:

- :mod:`mil.data`: cohort table, patients' bags, splits, linked patients
- :mod:`mil.heads`: multiple-instance heads, from mean pooling to transformers
- :mod:`mil.training`: trainer, ensembles and cross-validation
- :mod:`mil.calibration`: calibrators fitted on out-of-fold logits, prior shift
- :mod:`mil.evaluation`: metrics, reliability, baselines
- :mod:`mil.inference`: model bundle, predictions, prediction sets, attention
- :mod:`mil.audit`: leaks and shortcuts in a cohort
- :mod:`mil.reporting`: reports, model card, figures
- :mod:`mil.multilabel`: several labels per patient

:func:`train_run` does all of a training, :func:`predict` applies the result, and
:class:`MILClassifier` is the learner as a scikit-learn estimator. The names below are imported on
first use, so that ``import mil`` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mil.classifier import MILClassifier
    from mil.data.bags import load_patient_bags
    from mil.data.cohort import read_cohort
    from mil.inference.bundle import load_bundle
    from mil.inference.predict import predict
    from mil.training.config import TrainConfig
    from mil.training_run import train_run

__all__ = [
    "MILClassifier",
    "TrainConfig",
    "load_bundle",
    "load_patient_bags",
    "predict",
    "read_cohort",
    "train_run",
]

_MODULES = {
    "MILClassifier": "mil.classifier",
    "TrainConfig": "mil.training.config",
    "load_bundle": "mil.inference.bundle",
    "load_patient_bags": "mil.data.bags",
    "predict": "mil.inference.predict",
    "read_cohort": "mil.data.cohort",
    "train_run": "mil.training_run",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """List the public names too, for completion in an interactive session."""
    return sorted({*globals(), *__all__})
