"""``mil infer`` with a combination of runs: bags of each encoder, predictions, summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.console import print_json, print_next, spinner, stdout
from cli.shared.embed_missing import embed_missing_slides
from cli.shared.output import print_caveats
from features.utils.text import pluralize

if TYPE_CHECKING:
    from features.bags.bag import BagRef
    from mil.combination.bundle import Combination
    from mil.data.cohort import Cohort
    from mil.inference.predict import PatientPrediction

__all__ = ["combination_bags", "infer_combination", "predict_each"]


def combination_bags(
    model: Combination, folders: Sequence[Path], *, slides: Path | None = None
) -> dict[str, Path]:
    """Return the folder of bags of each run, by name; with ``slides``, also a new one.

    Raises
    ------
    BagError
        If a run has no bags and there are no slides to embed.
    """
    from mil.combination.predict import find_bag_folders, missing_folder_error

    found = find_bag_folders(model, folders)
    bags = {}
    for name, folder in found.items():
        if folder is None and slides is None:
            raise missing_folder_error(model, name, folders)
        bags[name] = folder or folders[0] / name
    return bags


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


def infer_combination(
    run: Path,
    cohort: Cohort,
    folders: Sequence[Path],
    out: Path,
    *,
    slides: Path | None,
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
    ``options`` are fields of :class:`features.EmbedConfig`.
    """
    from features.bags.store import open_bags
    from mil.combination.bundle import load_combination
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
        bags = combination_bags(model, folders, slides=slides)
    n_failed = 0
    slide_ids = {name for patient in cohort.patients for name in patient.slide_ids}
    for name, folder in bags.items():
        missing = slide_ids - set(open_bags(folder, may_be_empty=True))
        if slides is not None and missing:
            n_failed += embed_missing_slides(
                model.members[name], missing, slides, folder, slide_mpp=slide_mpp,
                mpp_table=mpp_table, **options,
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
    details = out.with_name(f"{out.stem}.details.csv")
    write_predictions(out, predictions, classes=model.classes)
    write_details(details, predictions, classes=model.classes, abstain=abstain, typicality=True)
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
            "guaranteed": None,
            "sets": sets,
            "typicality": describe_typicality(predictions),
        })  # fmt: skip
    else:
        stdout.print(f"{pluralize(len(predictions), 'patients')} into {out} (run {run})")
        stdout.print(f"The probabilities are for a prior of {prior}.")
        for name, folder in bags.items():
            stdout.print(f"  {name}, weight {model.weights[name]:.3f}: bags {folder}")
        counts = ", ".join(f"{n} {name}" for name, n in sets.items())
        stdout.print(f"Prediction sets with a target coverage of {coverage:g}: {counts}")
        stdout.print(f"Slides, set, spread of the runs and status of each patient: {details}")
    print_caveats((
        *patient_caveats(predictions),
        "note: the sets of combined runs aim at their coverage, and none is guaranteed",
    ))  # fmt: skip
    if not as_json:
        print_next("mil score {out} --cohort labels.csv", out=out)
    return not n_failed and all(p.status == "ok" for p in predictions)
