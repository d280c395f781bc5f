"""The model card of a run: model, use, data, evaluation, scores, limits (Mitchell et al., 2019)."""

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
    """Write ``MODEL_CARD.md``, with scores by kind of prediction and by metric.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(_text(run, scores), encoding="utf-8")


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

**What it is not for.** Treatment of single patients; other tissue, stains, scanners or preparations
than those of the training slides; patients who may have none of the classes: the probabilities of
{", ".join(run.classes)} always sum to 1.

**Trained on.** {sum(run.cohort_counts)} patients ({counts}), {len(run.training_slides)} slides,
listed in `slides.csv`. Labels were assumed to be correct.

**Made of.** {len(run.heads)} heads `{run.head_name}` over {_instances(made)}, embedded by the
frozen backbone `{made.encoder}` (weights `{made.weights_sha256[:12]}`). {_views(made.n_views)}
Bags made with other settings are refused.{_filter(run)}

**How it was evaluated.** {_evaluation(run)}

**Scores**, {_kind(run)} 95 % intervals over patients, without the variance of training.

| | weighted log loss | AUROC |
| --- | --- | --- |
{rows}

**What cannot be ruled out.** {_sets(run)}

**Limits.** Scores hold for patients and centres like these. A constant prediction scores
{scores["constant"]["weighted_log_loss"].value:.4f}; a model whose interval includes that value has
not been shown to be useful. A model that is no better than a shortcut may have learned the shortcut
instead of tissue. Performance by sex, age or origin is not known, as the table has none of them.
`report.html` shows it by centre, by reliability and for single patients.

**Made with.** Seed {run.settings["seed"]}; {versions}. All settings are in `model.json`.
"""


def _evaluation(run: ModelBundle) -> str:
    n_repeats = run.settings["n_repeats"]
    folds = (
        "Each centre by heads trained on all others"
        if run.settings["by"] == "centre"
        else f"{run.settings['n_folds']} folds of patients"
    )
    repeated = "" if n_repeats == 1 else f", repeated {n_repeats} times with different folds"
    return (
        f"{folds}{repeated}; no patient\nis in both training and test. The calibrator is "
        f"`{run.settings['calibrator']}`."
    )


def _instances(made: Fingerprint) -> str:
    if made.target_mpp:
        return f"tiles of {made.tile_px} px at\n{made.target_mpp:g} µm/px"
    return f"tiles or images of\n{made.tile_px} px"


def _filter(run: ModelBundle) -> str:
    if run.tile_filter is None:
        return ""
    return (
        f" Tiles dropped by filter\n`{run.tile_filter.sha256[:12]}` are not used; it was fitted on "
        f"examples of {len(run.tile_filter.examples.slides)} slides."
    )


def _sets(run: ModelBundle) -> str:
    guaranteed = run.guaranteed_coverage(COVERAGE)
    if guaranteed is None:
        return (
            "Prediction sets have no guarantee: folds were made by centre, or a filter drops\n"
            "tiles."
        )
    shares = ", ".join(f"{name} {percent(share)}" for name, share in guaranteed.items())
    return (
        f"Prediction sets with target coverage {percent(COVERAGE)} per class are guaranteed to\n"
        f"cover {shares} at least, for new patients drawn like these only."
    )


def _views(n_views: int) -> str:
    if not n_views:
        return "It was trained without augmented views."
    return f"It was trained on\nthe plain view and {n_views} augmented views of each tile."


def _kind(run: ModelBundle) -> str:
    if run.settings.get("nested"):
        return (
            "nested: no patient was used for the heads and calibrator that predict it, nor for\n"
            "the heads whose logits the calibrator was fitted on."
        )
    return (
        "cross-fitted: no patient was used to train the heads or fit the calibrator that predict\n"
        "it."
    )
