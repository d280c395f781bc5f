"""Caveats of a run that its scores do not show."""

from __future__ import annotations

from features.bags.bag import UNKNOWN
from features.utils.spreadsheet_dates import date_hint
from features.utils.text import list_names
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.filtered_bags import filter_notes
from mil.training.config import TrainConfig
from mil.training.cross_validation import OutOfFoldPredictions

__all__ = ["run_caveats", "unlabelled_caveats"]


def run_caveats(
    cohort: Cohort, bags: PatientBags, oof: OutOfFoldPredictions, settings: TrainConfig
) -> tuple[str, ...]:
    """Return caveats on missing and repeated patients, unknown origins and early stopping."""
    notes = []
    if bags.missing_slides:
        why = date_hint(bags.missing_slides, {record.slide_id for record in bags.slides})
        notes.append(
            f"slides without a bag: {len(bags.missing_slides)}, {list_names(bags.missing_slides)}"
            + (f". {why}" if why else "")
        )
    with_bag = {*bags.missing_slides, *(record.slide_id for record in bags.slides)}
    if repeated := [name for name in cohort.patient_of_slide() if name not in with_bag]:
        notes.append(
            "slides that are copies of another slide of their patient, which counts once: "
            f"{len(repeated)}, {list_names(repeated)}"
        )
    n_left_out = len(cohort.patients) - len(oof.patient_ids)
    if n_left_out:
        notes.append(f"patients without a tile, left out: {n_left_out}")
    if bags.fingerprint.weights_sha256 == UNKNOWN:
        notes.append(
            "the bags were imported: the weights and preprocessing of their backbone are unknown, "
            "so nothing checks that they belong together, and no new slide can be embedded the "
            "same way"
        )
    if copies := bags.duplicate_slides():
        one, other = copies[0]
        notes.append(
            f"slides of two patients that are copies of each other: {len(copies)}, first "
            f"{one.slide_id} of {one.patient_id} and {other.slide_id} of {other.patient_id}; no "
            "fold was trained on one and tested on the other, but both count in the scores: see "
            "'mil audit', and give copies one patient id"
        )
    notes += filter_notes(bags)
    notes += bags.label_notes
    if bags.instance_labels and not settings.mixup:
        n_patients = sum(1 in own and 0 in own for own in bags.instance_labels.values())
        notes.append(
            f"the attention was also trained on labels of single images of {n_patients} patients, "
            "in each fold on those of its training patients"
        )
    if n_views := bags.fingerprint.n_views:
        notes.append(
            f"tiles have {n_views} augmented views each, and every training step used one randomly "
            "drawn view of each tile; scores are those of plain tiles, except 'views averaged' "
            "(cross-fitted), the scores of 'mil infer --tta'"
        )
    return tuple(notes)


def unlabelled_caveats(bags: PatientBags, unlabelled: PatientBags) -> tuple[str, ...]:
    """Return caveats on the unlabelled patients used for whitening, and on those left out."""
    known = bags.find_duplicates(unlabelled)
    n_used = sum(name not in known for name in unlabelled.nonempty())
    notes = [f"whitening was also fitted on {n_used} patients without using their labels"]
    if known:
        few = list_names([f"{name} is {own}" for name, own in known.items()])
        notes.append(
            f"unlabelled patients left out as patients of the cohort, by id or by the content of a "
            f"slide: {len(known)} ({few})"
        )
    if unlabelled.missing_slides:
        names = list_names(unlabelled.missing_slides)
        notes.append(f"unlabelled slides without a bag: {len(unlabelled.missing_slides)}, {names}")
    return tuple(notes)
