"""The report of a run: scores and baselines, figures, patients."""

from mil.reporting.run_report.data import (
    ReportData,
    collect_report_data,
    read_report_data,
    write_report_data,
)
from mil.reporting.run_report.page import write_report
from mil.reporting.run_report.tissue import ShowSlide, SlidePictures, patients_shown

__all__ = [
    "ReportData",
    "ShowSlide",
    "SlidePictures",
    "collect_report_data",
    "patients_shown",
    "read_report_data",
    "write_report",
    "write_report_data",
]
