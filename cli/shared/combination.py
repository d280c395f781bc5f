"""``mil infer`` with a combination of runs: bags of each encoder, predictions, summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli.console import print_json, print_next, spinner, stdout
from cli.shared.arguments import path_beside
from cli.shared.embed_missing import embed_missing
from cli.shared.output import print_caveats, print_guarantee
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.bags.bag import BagRef
    from mil.combination.bundle import Combination
    from mil.combination.fit import CombinationSummary
    from mil.data.cohort import Cohort
    from mil.inference.predict import PatientPrediction

__all__ = [
    "combination_bags",
    "draw_combination",
    "infer_combination",
    "predict_each",
    "weights_of_runs",
    "write_summary",
]


def combination_bags(
    model: Combination, folders: Sequence[Path], *, can_embed: bool = False
) -> dict[str, Path]:
    """Return the folder of bags of each run, by name; a new one where there is something to embed.

    Raises
    ------
    BagError
        If a run has no bags and there is nothing to embed.
    """
    from mil.combination.predict import find_bag_folders, missing_folder_error

    found = find_bag_folders(model, folders)
    bags = {}
    for name, folder in found.items():
        if folder is None and not can_embed:
            raise missing_folder_error(model, name, folders)
        bags[name] = folder or folders[0] / name
    return bags


def weights_of_runs(
    model: Combination, weights: Sequence[Path | None]
) -> dict[str, tuple[Path | None, ...]]:
    """Return the checkpoints of each run's backbones, by name, from those of all in order."""
    n_backbones = {
        name: 1 + member.fingerprint.encoder.count("+") for name, member in model.members.items()
    }
    if not weights:
        return dict.fromkeys(n_backbones, ())
    if len(weights) != sum(n_backbones.values()):
        encoders = ", ".join(member.fingerprint.encoder for member in model.members.values())
        raise typer.BadParameter(
            f"{len(weights)} given; one per backbone of {encoders}, in this order, `-` for "
            "installed weights",
            param_hint="--weights",
        )
    left = iter(weights)
    return {name: tuple(islice(left, n)) for name, n in n_backbones.items()}


def predict_each(
    model: Combination, cohort: Cohort, bags: Mapping[str, Path], **options: Any
) -> list[PatientPrediction]:
    """Predict a cohort with the bags of each run; ``options`` of ``predict_combination``."""
    from features.bags.store import open_bags
    from mil.combination.predict import predict_combination
    from mil.inference.predict import check_any_used

    refs: dict[str, Mapping[str, BagRef]] = {
        name: open_bags(folder, may_be_empty=True) for name, folder in bags.items()
    }
    predictions = predict_combination(model, cohort, refs, **options)
    check_any_used(predictions, next(iter(refs.values())), source=cohort.path)
    return predictions


def draw_combination(run: Path) -> Path:
    """Write ``report.html`` of combined runs again, and return its path."""
    from mil.combination.fit import summarize_combination

    page = run / "report.html"
    write_summary(page, summarize_combination(run))
    return page


def write_summary(page: Path, summary: CombinationSummary) -> None:
    """Write the page that compares a combination with its parts."""
    from mil.reporting.comparison_report import write_comparison

    write_comparison(
        page, summary.comparison, weights=summary.weights, guaranteed=summary.guaranteed
    )


def infer_combination(
    run: Path,
    cohort: Cohort,
    folders: Sequence[Path],
    out: Path,
    *,
    slides: Path | None,
    series: Path | None,
    weights: Sequence[Path | None],
    slide_mpp: float | None,
    mpp_table: Path | None,
    prior: str,
    coverage: float | None,
    abstain: bool,
    typicality: float | None,
    columns: Mapping[str, str],
    as_json: bool,
    **options: Any,
) -> bool:
    """Embed missing slides for each run, write predictions, and print a summary.

    Return whether all slides of all patients could be used. ``slide_mpp`` is in µm per level-0 px;
    ``weights`` are checkpoints of the backbones in the order of the runs, or none; ``options`` are
    fields of :class:`features.EmbedConfig`.
    """
    from features.bags.store import open_bags
    from mil.combination.bundle import load_combination
    from mil.combination.predict import combination_caveats
    from mil.inference.conformal import COVERAGE
    from mil.inference.output import (
        describe_typicality,
        patient_caveats,
        write_details,
        write_predictions,
    )

    coverage = coverage or COVERAGE
    with spinner("loading the run"):
        model = load_combination(run)
        shares = model.parse_prior(prior)
        for member in model.members.values():
            if member.typicality is not None:
                member.typicality.resolve_level(typicality)
        bags = combination_bags(model, folders, can_embed=slides is not None or series is not None)
    n_failed = 0
    slide_ids = {name for patient in cohort.patients for name in patient.slide_ids}
    own_weights = weights_of_runs(model, weights)
    for name, folder in bags.items():
        n_failed += embed_missing(
            model.members[name], slide_ids - set(open_bags(folder, may_be_empty=True)), folder,
            slides=slides, series=series, slide_mpp=slide_mpp, mpp_table=mpp_table,
            weights=own_weights[name], **options,
        )  # fmt: skip
    with spinner("predicting"):
        predictions = predict_each(
            model,
            cohort,
            bags,
            prior=shares,
            coverage=coverage,
            typicality=typicality,
            columns=columns,
        )
    details = path_beside(out, ".details.csv")
    write_predictions(out, predictions, classes=model.classes)
    write_details(details, predictions, classes=model.classes, abstain=abstain, typicality=True)
    guaranteed, planned = (
        model.guaranteed_coverage(coverage), model.coverage_of_most_cohorts(coverage)
    )  # fmt: skip
    sets = dict(sorted(Counter(p.set_text for p in predictions).items()))
    if as_json:
        print_json({
            "run": str(run),
            "out": str(out),
            "details": str(details),
            "n_patients": len(predictions),
            "bags": {name: str(folder) for name, folder in bags.items()},
            "weights": model.weights,
            "status": dict(Counter(p.status for p in predictions)),
            "n_seen_in_training": sum(bool(p.matched_training_patient) for p in predictions),
            "prior_asked_for": prior,
            "prior": dict(zip(model.classes, shares.tolist(), strict=True)),
            "coverage": coverage,
            "guaranteed": guaranteed,
            "coverage_of_most_cohorts": planned,
            "sets": sets,
            "typicality": describe_typicality(predictions),
        })  # fmt: skip
    else:
        stdout.print(f"{pluralize(len(predictions), 'patients')} into {out} (run {run})")
        stated = ", ".join(
            f"{name} {share:.3f}" for name, share in zip(model.classes, shares, strict=True)
        )
        stdout.print(f"The probabilities are for a prior of {stated} ({prior}).")
        for name, folder in bags.items():
            stdout.print(f"  {name}, weight {model.weights[name]:.3f}: bags {folder}")
        counts = ", ".join(f"{n} {name}" for name, n in sets.items())
        stdout.print(f"Prediction sets with a target coverage of {coverage:g}: {counts}")
        print_guarantee(planned, guaranteed)
        stdout.print(f"Slides, set, spread of the runs and status of each patient: {details}")
    print_caveats((*patient_caveats(predictions), *combination_caveats(model, coverage)))
    if not as_json:
        print_next("mil score {out} --cohort labels.csv", out=out)
    return not n_failed and all(p.status == "ok" for p in predictions)
