"""What can go wrong with a cohort or a run; the branches that learning adds to the tree.

::

    MilError              (features.errors)
    ├── CohortError         patients, slides or labels that contradict each other
    ├── SplitError          a cohort that cannot be split as asked
    ├── PredictionsError    a predictions table that cannot be scored
    ├── CalibrationError    logits that a calibrator cannot be fitted on
    ├── InputError          arguments of a function that cannot be used (a ValueError, too)
    └── RunError            a model bundle that is missing, damaged or of another make
"""

from features.errors import MilError

__all__ = [
    "CalibrationError",
    "CohortError",
    "InputError",
    "PredictionsError",
    "RunError",
    "SplitError",
]


class CohortError(MilError):
    """Patients, slides or labels that contradict each other or cannot be found."""


class SplitError(MilError):
    """A cohort too small or too one-sided for the split asked for."""


class PredictionsError(MilError):
    """A predictions table that cannot be read as probabilities of known patients."""


class CalibrationError(MilError):
    """Logits and labels that no calibrator can be fitted on."""


class InputError(MilError, ValueError):
    """Arguments that cannot be used; a ValueError, as scikit-learn's users expect."""


class RunError(MilError):
    """A model bundle that is missing, damaged or of another make."""
