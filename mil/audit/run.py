"""The audit itself: tables and bags in, findings and the shortcut report out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from features.bags.store import open_bags
from mil.audit.digests import SlideDigest, TableEntry, find_owners, read_digests
from mil.audit.duplicates import find_identical, find_near_duplicates
from mil.audit.findings import Finding, Severity, abbreviate
from mil.audit.shortcuts import (
    LEAST_OF_A_CLASS,
    ShortcutScore,
    audit_shortcuts,
    measure_shortcuts,
)
from mil.audit.tables import (
    audit_overlap,
    audit_similar_ids,
    audit_sizes,
    audit_table,
    read_side,
)
from mil.data.cohort import Cohort, read_cohort
from mil.errors import CohortError

__all__ = ["AuditReport", "audit"]

OnStep = Callable[[str, int, int], None]


def _no_progress(what: str, done: int, total: int) -> None:
    """Show no progress."""
    del what, done, total


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit came to."""

    n_patients: Mapping[str, int]
    """Patients by side, ``train`` and ``test``."""
    n_slides: Mapping[str, int]
    """Slides by side."""
    n_bags: int
    """Bags looked at; 0 if only tables were audited."""
    findings: tuple[Finding, ...]
    """What was found, worst first."""
    predictability: tuple[ShortcutScore, ...]
    """The shortcut report."""

    @property
    def leaks(self) -> bool:
        """Whether any finding is a leak."""
        return any(finding.severity is Severity.error for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "leaks": self.leaks,
            "n_patients": dict(self.n_patients),
            "n_slides": dict(self.n_slides),
            "n_bags": self.n_bags,
            "findings": [finding.as_dict() for finding in self.findings],
            "predictability": [found.as_dict() for found in self.predictability],
        }


def audit(
    train: Path,
    *,
    test: Path | None = None,
    bags_dir: Path | None = None,
    n_folds: int = 5,
    seed: int = 0,
    on_step: OnStep = _no_progress,
) -> AuditReport:
    """Look for leaks and shortcuts before anything is trained.

    Parameters
    ----------
    train
        Table with labels, the one that folds are made of.
    test
        Table of patients kept apart; its labels are not looked at.
    bags_dir
        Folder of bags; without it only tables are audited.
    n_folds, seed
        Settings of the training to come.
    on_step
        Called with what goes on, how much of it is done and how much there is.

    Raises
    ------
    TableError
        If a table cannot be read or lacks a column.
    CohortError
        If a cell is empty or an id was turned into a number.
    BagError
        If no slide has a bag, a bag is damaged, or two were made differently.
    """
    sides = [read_side(train, name="train")]
    if test is not None:
        sides.append(read_side(test, name="test"))
    findings = [finding for side in sides for finding in audit_table(side)]
    if test is not None:
        findings += audit_overlap(*sides)
    findings += audit_similar_ids(sides)
    owners = find_owners(sides)
    digests: Mapping[str, SlideDigest] = {}
    if bags_dir is not None:
        digests = _read(bags_dir, owners, on_step)
        findings += _audit_bags(digests, owners, on_step)
    cohort = _cohort(train, findings)
    measured: tuple[ShortcutScore, ...] = ()
    if cohort is not None:
        on_step("measuring shortcuts", 0, 1)
        measured = measure_shortcuts(cohort, digests, n_folds=n_folds, seed=seed)
        findings += audit_sizes(cohort, n_folds=n_folds, seed=seed)
        findings += audit_shortcuts(measured) if measured else _too_small(cohort)
    order = list(Severity)
    return AuditReport(
        n_patients={side.name: len(side.patient_ids) for side in sides},
        n_slides={side.name: side.rows["slide"].nunique() for side in sides},
        n_bags=len(digests),
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
        predictability=measured,
    )


def _read(
    bags_dir: Path, owners: Mapping[str, TableEntry], on_step: OnStep
) -> Mapping[str, SlideDigest]:
    n_done = 0

    def one_more() -> None:
        nonlocal n_done
        n_done += 1
        on_step("reading bags", n_done, len(owners))

    return read_digests(owners, open_bags(bags_dir), on_slide=one_more)


def _audit_bags(
    digests: Mapping[str, SlideDigest], owners: Mapping[str, TableEntry], on_step: OnStep
) -> list[Finding]:
    missing = tuple(slide_id for slide_id in owners if slide_id not in digests)
    found = find_identical(digests, owners)
    found += find_near_duplicates(
        digests, owners, on_pair=lambda done, total: on_step("comparing slides", done, total)
    )
    if missing:
        found.append(
            Finding(
                severity=Severity.warning,
                kind="slide_without_bag",
                message=f"{len(missing)} of {len(owners)} slides have no bag and were not looked "
                f"at: {abbreviate(missing)}",
                advice="Embed them with 'mil embed', and audit again.",
                subjects=missing,
            )
        )
    nowhere = tuple(name for name, digest in digests.items() if not digest.knows_places)
    if nowhere:
        found.append(
            Finding(
                severity=Severity.note,
                kind="places_not_known",
                message=f"{len(nowhere)} of {len(digests)} bags hold series of images or do not "
                f"say where tiles lie: {abbreviate(nowhere)}; copies among them are told "
                "by file and "
                "by embeddings only, not when scanned or embedded again",
                advice="",
                subjects=nowhere,
            )
        )
    return found


def _cohort(train: Path, findings: list[Finding]) -> Cohort | None:
    """The training cohort; None if rows contradict each other, which is then among the findings."""
    try:
        return read_cohort(train, labelled=True)
    except CohortError as error:
        findings.append(
            Finding(
                severity=Severity.warning,
                kind="table_refused",
                message=f"training would refuse the table: {error}",
                advice="Folds and shortcuts were left out; mend the table and audit again.",
            )
        )
        return None


def _too_small(cohort: Cohort) -> list[Finding]:
    return [
        Finding(
            severity=Severity.note,
            kind="shortcuts_not_measured",
            message=f"shortcuts were not measured: a class has fewer than {LEAST_OF_A_CLASS} "
            "patients, or nothing but tissue varies",
            advice="",
            subjects=tuple(f"{name}: {count}" for name, count in cohort.class_counts().items()),
        )
    ]
