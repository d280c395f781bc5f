"""The viewer of ``mil view``: its content, and its local web server."""

__all__: list[str] = []
