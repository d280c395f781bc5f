"""The local page of ``mil view``: what it shows, and the small server that shows it."""

__all__: list[str] = []
