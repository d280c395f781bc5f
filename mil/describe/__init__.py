"""Describe a cohort before anything is trained on it: a page of counts, figures and words."""

from mil.describe.description import Description, describe
from mil.describe.gallery import THUMBNAIL_PX, choose_for_gallery
from mil.describe.page import render_description
from mil.describe.slides import SlideFiles, SlideHeader
from mil.describe.table import SlideTable

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
