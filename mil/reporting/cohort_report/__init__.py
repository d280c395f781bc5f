"""The report of a cohort before training: counts, figures and anomalies."""

from mil.reporting.cohort_report.collect import CohortSummary, summarize_cohort
from mil.reporting.cohort_report.page import render_cohort_report
from mil.reporting.cohort_report.table import (
    SlideFiles,
    SlideHeader,
    SlideTable,
    read_cohort_table,
)

__all__ = [
    "CohortSummary",
    "SlideFiles",
    "SlideHeader",
    "SlideTable",
    "read_cohort_table",
    "render_cohort_report",
    "summarize_cohort",
]
