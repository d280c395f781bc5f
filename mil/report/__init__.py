"""What a person looks at after a training: scores beside baselines, figures, patients."""

from mil.report.baseline import mean_logistic_probabilities
from mil.report.comparison import gains
from mil.report.evidence import Evidence, gather_evidence, write_evidence
from mil.report.page import write_report

__all__ = [
    "Evidence",
    "gains",
    "gather_evidence",
    "mean_logistic_probabilities",
    "write_evidence",
    "write_report",
]
