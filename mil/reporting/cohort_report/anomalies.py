"""Anomalies of a cohort: possible shortcuts and faults in tables, files and bags."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from features.bags.digest import BagDigest
from features.utils.text import list_names, percent, pluralize, rounded
from mil.audit.findings import Finding, Severity
from mil.audit.tables import Split, audit_similar_ids, audit_table, audit_unclear_labels
from mil.calibration import MIN_PATIENTS_PER_CLASS
from mil.data.cohort_checks import check_cells
from mil.errors import CohortError
from mil.evaluation.metrics import wilson_interval
from mil.reporting.cohort_report.statistics import ClassDifference, Crosstab
from mil.reporting.cohort_report.table import OTHERS, SlideFiles, SlideTable

__all__ = ["check_bags", "check_centres", "check_differences", "check_files", "check_table"]

_N_FOLDS = 5
"""Folds of ``mil train`` unless asked for others."""
_MIN_SHARE_DIFFERENCE = 0.10
_MIN_PATIENTS = 10
_RARE_SHARE = 0.35
_ALPHA = 0.01
_MAX_MPP_RATIO = 1.5
_LIKE_A_NUMBER = re.compile(r"[0-9]+e[0-9]+", re.IGNORECASE)


def check_table(table: SlideTable) -> Iterator[Finding]:
    """Yield findings on faulty rows and cells, imbalanced classes and fragile ids."""
    split = Split(name="train", path=table.path, rows=table.rows)
    yield from audit_table(split)
    yield from audit_similar_ids([split])
    yield from audit_unclear_labels([split])
    yield from _check_cells(table)
    if table.n_rows_repeated:
        yield Finding(
            Severity.warning, "row_repeated",
            f"{pluralize(table.n_rows_repeated, 'rows')} of the table not counted, as equal to an "
            "earlier row in every cell", "Delete them.",
        )  # fmt: skip
    if table.n_rows_left_out:
        yield Finding(
            Severity.warning, "row_without_id",
            f"{pluralize(table.n_rows_left_out, 'rows')} without a slide or patient id, not "
            "counted below",
            "Add the ids, or delete the rows.",
        )  # fmt: skip
    for column in table.columns:
        if column.n_missing and column.role:
            yield Finding(
                Severity.warning, "value_missing",
            f"column {column.name!r} ({column.role}) is empty in "
                f"{column.n_missing} of {pluralize(table.n_rows, 'rows')}",
            )  # fmt: skip
    yield from _check_classes(table)
    yield from _check_ids(table)


def _check_cells(table: SlideTable) -> Iterator[Finding]:
    """Yield a finding on the first cell that can be no id, label or centre; empty ones are told."""
    rows = table.rows
    whole = rows[(rows.drop(columns="centre", errors="ignore") != "").all(axis=1)]
    if whole.empty:
        return
    try:
        check_cells(table.path, whole)
    except CohortError as error:
        yield Finding(
            Severity.warning, "table_refused",
            f"training would refuse the table: {str(error).removesuffix('.')}",
            "It is described as it is.",
        )  # fmt: skip


def check_centres(table: SlideTable, patients: Crosstab) -> Iterator[Finding]:
    """Yield findings on centres whose share of a class differs by ten points from the others'.

    The counts of ``patients`` have shape (centres, classes); with two classes only the rarer is
    compared. Intervals are those of Wilson (1927).
    """
    counts, totals = patients.counts, patients.totals
    if not table.labelled or len(totals) < 2:
        return
    n_classes = len(patients.classes)
    for index in [int(counts.sum(axis=0).argmin())] if n_classes == 2 else range(n_classes):
        if patients.classes[index] not in table.known_classes:
            continue
        elsewhere = (counts[:, index].sum() - counts[:, index]) / (totals.sum() - totals)
        difference = np.where(totals >= _MIN_PATIENTS, patients.shares[:, index] - elsewhere, 0.0)
        order = [int(row) for row in np.argsort(-difference, kind="stable")]
        rows = [row for row in order if abs(difference[row]) >= _MIN_SHARE_DIFFERENCE]
        if rows:
            by_centre = bool((np.count_nonzero(counts, axis=0) > 1).all())
            yield _centre_finding(patients, rows, index, by_centre=by_centre)


def check_differences(differences: Sequence[ClassDifference]) -> Iterator[Finding]:
    """Yield findings on variables that differ between classes, after Bonferroni correction."""
    for difference in differences:
        if difference.p_value * len(differences) > _ALPHA:
            continue
        first, second = (rounded(median, digits=4) for median in difference.medians)
        yield Finding(
            Severity.warning, "measure_tells_label",
            f"{difference.measure} differs between classes: median over patients {first} for "
            f"{difference.classes[0]} and {second} for {difference.classes[1]} (AUROC "
            f"{difference.auroc:.2f}, p {difference.p_value:.2g} before correction for "
            f"{len(differences)} measures)",
            "A model may learn it instead of tissue; 'mil audit' measures how well it predicts the "
            "label.",
            (difference.measure,),
        )  # fmt: skip


def check_files(table: SlideTable, files: SlideFiles) -> Iterator[Finding]:
    """Yield findings on missing, extra, copied and unreadable files, and resolutions (µm/px)."""
    known = list(table.slides["slide"])
    named = set(known)
    if failed := sorted(named & files.failures.keys()):
        message = f"{pluralize(len(failed), 'slides')} cannot be opened: {list_names(failed)}"
        advice = f"The first: {files.failures[failed[0]]}"
        yield Finding(Severity.warning, "file_unreadable", message, advice, tuple(failed))
    with_file = files.headers.keys() | files.failures.keys()
    if missing := [slide for slide in known if slide not in with_file]:
        yield _missing("file", missing, len(known))
    if extra := sorted(with_file - named):
        message = (
            f"{pluralize(len(extra), 'files')} that the table does not name: {list_names(extra)}"
        )
        yield Finding(Severity.note, "file_not_in_table", message, "", tuple(extra))
    yield from _check_copies(table, files)
    yield from _check_resolutions(files, known)


def check_bags(
    table: SlideTable, bags: Mapping[str, BagDigest], *, refused: Collection[str] = ()
) -> Iterator[Finding]:
    """Yield findings on missing and empty bags, and on bags with different fingerprints.

    Slides whose bags were ``refused`` are not missing one.
    """
    known = list(table.slides["slide"])
    if missing := [slide for slide in known if slide not in bags and slide not in refused]:
        yield _missing("bag", missing, len(known), "Embed them with 'mil embed'.")
    if empty := [bag.slide_id for bag in bags.values() if not bag.n_tiles]:
        message = f"{pluralize(len(empty), 'bags')} without a tile: {list_names(empty)}"
        advice = f"The first: {bags[empty[0]].meta.empty_reason or 'no reason is stored'}."
        yield Finding(Severity.warning, "bag_empty", message, advice, tuple(empty))
    n_ways = len({bag.meta.fingerprint for bag in bags.values()})
    if n_ways > 1:
        yield Finding(
            Severity.warning, "bags_differ",
            f"bags were made in {n_ways} different ways; their tiles "
            "cannot be compared and training would refuse them",
            "See 'mil bags verify', and embed all slides with the same settings.",
        )  # fmt: skip


def _check_classes(table: SlideTable) -> Iterator[Finding]:
    labels = Counter(dict.fromkeys(table.known_classes, 0))
    labels.update(str(name) for name in table.patients["label"] if name in labels)
    if not table.labelled:
        yield Finding(
            Severity.note, "no_labels", "the table has no column 'label': classes are left out"
        )
        return
    if len(labels) < 2:
        yield Finding(
            Severity.warning, "one_class", "all patients with a label have the same one, "
            f"{next(iter(labels), 'none')}: there is nothing to learn",
        )  # fmt: skip
        return
    yield from _check_class_sizes(table)
    (common, n_common), *_, (rare, n_rare) = labels.most_common()
    total = labels.total()
    if OTHERS not in table.classes and total and n_rare / total < _RARE_SHARE:
        rarer = "rarer" if len(labels) == 2 else "rarest"
        yield Finding(
            Severity.note, "class_rare",
            f"{rare} is the {rarer} class: {n_rare} of {total} patients "
            f"({percent(n_rare / total, digits=1)}); accuracy says little here, since always "
            f"predicting {common} is right for {percent(n_common / total, digits=1)}", "", (rare,),
        )  # fmt: skip


def _check_class_sizes(table: SlideTable) -> Iterator[Finding]:
    """Find classes, also of those that are not shown, that training or its usual folds refuse."""
    labelled = table.rows[table.rows["label"] != ""].drop_duplicates(["patient", "label"])
    sizes = labelled.drop_duplicates("patient", keep=False)["label"].value_counts()
    counts = {str(name): int(sizes.get(name, 0)) for name in sorted(labelled["label"].unique())}
    least = MIN_PATIENTS_PER_CLASS + 1
    small = {name: count for name, count in counts.items() if count < least}
    if small:
        those = "that class" if len(small) == 1 else "these classes"
        yield Finding(
            Severity.warning, "class_too_small",
            f"'mil train' refuses a class of fewer than {least} patients: "
            f"{list_names([f'{name} has {count}' for name, count in small.items()])}",
            f"Add patients of {those}, or take {those} out of the table.", tuple(small),
        )  # fmt: skip
    elif few := [name for name, count in counts.items() if count < _N_FOLDS]:
        yield Finding(
            Severity.warning, "class_too_small",
            f"{list_names(few)}: fewer patients than the {_N_FOLDS} folds of 'mil train'",
            f"Train with 'mil train --folds {min(counts.values())}', or add patients of "
            f"{'that class' if len(few) == 1 else 'these classes'}.", tuple(few),
        )  # fmt: skip


def _check_ids(table: SlideTable) -> Iterator[Finding]:
    names = list(table.patients["patient"])
    digits = [name for name in names if name.isascii() and name.isdigit()]
    zeros = [name for name in digits if name.startswith("0") and len(name) > 1]
    powers = [name for name in names if _LIKE_A_NUMBER.fullmatch(name)]
    if powers or (digits and len(digits) < len(names)) or zeros:
        kinds = {f"{len(digits)} of digits only ({len(zeros)} with a leading 0)": digits,
                 f"{len(powers)} like powers of ten": powers}  # fmt: skip
        yield Finding(
            Severity.note, "ids_like_numbers",
            "patient ids that look like numbers: "
            f"{', '.join(kind for kind, some in kinds.items() if some)}; "
            "programs that read them as numbers change them",
            "Read ids as text (in pandas: dtype=str); this program does.",
            (*digits, *powers),
        )  # fmt: skip


def _centre_finding(
    patients: Crosstab, rows: Sequence[int], index: int, *, by_centre: bool
) -> Finding:
    """Return the finding on centres; ``by_centre`` where each class is at two or more."""
    parts = []
    for row in rows:
        count, total = int(patients.counts[row, index]), int(patients.totals[row])
        low, high = (100 * end for end in wilson_interval(count / total, total))
        share = percent(count / total, digits=1)
        parts.append(
            f"centre {patients.names[row]} with {share} ({count} of {total} patients; 95 % "
            f"interval {low:.0f} to {high:.0f} %)"
        )
    overall = percent(patients.counts[:, index].sum() / patients.totals.sum(), digits=1)
    return Finding(
        Severity.warning, "centre_differs",
        f"the share of {patients.classes[index]}, {overall} of all, differs between centres: "
        f"{', '.join(parts)}",
        "By chance or not, a model that recognises a centre by glass or stain gains from it: see "
        "'mil audit'" + (", and train with 'mil train --by centre'." if by_centre else "."),
        tuple(patients.names[row] for row in rows),
    )  # fmt: skip


def _check_copies(table: SlideTable, files: SlideFiles) -> Iterator[Finding]:
    rows = {str(row["slide"]): row for row in table.slides.to_dict("records")}
    same = defaultdict(list)
    for slide_id, header in sorted(files.headers.items()):
        if header.content_id:
            same[header.content_id].append(slide_id)
    for names in same.values():
        if len(names) < 2:
            continue
        listed = [
            f"{name} (patient {rows[name]['patient']}, {rows[name]['label']})"
            if name in rows else f"{name} (not in the table)"
            for name in names
        ]  # fmt: skip
        apart = len({rows[name]["patient"] for name in names if name in rows}) > 1
        yield Finding(
            Severity.error if apart else Severity.warning, "file_copied",
            f"{len(names)} files of the same content: {list_names(listed)}",
            "Keep one" + ("; folds could hold it in training and test." if apart else "."),
            tuple(names),
        )  # fmt: skip


def _check_resolutions(files: SlideFiles, known: Sequence[str]) -> Iterator[Finding]:
    headers = [files.headers[slide] for slide in known if slide in files.headers]
    unknown = [header.slide_id for header in headers if math.isnan(header.mpp)]
    if unknown:
        yield Finding(
            Severity.warning if len(unknown) < len(headers) else Severity.note,
            "resolution_unknown",
            f"{len(unknown)} of {pluralize(len(headers), 'slides')} state no plausible "
            f"resolution: {list_names(unknown)}",
            "State it in 'mil embed' with --slide-mpp or --mpp-table.", tuple(unknown),
        )  # fmt: skip
    mpps = {header.slide_id: header.mpp for header in headers if not math.isnan(header.mpp)}
    usual = float(np.median(list(mpps.values()))) if mpps else math.nan
    outliers = [
        s for s, mpp in mpps.items() if not 1 / _MAX_MPP_RATIO < mpp / usual < _MAX_MPP_RATIO
    ]
    if outliers:
        yield Finding(
            Severity.warning, "resolution_far",
            f"{pluralize(len(outliers), 'slides')} off the median "
            f"resolution of {usual:.3g} µm/px by a factor of {_MAX_MPP_RATIO} or more: "
            f"{list_names(outliers)}", "", tuple(outliers),
        )  # fmt: skip


def _missing(what: str, slide_ids: Sequence[str], n_slides: int, advice: str = "") -> Finding:
    names = list_names(slide_ids)
    message = f"{len(slide_ids)} of {pluralize(n_slides, 'slides')} have no {what}: {names}"
    return Finding(Severity.warning, f"{what}_missing", message, advice, tuple(slide_ids))
