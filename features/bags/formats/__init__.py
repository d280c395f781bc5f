"""Bag formats of other programs, one module each."""

__all__: list[str] = []
