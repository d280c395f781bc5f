"""The command line ``mil``: commands over :mod:`features` and :mod:`mil`."""

__all__: list[str] = []
