"""What a person looks at after a training: scores beside baselines, figures, patients."""

from mil.report.baseline import SHORTCUT, mean_logistic_probabilities, shortcut_probabilities
from mil.report.comparison import gains
from mil.report.evidence import Evidence, gather_evidence, write_evidence
from mil.report.page import write_report

__all__ = [
    "SHORTCUT",
    "Evidence",
    "gains",
    "gather_evidence",
    "mean_logistic_probabilities",
    "shortcut_probabilities",
    "write_evidence",
    "write_report",
]
