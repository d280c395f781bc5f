"""Describe a cohort before anything is trained on it: a page of counts, figures and words."""

from mil.reporting.cohort_report.collect import Description, describe
from mil.reporting.cohort_report.page import THUMBNAIL_PX, choose_for_gallery, render_description
from mil.reporting.cohort_report.slides import SlideFiles, SlideHeader
from mil.reporting.cohort_report.table import SlideTable

__all__ = [
    "THUMBNAIL_PX",
    "Description",
    "SlideFiles",
    "SlideHeader",
    "SlideTable",
    "choose_for_gallery",
    "describe",
    "render_description",
]
