"""Series of images as bags: slices of a scan, patches of tissue, whatever carries one label."""

__all__: list[str] = []
