"""Several binary labels per patient: table, folds, training, prediction and scores."""

__all__: list[str] = []
