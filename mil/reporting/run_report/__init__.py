"""The report of a run: scores and baselines, figures, patients."""

from mil.reporting.run_report.data import (
    ReportData,
    collect_report_data,
    read_report_data,
    write_report_data,
)
from mil.reporting.run_report.page import index_link, patient_links, write_report
from mil.reporting.run_report.tissue import (
    PatientTissue,
    ShowSlide,
    SlidePictures,
    patients_shown,
    show_best,
)

__all__ = [
    "PatientTissue",
    "ReportData",
    "ShowSlide",
    "SlidePictures",
    "collect_report_data",
    "index_link",
    "patient_links",
    "patients_shown",
    "read_report_data",
    "show_best",
    "write_report",
    "write_report_data",
]
