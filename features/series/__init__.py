"""Image series as bags: slices of a scan, or any images that share a label."""

__all__: list[str] = []
