"""The audit: tables and bags in, findings and shortcut scores out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from features.bags.bag import check_same_fingerprint
from features.bags.digest import BagDigest, read_digests
from features.bags.store import open_bags
from features.errors import BagError
from features.utils.spreadsheet_dates import date_hint
from features.utils.text import list_names
from mil.audit.covariates import audit_covariates
from mil.audit.duplicates import find_identical, find_near_duplicates, find_shared_tiles
from mil.audit.findings import Finding, Severity, worst_first
from mil.audit.shortcuts import (
    MIN_CLASS_SIZE,
    ShortcutScore,
    audit_shortcuts,
    measure_shortcuts,
)
from mil.audit.tables import (
    BAG_REFUSED,
    TableEntry,
    audit_overlap,
    audit_refused,
    audit_similar_ids,
    audit_sizes,
    audit_table,
    audit_unclear_labels,
    read_split,
    table_entries,
)
from mil.data.cohort import Cohort, Columns, read_cohort
from mil.errors import CohortError

__all__ = ["AuditReport", "audit"]

OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Result of an audit: numbers per split (``train``, ``test``), and findings, worst first.

    ``n_bags`` is 0 if only tables were audited.
    """

    n_patients: Mapping[str, int]
    n_slides: Mapping[str, int]
    n_bags: int
    findings: tuple[Finding, ...]
    shortcut_scores: tuple[ShortcutScore, ...]

    @property
    def incomplete(self) -> bool:
        """Whether a bag could not be used, and its slide was not examined."""
        return any(finding.kind == BAG_REFUSED for finding in self.findings)

    @property
    def leaks(self) -> bool:
        """Whether any finding is a leak."""
        return any(finding.severity is Severity.error for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "leaks": self.leaks,
            "n_patients": dict(self.n_patients),
            "n_slides": dict(self.n_slides),
            "n_bags": self.n_bags,
            "findings": [asdict(finding) for finding in self.findings],
            "predictability": [score.as_dict() for score in self.shortcut_scores],
        }


def audit(
    train: Path,
    *,
    test: Path | None = None,
    columns: Columns | None = None,
    covariates: Sequence[str] = (),
    bags_dir: Path | None = None,
    n_folds: int = 5,
    n_resamples: int = 1000,
    seed: int = 0,
    on_step: OnStep = lambda _what, _done, _total: None,
) -> AuditReport:
    """Look for leaks and shortcuts before anything is trained.

    Parameters
    ----------
    train
        Table with labels, from which folds are made.
    test
        Table of held-out patients; its labels are not read.
    columns
        Names of columns by role, see :data:`mil.data.cohort.ROLES`, where tables have other names.
    covariates
        Clinical columns of the planned training.
    bags_dir
        Folder of bags; without it only the tables are audited.
    n_folds, seed
        Settings of the planned training.
    n_resamples
        Number of bootstrap samples of patients for the intervals of shortcut scores.
    on_step
        Called with the current activity, the steps done and the steps in all.

    Raises
    ------
    TableError
        If a table cannot be read or lacks a column.
    CohortError
        If a cell is empty or an id was turned into a number.
    BagError
        If no slide has a bag, all bags are damaged, or two were made differently.
    """
    splits = [read_split(train, name="train", columns=columns)]
    if test is not None:
        splits.append(read_split(test, name="test", columns=columns))
    findings = [finding for split in splits for finding in audit_table(split)]
    if test is not None:
        findings += audit_overlap(*splits)
    findings += audit_similar_ids(splits)
    findings += audit_unclear_labels(splits)
    digests: Mapping[str, BagDigest] = {}
    refused: dict[str, BagError] = {}
    if bags_dir is not None:
        entries = table_entries(splits)
        digests = read_digests(
            entries, open_bags(bags_dir), source=bags_dir,
            on_slide=lambda done: on_step("reading bags", done, len(entries)),
            on_refused=refused.__setitem__,
        )  # fmt: skip
        findings += audit_refused(refused)
        check_same_fingerprint(
            [(digest.bag_ref, digest.meta.fingerprint) for digest in digests.values()]
        )
        known = {name: entry for name, entry in entries.items() if name not in refused}
        findings += _audit_bags(digests, known, on_step)
    cohort = _read_cohort(train, findings, columns)
    scores: tuple[ShortcutScore, ...] = ()
    if cohort is not None:
        on_step("measuring shortcuts", 0, 1)
        scores = measure_shortcuts(
            cohort, digests, n_folds=n_folds, n_resamples=n_resamples, seed=seed
        )
        findings += audit_sizes(cohort, n_folds=n_folds, seed=seed)
        if not scores:
            findings.append(
                Finding(
                    Severity.note, "shortcuts_not_measured",
                    "shortcuts were not measured: a class has fewer than "
                    f"{MIN_CLASS_SIZE} patients, or nothing but tissue varies",
                    subjects=tuple(f"{name}: {n}" for name, n in cohort.class_counts().items()),
                )
            )  # fmt: skip
        findings += audit_shortcuts(scores, cohort)
        findings += audit_covariates(cohort, covariates, columns=columns)
    return AuditReport(
        n_patients={split.name: len(split.patient_ids) for split in splits},
        n_slides={split.name: split.rows["slide"].nunique() for split in splits},
        n_bags=len(digests),
        findings=worst_first(findings),
        shortcut_scores=scores,
    )


def _audit_bags(
    digests: Mapping[str, BagDigest], entries: Mapping[str, TableEntry], on_step: OnStep
) -> list[Finding]:
    findings = find_identical(digests, entries) + find_shared_tiles(digests, entries)
    findings += find_near_duplicates(
        digests, entries, on_pair=lambda done, total: on_step("comparing slides", done, total)
    )
    if missing := tuple(slide_id for slide_id in entries if slide_id not in digests):
        findings.append(
            Finding(
                Severity.warning, "slide_without_bag",
                f"{len(missing)} of {len(entries)} slides have no bag and were not examined: "
                f"{list_names(missing)}",
                date_hint(missing, digests) or "Embed them with 'mil embed', and audit again.",
                missing,
            )
        )  # fmt: skip
    if without := tuple(name for name, digest in digests.items() if not digest.has_coords):
        findings.append(
            Finding(
                Severity.note, "places_not_known",
                f"{len(without)} of {len(digests)} bags hold series of images or lack tile "
                f"coordinates: {list_names(without)}; copies among them are recognised by file and "
                "by embeddings only, not if scanned or embedded again",
                subjects=without,
            )
        )  # fmt: skip
    return findings


def _read_cohort(train: Path, findings: list[Finding], columns: Columns | None) -> Cohort | None:
    """Return the training cohort; None, with a finding added, if its rows contradict each other."""
    try:
        return read_cohort(train, labelled=True, columns=columns)
    except CohortError as error:
        findings.append(
            Finding(
                Severity.warning, "table_refused",
                f"training would refuse the table: {str(error).removesuffix('.')}",
                "Folds and shortcuts were not examined; correct the table and audit again.",
            )
        )  # fmt: skip
        return None
