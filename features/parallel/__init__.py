"""Executors for independent jobs: in this process, one process per device, or a Ray cluster."""

__all__: list[str] = []
