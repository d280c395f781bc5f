"""Sections of the page: tables as text, figures, and the words above them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.utils.text import percent
from mil.reporting.cohort_report.collect import CohortSummary
from mil.reporting.cohort_report.crosstab import Crosstab, TileCount
from mil.reporting.cohort_report.figures import boxes, histograms, scatter, stacked_bars
from mil.reporting.cohort_report.slides import SlideFiles, SlideHeader
from mil.reporting.cohort_report.statistics import Variable
from mil.reporting.cohort_report.table import Column, SlideTable
from mil.reporting.figures import EmbeddedImage

__all__ = ["Section", "TextTable", "sections_of", "with_share"]

_MOST_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table as the page sets it."""

    title: str
    """What it shows."""
    columns: Sequence[str]
    """Its headings."""
    numeric: Sequence[bool]
    """Which columns are set as numbers."""
    rows: Sequence[Sequence[str]]
    """Its cells."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Words, figures and tables under one heading."""

    anchor: str
    """Its place in the page's address."""
    heading: str
    """Its heading."""
    words: str
    """What to know before looking; may be empty."""
    parts: Sequence[EmbeddedImage | TextTable]
    """Its figures and tables, in order."""


def sections_of(description: CohortSummary) -> list[Section]:
    """All sections that the description has something for, in the page's order."""
    sections = [_schema(description.table), _labels(description)]
    for by in dict.fromkeys(found.by for found in description.crosstabs):
        sections.append(_counted([found for found in description.crosstabs if found.by == by]))
    if description.files and description.file_measures:
        sections.append(_files(description, description.files))
    if description.tile_measures:
        sections.append(_tiles(description))
    if description.differences:
        sections.append(_differences(description))
    return sections


def with_share(count: int, total: int) -> tuple[str, str]:
    """A count and its share of a total, as text.

    Examples
    --------
    >>> with_share(1234, 2000)
    ('1,234', '61.7 %')
    """
    return f"{count:,}", percent(count / total, digits=1) if total else "–"


def _schema(table: SlideTable) -> Section:
    rows = [
        [c.name, c.role or "–", c.kind, f"{c.n_missing:,}", f"{c.n_distinct:,}"]
        for c in table.columns
    ]
    columns = TextTable(
        title="Columns",
        columns=["column", "taken for", "type", "missing", "distinct values"],
        numeric=[False, False, False, True, True],
        rows=rows,
    )
    repeated = [column for column in table.columns if column.n_distinct < table.n_rows]
    return Section(
        anchor="table",
        heading="The table",
        words=f"{table.n_rows:,} rows, of which {table.n_rows_repeated:,} equal an earlier one in "
        "every cell. A type is what all values of a column are; ids stay text, whatever they look "
        "like.",
        parts=[columns, *(_frequencies(column, table.n_rows) for column in repeated)],
    )


def _frequencies(column: Column, n_rows: int) -> TextTable:
    return TextTable(
        title=f"Commonest values of {column.name}",
        columns=["value", "rows", "share"],
        numeric=[False, True, True],
        rows=[[value, *with_share(count, n_rows)] for value, count in column.frequent],
    )


def _labels(description: CohortSummary) -> Section:
    table, counts = description.table, description.labels
    n_slides, n_patients = len(table.slides), len(table.patients)
    rows = [
        [
            name,
            *with_share(counts["slides"][name], n_slides),
            *with_share(counts["patients"][name], n_patients),
        ]
        for name in table.classes
    ]
    found = TextTable(
        title="Slides and patients of each label",
        columns=["label", "slides", "share", "patients", "share"],
        numeric=[False, True, True, True, True],
        rows=[*rows, ["sum", *with_share(n_slides, n_slides), *with_share(n_patients, n_patients)]],
    )
    return Section(
        anchor="labels",
        heading="Labels",
        words="The patient is the unit of every split and score; slides of one are not "
        "independent.",
        parts=[found],
    )


