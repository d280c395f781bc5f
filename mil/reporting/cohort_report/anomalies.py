"""What is odd about a cohort, in words: what a model could mistake for the class, or stumble on."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from features.utils.text import percent, pluralize
from mil.audit.findings import Finding, Severity, abbreviate
from mil.audit.tables import Split, audit_similar_ids, audit_table
from mil.evaluation.metrics import wilson_interval
from mil.reporting.cohort_report.crosstab import Crosstab
from mil.reporting.cohort_report.slides import SlideBag, SlideFiles
from mil.reporting.cohort_report.statistics import ClassDifference
from mil.reporting.cohort_report.table import SlideTable

__all__ = ["odd_bags", "odd_centres", "odd_differences", "odd_files", "odd_table"]

_FAR_SHARE = 0.10
"""Difference of a centre's share from the others' that is worth a warning: ten points."""
_LEAST_PATIENTS = 10
_RARE_SHARE = 0.35
_LARGEST_P = 0.01
_FAR_MPP = 1.5
_LIKE_A_NUMBER = re.compile(r"[0-9]+e[0-9]+", re.IGNORECASE)


def odd_table(table: SlideTable) -> Iterator[Finding]:
    """Faults of rows and cells, classes far from balance, and ids that other programs spoil."""
    side = Split(name="train", path=table.path, rows=table.rows)
    yield from audit_table(side)
    yield from audit_similar_ids([side])
    if table.n_rows_repeated:
        yield _found(
            "warning", "row_repeated", f"{pluralize(table.n_rows_repeated, 'rows')} of the table "
            "equal an earlier row in every cell; they are counted once", "Delete them.",
        )  # fmt: skip
    if table.n_rows_left_out:
        yield _found(
            "warning", "row_without_id", f"{pluralize(table.n_rows_left_out, 'rows')} without a "
            "slide or patient id; nothing below counts them",
            "Fill the ids in, or delete the rows.",
        )  # fmt: skip
    for column in table.columns:
        if column.n_missing and column.role:
            yield _found(
                "warning", "value_missing", f"column {column.name!r} ({column.role}) is empty in "
                f"{column.n_missing} of {pluralize(table.n_rows, 'rows')}",
            )  # fmt: skip
    yield from _odd_classes(table)
    yield from _fragile_ids(table)


def odd_centres(table: SlideTable, patients: Crosstab) -> Iterator[Finding]:
    """Centres whose share of a class lies ten points or more from that of all others together.

    Of two classes the rarer is looked at, of more each. Intervals are those of Wilson (1927).
    """
    counts, totals = patients.counts, patients.totals
    if not table.labelled or len(totals) < 2:
        return
    n_classes = len(patients.classes)
    for index in [int(counts.sum(axis=0).argmin())] if n_classes == 2 else range(n_classes):
        elsewhere = (counts[:, index].sum() - counts[:, index]) / (totals.sum() - totals)
        off = np.where(totals >= _LEAST_PATIENTS, patients.shares[:, index] - elsewhere, 0.0)
        order = [int(row) for row in np.argsort(-off, kind="stable")]
        if above := [row for row in order if off[row] >= _FAR_SHARE]:
            yield _far_centres(patients, above, index, word="more")
        if below := [row for row in reversed(order) if off[row] <= -_FAR_SHARE]:
            yield _far_centres(patients, below, index, word="fewer")


def odd_differences(differences: Sequence[ClassDifference]) -> Iterator[Finding]:
    """Measures that tell the classes apart, after Bonferroni's correction."""
    for difference in differences:
        if difference.p_value * len(differences) > _LARGEST_P:
            continue
        first, second = difference.medians
        yield _found(
            "warning", "measure_tells_label",
            f"{difference.measure} differs between classes: of patients, median {first:.4g} for "
            f"{difference.classes[0]} and {second:.4g} for {difference.classes[1]} (AUROC "
            f"{difference.auroc:.2f}, p {difference.p_value:.2g} before correction for "
            f"{len(differences)} measures)",
            "A model may learn it in place of tissue; 'mil audit' measures how far that goes.",
            [difference.measure],
        )  # fmt: skip


