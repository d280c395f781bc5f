"""Tissue mask, tile grid, artefact rules, and the pixels of each tile."""
