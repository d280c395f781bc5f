"""Bags of other programs into ours and back, one module a layout, and the check of a folder."""

__all__: list[str] = []
