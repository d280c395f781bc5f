"""Explanation pages: attention maps, tiles and exports of every patient."""

from mil.reporting.explanation.page import write_index, write_page
from mil.reporting.explanation.write import ExplanationReport, write_explanations

__all__ = ["ExplanationReport", "write_explanations", "write_index", "write_page"]
