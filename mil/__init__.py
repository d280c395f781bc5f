"""The learning half: bags and labels become calibrated patient probabilities."""

__all__: list[str] = []
