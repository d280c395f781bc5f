"""Model bundles, predictions, prediction sets, and attention."""

__all__: list[str] = []
