"""Paired comparison of several models on the patients that they share."""
