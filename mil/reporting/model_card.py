"""The model card of a run: model, use, data, evaluation, scores, limits (Mitchell et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from features.utils.files import atomic_write
from features.utils.text import percent
from mil.evaluation.metrics import Interval
from mil.inference.bundle import ModelBundle
from mil.inference.conformal import COVERAGE
from mil.inference.contributions import learner_weights
from mil.reporting.html import render

__all__ = ["write_model_card"]


def write_model_card(
    path: Path, run: ModelBundle, scores: Mapping[str, Mapping[str, Interval]]
) -> None:
    """Write ``MODEL_CARD.md``, with scores by kind of prediction and by metric.

    It begins with the YAML header that model hubs read.

    Raises ``OutputError`` if the file cannot be written.
    """
    counts = zip(run.cohort_counts, run.classes, strict=True)
    learners = learner_weights(run)
    text = render(
        "model_card.md",
        run=run,
        made=run.fingerprint,
        settings=run.settings,
        scores=scores,
        classes=", ".join(run.classes),
        counts=", ".join(f"{count} {name}" for count, name in counts),
        versions=", ".join(f"{name} {version}" for name, version in run.versions.items()),
        guaranteed=run.guaranteed_coverage(COVERAGE),
        planned=run.coverage_of_most_cohorts(COVERAGE),
        coverage=COVERAGE,
        learners=learners,
        models="learners" if learners else "heads",
        weights=", ".join(f"{name} {percent(weight)}" for name, weight in learners.items()),
        percent=percent,
    )
    header = ModelCardData(
        library_name="mil-slides",
        tags=["multiple-instance-learning", "whole-slide-image", "histopathology", "calibration"],
        base_model=_hub_name(run.fingerprint.encoder),
    ).to_yaml()
    with atomic_write(path) as temporary:
        temporary.write_text(f"---\n{header}\n---\n\n{text}\n", encoding="utf-8")


def _hub_name(encoder: str) -> list[str] | None:
    """Return the names on the hub of an encoder, or of several joined by ``+``; None if unknown."""
    names = [name.removeprefix("hf-hub:").split("?")[0] for name in encoder.split("+")]
    named = [name for name in names if name.count("/") == 1 and ":" not in name]
    return named or None
