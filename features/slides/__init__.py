"""One reader a file behind one small protocol; nothing else touches a reader library."""

__all__: list[str] = []
