"""Several labels a patient, each yes or no: table, folds, runs, probabilities and scores."""

__all__: list[str] = []
