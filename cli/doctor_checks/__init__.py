"""Checks of ``mil doctor``: software, hardware, readers and encoder."""
