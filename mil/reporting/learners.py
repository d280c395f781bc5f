"""Learners of a stack in words: their weights in a run, and those that learned nothing."""

from __future__ import annotations

from collections.abc import Mapping

from features.utils.text import percent
from mil.inference.bundle import ModelBundle
from mil.inference.contributions import learner_weights
from mil.reporting.html import Table

__all__ = ["describe_weights", "learner_caveats", "learner_words", "weights_table"]

_WORDS = {
    "gated": "attention heads",
    "mean": "mean embedding",
    "mean + logistic": "principal components of the mean",
    "histogram": "mixture of clusters",
    "extremes": "largest and smallest values",
    "spread": "spread within the patient",
    "covariance": "covariance within the patient",
    "projections": "tails along its directions",
    "mixture": "tails along the shift of a mixture",
    "kernel": "similarity to training patients",
    "value kernel": "similarity of values to training patients",
    "rank kernel": "similarity of ranks to training patients",
    "covariates": "clinical covariates",
}
_LEAST = 0.005  # a weight that reads as 1 %


def learner_words(name: str) -> str:
    """Return what a learner looks at, in words; its name where it is a single head."""
    return _WORDS.get(name, name)


def weights_table(run: ModelBundle) -> Table | None:
    """Return the weight of each learner, largest first, rows of shape (learners,); None of one."""
    weights = learner_weights(run)
    if not weights:
        return None
    constant = () if run.base_learners is None else run.base_learners.constant
    rows = [
        (learner_words(name), name, percent(weight), "no" if name in constant else "yes")
        for name, weight in sorted(weights.items(), key=lambda item: -item[1])
    ]
    columns = ["looks at", "learner", "weight", "differs between patients"]
    return Table("Learners of the stack", columns, rows, text_columns=(0, 1, 3))


def describe_weights(weights: Mapping[str, float]) -> str:
    """Return one sentence on the weights of learners by name; empty for a single head."""
    if not weights:
        return ""
    used = {name: weight for name, weight in weights.items() if weight >= _LEAST}
    if not used:
        return "No learner carries a signal: all weights are 0, and patients are told apart by none"
    largest_first = sorted(used.items(), key=lambda item: -item[1])
    named = ", ".join(f"{learner_words(name)} {percent(weight)}" for name, weight in largest_first)
    unused = [learner_words(name) for name in weights if name not in used]
    return f"Weights of the stack: {named}" + (f"; none on {', '.join(unused)}" if unused else "")


def learner_caveats(run: ModelBundle) -> tuple[str, ...]:
    """Return notes on learners that say the same of every patient, and on weights of 0."""
    notes = []
    constant = () if run.base_learners is None else run.base_learners.constant
    if constant:
        names = ", ".join(f"{name!r}" for name in constant)
        who = "it looks" if len(constant) == 1 else "they look"
        notes.append(
            f"the stack is smaller: {names} learned nothing, because what {who} at is the same "
            "for all training patients (as with one tile per patient, or equal embeddings)"
        )
    weights = learner_weights(run)
    if weights and not any(weights.values()):
        notes.append(
            "no learner of the stack carries a signal: every patient gets nearly the same "
            "probabilities"
        )
    return tuple(notes)
