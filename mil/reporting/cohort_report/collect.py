"""The description itself: a table and whatever is known of its slides in, numbers and words out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mil.audit.findings import Finding, Severity
from mil.errors import CohortError
from mil.reporting.cohort_report.anomalies import (
    odd_bags,
    odd_centres,
    odd_differences,
    odd_files,
    odd_table,
)
from mil.reporting.cohort_report.crosstab import Crosstab, TileCount, count_by, count_tiles
from mil.reporting.cohort_report.slides import (
    SlideBag,
    SlideFiles,
    SlideHeader,
    bag_measures,
    header_measures,
    read_slide_bags,
)
from mil.reporting.cohort_report.statistics import (
    ClassDifference,
    Statistics,
    Variable,
    group_test,
    statistics,
)
from mil.reporting.cohort_report.table import SlideTable, read_cohort_table

__all__ = ["CohortSummary", "summarize_cohort"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CohortSummary:
    """What there is to see of a cohort."""

    table: SlideTable
    """The table."""
    files: SlideFiles | None
    """Its slides' files; None where they were not looked at."""
    bags: Mapping[str, SlideBag] | None
    """Its slides' bags by slide id; None where they were not looked at."""
    findings: tuple[Finding, ...]
    """What is odd, worst first."""
    labels: Mapping[str, Mapping[str, int]]
    """Slides and patients of each label: ``{"slides": {...}, "patients": {...}}``."""
    crosstabs: tuple[Crosstab, ...]
    """Labels by centre (patients, then slides), slides of a patient, and image number."""
    file_measures: tuple[Variable, ...]
    """Numbers from headers that are known of any slide."""
    tile_measures: tuple[Variable, ...]
    """Numbers from bags that are known of any slide."""
    statistics: tuple[Statistics, ...]
    """Spread of each measure over all slides and over those of each label."""
    differences: tuple[ClassDifference, ...]
    """Each measure compared between two classes, patient by patient."""
    tile_counts: Mapping[str, Sequence[TileCount]]
    """Tiles and tissue by ``label`` and, where the table has them, ``centre``; empty without
    bags."""
    largest: SlideHeader | None
    """The slide of the table with the largest area."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
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
                {"by": found.by, "level": found.level, "counts": found.as_dict()}
                for found in self.crosstabs
            ],
            "findings": [finding.as_dict() for finding in self.findings],
            "statistics": [asdict(found) for found in self.statistics],
            "class_differences": [asdict(found) for found in self.differences],
            "tiles": {
                by: [asdict(found) for found in groups] for by, groups in self.tile_counts.items()
            },
            "largest_slide": asdict(self.largest) if self.largest else None,
            "n_files": len(self.files.headers) if self.files else None,
            "n_bags": len(self.bags) if self.bags is not None else None,
        }


def summarize_cohort(
    path: Path,
    *,
    files_of: Callable[[SlideTable], SlideFiles | None],
    bags_dir: Path | None,
    on_step: Callable[[str, int, int], None],
    label: str | None = None,
) -> CohortSummary:
    """Describe a cohort at slide and patient level; refuses nothing that can be described.

    Parameters
    ----------
    path
        The cohort table.
    files_of
        Gives headers and thumbnails of a table's slides; None where files are left out.
    bags_dir
        Folder of bags; None to leave them out.
    on_step
        Called with what goes on, how much of it is done and how much there is.
    label
        Column of the labels, where a table has several; None for ``label``, if there is one.

    Raises
    ------
    TableError
        If the table cannot be read, is empty, has no slide ids or no patient ids, or lacks the
        column that ``label`` names.
    CohortError
        If no row has both ids.
    BagError
        If ``bags_dir`` holds no bag of these slides, or a damaged one.
    """
    table = read_cohort_table(path, label=label)
    if table.slides.empty:
        raise CohortError(
            path, actual="no row with a slide id and a patient id", expected="one row a slide"
        )
    slide_files = files_of(table)
    bags = _read_bags(bags_dir, table, on_step) if bags_dir else None
    slide_ids = list(table.slides["slide"])
    of_files = _known(header_measures(slide_files.headers, slide_ids)) if slide_files else ()
    of_bags = _known(bag_measures(bags, slide_ids)) if bags is not None else ()
    measures = (*of_files, *of_bags)
    compared = [group_test(measure, table) for measure in measures]
    differences = tuple(found for found in compared if found is not None)
    crosstabs = tuple(_crosstabs(table))
    return CohortSummary(
        table=table,
        files=slide_files,
        bags=bags,
        findings=_findings(table, crosstabs, slide_files, bags, differences),
        labels={
            level: {name: int((frame["label"] == name).sum()) for name in table.classes}
            for level, frame in (("slides", table.slides), ("patients", table.patients))
        },
        crosstabs=crosstabs,
        file_measures=of_files,
        tile_measures=of_bags,
        statistics=tuple(found for m in measures for found in statistics(m, table)),
        differences=differences,
        tile_counts={
            by: count_tiles(table, bags, by=by)
            for by in ("label", "centre")
            if bags is not None and (by == "label" or table.has_centres)
        },
        largest=_largest(slide_files, slide_ids) if slide_files else None,
    )


def _read_bags(
    bags_dir: Path, table: SlideTable, on_step: Callable[[str, int, int], None]
) -> dict[str, SlideBag]:
    n_done, n_slides = 0, len(table.slides)

    def one_more() -> None:
        nonlocal n_done
        n_done += 1
        on_step("reading bags", n_done, n_slides)

    return read_slide_bags(bags_dir, table.slides["slide"], on_slide=one_more)


def _known(measures: Sequence[Variable]) -> tuple[Variable, ...]:
    """Those that are known of any slide."""
    return tuple(measure for measure in measures if np.isfinite(measure.values).any())


def _crosstabs(table: SlideTable) -> Iterator[Crosstab]:
    if table.has_centres:
        yield count_by("centre", table.patients, classes=table.classes, level="patients")
        yield count_by("centre", table.slides, classes=table.classes, level="slides")
    yield count_by("n_slides", table.patients, classes=table.classes, level="patients")
    if table.has_image_numbers:
        yield count_by("image", table.slides, classes=table.classes, level="slides")


def _findings(
    table: SlideTable,
    crosstabs: Sequence[Crosstab],
    files: SlideFiles | None,
    bags: Mapping[str, SlideBag] | None,
    differences: Sequence[ClassDifference],
) -> tuple[Finding, ...]:
    """All that is odd, worst first."""
    found = [*odd_table(table)]
    if table.has_centres:
        found += odd_centres(table, crosstabs[0])
    if files:
        found += odd_files(table, files)
    if bags is not None:
        found += odd_bags(table, bags)
    found += odd_differences(differences)
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _largest(files: SlideFiles, slide_ids: Sequence[str]) -> SlideHeader | None:
    headers = [files.headers[slide] for slide in slide_ids if slide in files.headers]
    return max(headers, key=lambda header: header.width_px0 * header.height_px0, default=None)
