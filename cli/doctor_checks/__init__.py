"""Checks of ``mil doctor``: software, hardware, readers and encoder."""

__all__: list[str] = []
