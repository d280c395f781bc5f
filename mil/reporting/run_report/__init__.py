"""The report of a run: scores and baselines, figures, patients."""

from mil.evaluation.baselines import SHORTCUT, mean_logistic_probabilities, shortcut_probabilities
from mil.evaluation.bootstrap import paired_differences
from mil.reporting.run_report.data import ReportData, collect_report_data, write_report_data
from mil.reporting.run_report.page import write_report

__all__ = [
    "SHORTCUT",
    "ReportData",
    "collect_report_data",
    "mean_logistic_probabilities",
    "paired_differences",
    "shortcut_probabilities",
    "write_report",
    "write_report_data",
]
