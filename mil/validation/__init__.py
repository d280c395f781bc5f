"""Validation of a finished model on labelled patients of another cohort, and its recalibration."""
