"""Base learners of the stack: convex models of pooled embeddings beside the attention heads."""

from __future__ import annotations

__all__ = [
    "BASE_LEARNERS", "EARLIER_LEARNERS", "STACK", "head_kind", "learner_key", "learner_names",
]  # fmt: skip

STACK = "stack"
"""Name of the stack: an attention ensemble and the base learners, combined by the calibrator."""

BASE_LEARNERS = ("mean", "projections", "mixture", "value kernel", "rank kernel")
"""Names of the base learners of a new stack, in the order of their logits after the attention's."""

EARLIER_LEARNERS = (
    "mean", "mean + logistic", "histogram", "extremes", "spread", "covariance", "projections",
    "kernel",
)  # fmt: skip
"""Those of stacks before version 6; the first five, seven or all."""

_ATTENTION = "gated"


def head_kind(name: str) -> str:
    """Return the kind of the heads of a learner: the stack has gated attention heads."""
    return _ATTENTION if name == STACK else name


def learner_names(name: str) -> tuple[str, ...]:
    """Return the names of the learners of a new stack, attention first; a head has itself."""
    return (_ATTENTION, *BASE_LEARNERS) if name == STACK else (name,)


def learner_key(name: str) -> str:
    """Return the name of a learner for a column: without spaces and signs.

    Examples
    --------
    >>> learner_key("mean + logistic")
    'mean_logistic'
    """
    return "_".join(name.replace("+", " ").split())
