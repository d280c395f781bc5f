"""How independent pieces of work run: in this process, in a process a device, on a Ray cluster."""

__all__: list[str] = []
