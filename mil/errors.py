"""What can go wrong with a cohort or a run; the branches that learning adds to the tree.

::

    KnownError              (features.errors)
    ├── CohortError         patients, slides or labels that contradict each other
    ├── SplitError          a cohort that cannot be split as asked
    ├── PredictionsError    a predictions table that cannot be scored
    ├── CalibrationError    logits that a calibrator cannot be fitted on
    ├── InputError          arguments of a function that cannot be used (a ValueError, too)
    └── RunError            a model bundle that is missing, damaged or of another make
"""

from features.errors import KnownError

__all__ = [
    "CalibrationError",
    "CohortError",
    "InputError",
    "PredictionsError",
    "RunError",
    "SplitError",
]


class CohortError(KnownError):
    """Patients, slides or labels that contradict each other or cannot be found."""


class SplitError(KnownError):
    """A cohort too small or too one-sided for the split asked for."""


class PredictionsError(KnownError):
    """A predictions table that cannot be read as probabilities of known patients."""


class CalibrationError(KnownError):
    """Logits and labels that no calibrator can be fitted on."""


class InputError(KnownError, ValueError):
    """Arguments that cannot be used; a ValueError, as scikit-learn's users expect."""


class RunError(KnownError):
    """A model bundle that is missing, damaged or of another make."""
