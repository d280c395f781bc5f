"""The model card: what a run is, in plain words, for whoever finds its folder.

It tells what Mitchell et al. (2019) ask for: model, use, data, how it was judged, scores, limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from features.bags.bag import Fingerprint
from features.utils.files import atomic_write
from features.utils.text import percent
from mil.evaluation.metrics import Interval
from mil.inference.bundle import ModelBundle
from mil.inference.conformal import COVERAGE

__all__ = ["write_model_card"]


def write_model_card(
    path: Path, run: ModelBundle, scores: Mapping[str, Mapping[str, Interval]]
) -> None:
    """Write ``MODEL_CARD.md``.

    Parameters
    ----------
    path
        The file.
    run
        The model.
    scores
        Scores with intervals, by kind of prediction and by metric.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with atomic_write(path) as beside:
        beside.write_text(_text(run, scores), encoding="utf-8")


def _text(run: ModelBundle, scores: Mapping[str, Mapping[str, Interval]]) -> str:
    counts = ", ".join(
        f"{count} {name}" for name, count in zip(run.classes, run.cohort_counts, strict=True)
    )
    made = run.fingerprint
    rows = "\n".join(
        f"| {name} | {of_kind['weighted_log_loss']} | {of_kind['auroc']} |"
        for name, of_kind in scores.items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return f"""# Model card: {run.path.name}

**What it does.** Gives each patient a probability of {", ".join(run.classes)} from the embeddings
of the tiles of all its slides. Probabilities are calibrated for equal class shares and can be
shifted to others.

**What it is for.** Research: `mil infer --run` and this folder, for patients like those it was
trained on. It is not a medical device and not validated for any clinical use.

**What it is not for.** Single patients' treatment; other tissue, stains, scanners or ways of
preparing than those of the training slides; patients who may have none of the classes: it always
deals all probability among {", ".join(run.classes)}.

**Trained on.** {sum(run.cohort_counts)} patients ({counts}), {len(run.training_slides)} slides,
named in `slides.csv`. Labels were taken as true.

**Made of.** {len(run.heads)} heads `{run.head_name}` over {_instances(made)}, embedded by the
frozen backbone `{made.encoder}` (weights `{made.weights_sha256[:12]}`). {_views(made.n_views)}
Bags made otherwise are refused.{_filter(run)}

**How it was judged.** {_judged(run)}

**Scores**, {_kind(run)} 95 % intervals over patients, without the variance of training.

| | weighted log loss | AUROC |
| --- | --- | --- |
{rows}

**What cannot be ruled out.** {_sets(run)}

**Limits.** Scores hold for patients like these, from centres like these. A constant answer scores
{scores["constant"]["weighted_log_loss"].value:.4f}; a model whose interval reaches there has not
shown that it knows anything. One that is no better than a shortcut may have learned that and no
tissue. How it does by sex, age or origin is not known: the table has none of them. By centre, by
reliability and patient by patient it is told in `report.html`.

**Made with.** Seed {run.settings["seed"]}; {versions}. All settings stand in `model.json`.
"""


def _judged(run: ModelBundle) -> str:
    """Folds and calibrator, in words."""
    n_repeats = run.settings["n_repeats"]
    folds = (
        "Each centre by heads trained on all others"
        if run.settings["by"] == "centre"
        else f"{run.settings['n_folds']} folds of patients"
    )
    again = "" if n_repeats == 1 else f", {n_repeats} times with other folds"
    return (
        f"{folds}{again}; no slide of a patient\nis on two sides. The calibrator is "
        f"`{run.settings['calibrator']}`."
    )


def _instances(made: Fingerprint) -> str:
    """What bags hold, in words."""
    if made.target_mpp:
        return f"tiles of {made.tile_px} px at\n{made.target_mpp:g} µm/px"
    return f"tiles or images of\n{made.tile_px} px"


def _filter(run: ModelBundle) -> str:
    """What is not looked at, in words."""
    if run.tile_filter is None:
        return ""
    slides = run.tile_filter.examples.slides
    return (
        f" Tiles that filter\n`{run.tile_filter.sha256[:12]}` drops are not looked at; it learned "
        f"from examples of {len(slides)} slides."
    )


def _sets(run: ModelBundle) -> str:
    """What prediction sets promise."""
    kept = run.guaranteed_coverage(COVERAGE)
    if kept is None:
        return (
            "Nothing is guaranteed of prediction sets: folds were made by centre, or a filter\n"
            "drops tiles."
        )
    told = ", ".join(f"{name} {percent(share)}" for name, share in kept.items())
    return (
        f"Prediction sets that aim at {percent(COVERAGE)} of each class are guaranteed to hold\n"
        f"{told} at least, of new patients drawn like these, and of no others."
    )


def _views(n_views: int) -> str:
    if not n_views:
        return "It learned without augmented views."
    return f"It learned from\n{n_views} augmented views of each tile beside the plain one."


def _kind(run: ModelBundle) -> str:
    """What the patients judged had no part in."""
    if run.settings.get("nested"):
        return (
            "nested: nothing that judged a patient had seen it, neither heads nor\n"
            "calibrator nor the heads whose logits the calibrator was fitted on."
        )
    return (
        "cross-fitted: no head that judged a patient had seen it, and its calibrator was fitted\n"
        "on other patients."
    )
