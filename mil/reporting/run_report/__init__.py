"""What a person looks at after a training: scores beside baselines, figures, patients."""

from mil.evaluation.baselines import SHORTCUT, mean_logistic_probabilities, shortcut_probabilities
from mil.evaluation.paired_bootstrap import gains
from mil.reporting.run_report.data import Evidence, gather_evidence, write_evidence
from mil.reporting.run_report.page import write_report

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