def odd_files(table: SlideTable, files: SlideFiles) -> Iterator[Finding]:
    """Slides without file, files without row, copies, and headers that differ from the others'."""
    known = list(table.slides["slide"])
    named = set(known)
    if failed := sorted(named & files.failures.keys()):
        message = f"{pluralize(len(failed), 'slides')} cannot be opened: {abbreviate(failed)}"
        advice = f"The first: {files.failures[failed[0]]}"
        yield _found("warning", "file_unreadable", message, advice, failed)
    seen = files.headers.keys() | files.failures.keys()
    if missing := [slide for slide in known if slide not in seen]:
        message = (
            f"{len(missing)} of {pluralize(len(known), 'slides')} have no file: "
            f"{abbreviate(missing)}"
        )
        yield _found("warning", "file_missing", message, "", missing)
    if extra := sorted(seen - named):
        message = (
            f"{pluralize(len(extra), 'files')} that the table does not name: {abbreviate(extra)}"
        )
        yield _found("note", "file_not_in_table", message, "", extra)
    yield from _copies(table, files)
    yield from _resolutions(files, known)


def odd_bags(table: SlideTable, bags: Mapping[str, SlideBag]) -> Iterator[Finding]:
    """Slides without bag, empty bags, and bags made in different ways."""
    known = list(table.slides["slide"])
    if missing := [slide for slide in known if slide not in bags]:
        message = (
            f"{len(missing)} of {pluralize(len(known), 'slides')} have no bag: "
            f"{abbreviate(missing)}"
        )
        yield _found("warning", "bag_missing", message, "Embed them with 'mil embed'.", missing)
    if empty := [bag.slide_id for bag in bags.values() if not bag.n_tiles]:
        message = f"{pluralize(len(empty), 'bags')} without a tile: {abbreviate(empty)}"
        advice = f"The first: {bags[empty[0]].empty_reason or 'it does not say why'}."
        yield _found("warning", "bag_empty", message, advice, empty)
    n_ways = len({bag.fingerprint for bag in bags.values()})
    if n_ways > 1:
        yield _found(
            "warning", "bags_differ", f"bags were made in {n_ways} different ways; their tiles "
            "cannot be compared and training would refuse them",
            "See 'mil bags verify', and embed all slides with the same settings.",
        )  # fmt: skip


def _odd_classes(table: SlideTable) -> Iterator[Finding]:
    labels = Counter(dict.fromkeys(table.known_classes, 0))
    labels.update(str(name) for name in table.patients["label"] if name in labels)
    if not table.labelled:
        yield _found("note", "no_labels", "the table has no column 'label': classes are left out")
        return
    if len(labels) < 2:
        yield _found(
            "warning", "one_class", "all patients with a label have the same, "
            f"{next(iter(labels), 'none')}: there is nothing to learn",
        )  # fmt: skip
        return
    (common, n_common), *_, (rare, n_rare) = labels.most_common()
    total = labels.total()
    if total and n_rare / total < _RARE_SHARE:
        yield _found(
            "note", "class_rare", f"{rare} is the rarer class: {n_rare} of {total} patients "
            f"({percent(n_rare / total, digits=1)}); accuracy says little here, since always "
            f"answering {common} is right for {percent(n_common / total, digits=1)}", "", [rare],
        )  # fmt: skip


