"""Tile filters: labelled example tiles, training of a classifier, and its application."""
