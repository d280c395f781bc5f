"""What stands behind a patient's probability: attention and contributions, tile by tile."""

__all__: list[str] = []
