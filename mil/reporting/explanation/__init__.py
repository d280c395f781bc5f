"""Explanation pages: attention maps, tiles and exports of every patient."""

from mil.reporting.explanation.page import (
    ExplanationReport,
    write_explanations,
    write_index,
    write_page,
)

__all__ = ["ExplanationReport", "write_explanations", "write_index", "write_page"]
