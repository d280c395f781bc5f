"""The command line ``mil``: a thin shell over :mod:`features` and :mod:`mil`."""

__all__: list[str] = []