def _fragile_ids(table: SlideTable) -> Iterator[Finding]:
    names = list(table.patients["patient"])
    digits = [name for name in names if name.isascii() and name.isdigit()]
    zeros = [name for name in digits if name.startswith("0") and len(name) > 1]
    powers = [name for name in names if _LIKE_A_NUMBER.fullmatch(name)]
    if powers or (digits and len(digits) < len(names)) or zeros:
        yield _found(
            "note", "ids_like_numbers", f"patient ids that look like numbers: {len(digits)} of "
            f"digits only ({len(zeros)} with a leading 0), {len(powers)} like powers of ten; "
            "programs that read them as numbers spoil them",
            "Read ids as text (in pandas: dtype=str); nothing here is concerned.",
            [*digits, *powers],
        )  # fmt: skip


def _far_centres(
    patients: Crosstab, rows: Sequence[int], index: int, *, word: Literal["more", "fewer"]
) -> Finding:
    told = []
    for row in rows:
        count, total = int(patients.counts[row, index]), int(patients.totals[row])
        low, high = (100 * end for end in wilson_interval(count / total, total))
        share = percent(count / total, digits=1)
        told.append(
            f"centre {patients.names[row]} with {share} ({count} of {total} patients; 95 % "
            f"interval {low:.0f} to {high:.0f} %)"
        )
    overall = percent(patients.counts[:, index].sum() / patients.totals.sum(), digits=1)
    return _found(
        "warning", f"centre_with_{word}",
        f"{word} {patients.classes[index]} than elsewhere, {overall} of all: {', '.join(told)}",
        "Chance or not, a model that tells a centre by glass or stain gains from it: see "
        "'mil audit', and train with '--by centre' as well.",
        [patients.names[row] for row in rows],
    )  # fmt: skip


def _copies(table: SlideTable, files: SlideFiles) -> Iterator[Finding]:
    rows = {str(row["slide"]): row for row in table.slides.to_dict("records")}
    same = defaultdict(list)
    for slide_id, header in sorted(files.headers.items()):
        if header.content_id:
            same[header.content_id].append(slide_id)
    for names in same.values():
        if len(names) < 2:
            continue
        whose = [
            f"{name} (patient {rows[name]['patient']}, {rows[name]['label']})"
            if name in rows else f"{name} (not in the table)"
            for name in names
        ]  # fmt: skip
        apart = len({rows[name]["patient"] for name in names if name in rows}) > 1
        yield _found(
            "error" if apart else "warning", "file_copied",
            f"{len(names)} files of the same content: {abbreviate(whose)}",
            "Keep one; folds of patients could hold it on both sides." if apart else "Keep one.",
            names,
        )  # fmt: skip


def _resolutions(files: SlideFiles, known: Sequence[str]) -> Iterator[Finding]:
    headers = [files.headers[slide] for slide in known if slide in files.headers]
    silent = [header.slide_id for header in headers if math.isnan(header.mpp)]
    if silent:
        yield _found(
            "warning" if len(silent) < len(headers) else "note", "resolution_unknown",
            f"{len(silent)} of {pluralize(len(headers), 'slides')} do not say a plausible "
            f"resolution: {abbreviate(silent)}",
            "Give it to 'mil embed' with --slide-mpp or --mpp-table.", silent,
        )  # fmt: skip
    mpps = {header.slide_id: header.mpp for header in headers if not math.isnan(header.mpp)}
    usual = float(np.median(list(mpps.values()))) if mpps else math.nan
    far = [s for s, mpp in mpps.items() if not 1 / _FAR_MPP < mpp / usual < _FAR_MPP]
    if far:
        yield _found(
            "warning", "resolution_far", f"{pluralize(len(far), 'slides')} off the median "
            f"resolution of {usual:.3g} µm/px by a factor of {_FAR_MPP} or more: "
            f"{abbreviate(far)}", "", far,
        )  # fmt: skip


def _found(
    severity: Literal["error", "warning", "note"],
    kind: str,
    message: str,
    advice: str = "",
    subjects: Sequence[str] = (),
) -> Finding:
    return Finding(
        severity=Severity(severity), kind=kind, message=message, advice=advice,
        subjects=tuple(subjects),
    )  # fmt: skip