def _counted(found: Sequence[Crosstab]) -> Section:
    """Labels by one thing, at every level at which it was counted."""
    by = found[0].by
    headings = {
        "centre": "Centres", "slides of a patient": "Slides of a patient",
        "image number": "Image numbers",
    }  # fmt: skip
    words = {
        "centre": "A centre has its own scanner and stain. Where its share of a label is far from "
        "the others', a model can score by telling centres apart.",
        "slides of a patient": "",
        "image number": "An image number says how many slides were cut before and nothing of "
        "tissue: its quartiles and outliers would mean nothing and are left out.",
    }
    return Section(
        anchor=by.replace(" ", "-"),
        heading=headings[by] + (" and labels" if len(found[0].classes) > 1 else ""),
        words=words[by],
        parts=[part for one in found for part in (stacked_bars(one, where=by), _crosstab(one))],
    )


def _crosstab(found: Crosstab) -> TextTable:
    """Counts and shares as text, with sums; of very many rows the largest only."""
    n_rows, n_all = len(found.names), int(found.counts.sum())
    largest = np.sort(np.argsort(-found.totals, kind="stable")[:_MOST_ROWS])
    rows = [[found.names[row], *_cells(found.counts[row], n_all)] for row in largest]
    several = len(found.classes) > 1
    shares = [f"{name}, share" for name in found.classes] if several else ["share"]
    cut = f", the {_MOST_ROWS} largest of {n_rows:,}" if n_rows > _MOST_ROWS else ""
    return TextTable(
        title=f"{found.level.capitalize()} by {found.by}{cut}",
        columns=[found.by, *found.classes, *(["sum"] if several else []), *shares],
        numeric=[False, *[True] * (2 * len(found.classes) + several)],
        rows=[*rows, ["sum", *_cells(found.counts.sum(axis=0), n_all)]],
    )


def _cells(counts: npt.NDArray[np.int64], n_all: int) -> list[str]:
    """Counts of one row, their sum and shares of it; of one label alone, its share of all."""
    total = int(counts.sum())
    if len(counts) == 1:
        return [*with_share(total, n_all)]
    shares = [with_share(int(count), total)[1] for count in counts]
    return [*(f"{count:,}" for count in counts), f"{total:,}", *shares]


def _files(description: CohortSummary, files: SlideFiles) -> Section:
    table, measures = description.table, description.file_measures
    headers = [files.headers[s] for s in table.slides["slide"] if s in files.headers]
    figures = _figures(measures, table, by=["label"])
    if len(headers) > 1:
        figures.append(scatter(measures[0], measures[1], table))
    words = "From the headers of files; no pixel was read for these numbers."
    return Section(
        anchor="files",
        heading="Files",
        words=f"{words} {_in_words(description.largest)}" if description.largest else words,
        parts=[*figures, _statistics("files", description, measures), _makes(headers)],
    )


def _in_words(largest: SlideHeader) -> str:
    width, height = largest.width_px0, largest.height_px0
    size = (
        "" if largest.file_bytes is None else f", a file of {_number(largest.file_bytes / 1e6)} MB"
    )
    return (
        f"The largest slide is {largest.slide_id}: {width:,} × {height:,} px, "
        f"{_number(width * height / 1e6)} megapixels{size}."
    )


def _makes(headers: Sequence[SlideHeader]) -> TextTable:
    made = Counter((h.compression or "not known", h.reader, f"{h.n_levels}") for h in headers)
    return TextTable(
        title="Compression and reader",
        columns=["compression of level 0", "reader", "levels", "slides", "share"],
        numeric=[False, False, True, True, True],
        rows=[[*make, *with_share(count, len(headers))] for make, count in made.most_common()],
    )


