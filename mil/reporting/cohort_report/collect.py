"""Summary of a cohort: its table, files and bags in, statistics and findings out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from features.bags.digest import BagDigest, read_digests
from features.bags.store import open_bags
from features.errors import BagError
from mil.audit.findings import Finding, worst_first
from mil.audit.tables import BAG_REFUSED, audit_refused
from mil.errors import CohortError
from mil.reporting.cohort_report.anomalies import (
    check_bags,
    check_centres,
    check_differences,
    check_files,
    check_table,
)
from mil.reporting.cohort_report.statistics import (
    ClassDifference,
    Crosstab,
    Statistics,
    TileCount,
    Variable,
    bag_variables,
    count_by,
    count_tiles,
    group_test,
    header_variables,
    statistics,
)
from mil.reporting.cohort_report.table import SlideFiles, SlideHeader, SlideTable

__all__ = ["CohortSummary", "summarize_cohort"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CohortSummary:
    """Counts, statistics and findings of a cohort.

    Attributes
    ----------
    findings
        Anomalies, worst first.
    labels
        Number of slides and patients per label: ``{"slides": {...}, "patients": {...}}``.
    crosstabs
        Labels by centre (patients, then slides), slides of a patient, and image number.
    file_variables, bag_variables
        Variables of shape (slides,), without those not known for any slide.
    statistics
        Statistics of each variable over all slides and over those of each label.
    tile_counts
        Tiles and tissue by ``label`` and, if there are any, ``centre``; empty without bags.
    largest
        Header of the slide with the largest area, px².
    """

    table: SlideTable
    files: SlideFiles | None
    bags: Mapping[str, BagDigest] | None
    findings: tuple[Finding, ...]
    labels: Mapping[str, Mapping[str, int]]
    crosstabs: tuple[Crosstab, ...]
    file_variables: tuple[Variable, ...]
    bag_variables: tuple[Variable, ...]
    statistics: tuple[Statistics, ...]
    differences: tuple[ClassDifference, ...]
    tile_counts: Mapping[str, Sequence[TileCount]]
    largest: SlideHeader | None

    @property
    def incomplete(self) -> bool:
        """Whether a bag could not be used, and its slide is not described."""
        return any(finding.kind == BAG_REFUSED for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        table = self.table
        return {
            "table": str(table.path),
            "n_rows": table.n_rows,
            "n_rows_repeated": table.n_rows_repeated,
            "n_rows_left_out": table.n_rows_left_out,
            "n_slides": len(table.slides),
            "n_patients": len(table.patients),
            "labels": {level: dict(counts) for level, counts in self.labels.items()},
            "columns": [asdict(column) for column in table.columns],
            "counts": [
                {"by": counts.by, "level": counts.level, "counts": counts.as_dict()}
                for counts in self.crosstabs
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "statistics": [asdict(row) for row in self.statistics],
            "class_differences": [asdict(difference) for difference in self.differences],
            "tiles": {
                by: [asdict(group) for group in groups] for by, groups in self.tile_counts.items()
            },
            "largest_slide": asdict(self.largest) if self.largest else None,
            "n_files": len(self.files.headers) if self.files else None,
            "n_bags": len(self.bags) if self.bags is not None else None,
        }


def summarize_cohort(
    table: SlideTable,
    *,
    files: SlideFiles | None = None,
    bags_dir: Path | None = None,
    on_step: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> CohortSummary:
    """Summarise a cohort per slide and per patient; faults become findings, not errors.

    ``on_step`` is called with the current activity, the steps done and the steps in all.

    Raises
    ------
    CohortError
        If no row has both a slide id and a patient id.
    BagError
        If ``bags_dir`` holds no bag of these slides, or damaged ones only.
    """
    if table.slides.empty:
        raise CohortError(
            table.path,
            actual="no row with a slide id and a patient id",
            expected="one row per slide",
        )
    slide_ids = list(table.slides["slide"])
    bags = None
    refused: dict[str, BagError] = {}
    if bags_dir:
        bags = read_digests(
            slide_ids, open_bags(bags_dir), source=bags_dir,
            on_slide=lambda done: on_step("reading bags", done, len(slide_ids)),
            on_refused=refused.__setitem__,
        )  # fmt: skip
    of_files = header_variables(files.headers, slide_ids) if files else ()
    of_bags = bag_variables(bags, slide_ids) if bags is not None else ()
    variables = (*of_files, *of_bags)
    compared = [group_test(variable, table) for variable in variables]
    differences = tuple(difference for difference in compared if difference is not None)
    crosstabs = tuple(_crosstabs(table))
    findings = [*check_table(table)]
    if table.has_centres:
        findings += check_centres(table, crosstabs[0])
    if files:
        findings += check_files(table, files)
    if bags is not None:
        findings += [*audit_refused(refused), *check_bags(table, bags, refused=refused)]
    findings += check_differences(differences)
    return CohortSummary(
        table=table,
        files=files,
        bags=bags,
        findings=worst_first(findings),
        labels={
            level: {name: int((frame["label"] == name).sum()) for name in table.classes}
            for level, frame in (("slides", table.slides), ("patients", table.patients))
        },
        crosstabs=crosstabs,
        file_variables=of_files,
        bag_variables=of_bags,
        statistics=tuple(row for variable in variables for row in statistics(variable, table)),
        differences=differences,
        tile_counts={
            by: count_tiles(table, bags, by=by)
            for by in ("label", "centre")
            if bags is not None and (by == "label" or table.has_centres)
        },
        largest=max(
            [files.headers[slide] for slide in slide_ids if slide in files.headers]
            if files
            else [],
            key=lambda header: header.width_px0 * header.height_px0,
            default=None,
        ),
    )


def _crosstabs(table: SlideTable) -> Iterator[Crosstab]:
    if table.has_centres:
        yield count_by("centre", table.patients, classes=table.classes, level="patients")
        yield count_by("centre", table.slides, classes=table.classes, level="slides")
    yield count_by("n_slides", table.patients, classes=table.classes, level="patients")
    if table.has_image_numbers:
        yield count_by("image", table.slides, classes=table.classes, level="slides")
