"""Describe a cohort before anything is trained on it: a page of counts, figures and words."""

from mil.reporting.cohort_report.collect import CohortSummary, summarize_cohort
from mil.reporting.cohort_report.page import THUMBNAIL_PX, choose_for_gallery, render_description
from mil.reporting.cohort_report.slides import SlideFiles, SlideHeader
from mil.reporting.cohort_report.table import SlideTable

__all__ = [
    "THUMBNAIL_PX",
    "CohortSummary",
    "SlideFiles",
    "SlideHeader",
    "SlideTable",
    "choose_for_gallery",
    "render_description",
    "summarize_cohort",
]