def _tiles(description: CohortSummary) -> Section:
    table, measures = description.table, description.tile_measures
    figures = _figures(measures, table, by=["label", "centre"] if table.has_centres else ["label"])
    of_slides = len(measures) > 1
    return Section(
        anchor="tiles",
        heading="Tiles and tissue" if of_slides else "Images",
        words="From the bags. Tissue is counted inside embedded tiles, so that it is less than all "
        "tissue of a slide whose tiles were partly left out."
        if of_slides
        else "From the bags: images of each series that were embedded.",
        parts=[
            *figures,
            *(
                _tile_counts(by, found, of_slides=of_slides)
                for by, found in description.tile_counts.items()
            ),
            _statistics("tiles and tissue" if of_slides else "images", description, measures),
        ],
    )


def _tile_counts(by: str, found: Sequence[TileCount], *, of_slides: bool) -> TextTable:
    word, about = ("tiles", "Tiles and tissue") if of_slides else ("images", "Images")
    columns = [by, "slides", "patients", word, f"{word} a slide", f"{word} a patient"]
    rows = [
        [
            each.group, f"{each.n_slides:,}", f"{each.n_patients:,}", f"{each.n_tiles:,}",
            *map(_number, (each.tiles_a_slide, each.tiles_a_patient)),
            *([_number(100 * each.tissue_share)] if of_slides else []),
        ]
        for each in found
    ]  # fmt: skip
    return TextTable(
        title=f"{about} by {by}; of slides and patients the medians",
        columns=[*columns, *(["tissue in tiles, % of a slide"] if of_slides else [])],
        numeric=[False, *[True] * (len(columns) - 1 + of_slides)],
        rows=rows,
    )


def _figures(
    measures: Sequence[Variable], table: SlideTable, *, by: Sequence[str]
) -> list[EmbeddedImage]:
    """Figures of those measures that vary; the others have nothing to show."""
    varying = [measure for measure in measures if measure.varies]
    if not varying:
        return []
    return [histograms(varying, table), *(boxes(varying, table, by=name) for name in by)]


def _statistics(what: str, description: CohortSummary, measures: Sequence[Variable]) -> TextTable:
    names = {measure.name: measure.label for measure in measures}
    rows = []
    for s in description.statistics:
        if s.measure in names:
            spread = (s.mean, s.sd, s.least, s.q1, s.median, s.q3, s.most)
            known = [f"{s.n:,}", f"{s.n_missing:,}"]
            rows.append(
                [names[s.measure], s.group, *known, *map(_number, spread), f"{s.n_outliers:,}"]
            )
    columns = (
        "measure", "slides", "known", "missing", "mean", "SD", "least", "first quartile", "median",
        "third quartile", "most", "outliers",
    )  # fmt: skip
    return TextTable(
        title=f"Statistics of {what}, a slide each; outliers lie beyond 1.5 interquartile ranges "
        "from a quartile",
        columns=columns,
        numeric=[False, False, *[True] * 10],
        rows=rows,
    )


def _differences(description: CohortSummary) -> Section:
    first, second = description.differences[0].classes
    found = TextTable(
        title="Medians over patients; of a patient, the median over its slides",
        columns=["measure", first, second, "AUROC", "p"],
        numeric=[False, True, True, True, True],
        rows=[
            [d.measure, *map(_number, d.medians), f"{d.auroc:.3f}", f"{d.p_value:.2g}"]
            for d in description.differences
        ],
    )
    return Section(
        anchor="differences",
        heading="Classes compared, patient by patient",
        words=f"AUROC is the chance that a patient of {second} has more than one of {first}; 0.5 "
        "tells nothing. p is of the test of Mann and Whitney (1947), two-sided, not corrected for "
        "the number of measures.",
        parts=[found],
    )


def _number(value: float) -> str:
    """Three digits that count; large numbers whole."""
    if not math.isfinite(value):
        return "–"
    whole = abs(value) >= 1000 or value == round(value)
    return f"{value:,.0f}" if whole else f"{value:.3g}"
