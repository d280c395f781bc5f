"""Thumbnails, heatmaps, Deep Zoom tiles, and the preview page."""
