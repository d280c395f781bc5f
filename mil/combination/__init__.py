"""Combination of several runs on the same patients into one model."""
