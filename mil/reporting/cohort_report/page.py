"""The page ``describe.html`` of a cohort: key figures, sections, and a gallery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.bags.digest import BagDigest
from features.utils.text import natural_key, percent, pluralize, rounded
from mil.arrays import Ints
from mil.reporting.cohort_report.collect import CohortSummary
from mil.reporting.cohort_report.figures import boxes, histograms, scatter, stacked_bars
from mil.reporting.cohort_report.statistics import Crosstab, TileCount, Variable
from mil.reporting.cohort_report.table import SlideFiles, SlideHeader, SlideTable
from mil.reporting.figures import EmbeddedImage, embed_image
from mil.reporting.html import Table, render

__all__ = [
    "THUMBNAIL_PX",
    "Section",
    "choose_for_gallery",
    "render_cohort_report",
    "sections_of",
    "with_share",
]

THUMBNAIL_PX = 352
"""Long side of a thumbnail, px: twice its size on the page, for screens of double density."""
_N_COLOURS = 8
_COLOUR_STEP = 8
_MAX_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class Section:
    """Text (may be empty), figures and tables under one heading, with the ``anchor`` of its URL."""

    anchor: str
    heading: str
    text: str
    parts: Sequence[EmbeddedImage | Table]


def render_cohort_report(summary: CohortSummary) -> str:
    """Return the HTML page of a cohort, complete in one file."""
    table, files, bags = summary.table, summary.files, summary.bags
    return render(
        "describe.html",
        name=table.path.name,
        cohort=table,
        n_patients_by_label=summary.labels["patients"],
        n_files=sum(s in files.headers for s in table.slides["slide"]) if files else None,
        n_bags=None if bags is None else len(bags),
        pluralize=pluralize,
        with_share=with_share,
        findings=summary.findings,
        sections=sections_of(summary),
        glasses=[] if bags is None else _glass_colours(bags, table),
        galleries=_galleries(files, table) if files else [],
    )


def choose_for_gallery(
    table: SlideTable, available: Collection[str], *, n_per_label: int
) -> list[str]:
    """Return up to ``n_per_label`` available slides per label, evenly spaced, one per patient."""
    slides = table.slides[table.slides["slide"].isin(list(available))].drop_duplicates("patient")
    chosen: list[str] = []
    for name in table.classes:
        own = slides.loc[slides["label"] == name, "slide"].tolist()
        indices = np.linspace(0, len(own) - 1, min(n_per_label, len(own)))
        chosen += [own[index] for index in indices.round().astype(int)]
    return chosen


def sections_of(summary: CohortSummary) -> list[Section]:
    """Return all sections for which the summary has data, in the order of the page."""
    sections = [_schema(summary.table), _labels(summary)]
    for by in dict.fromkeys(counts.by for counts in summary.crosstabs):
        sections.append(_counted([counts for counts in summary.crosstabs if counts.by == by]))
    if summary.files and summary.file_variables:
        sections.append(_files(summary, summary.files))
    if summary.bag_variables:
        sections.append(_tiles(summary))
    if summary.differences:
        sections.append(_differences(summary))
    return sections


def with_share(count: int, total: int) -> tuple[str, str]:
    """Return a count and its share of a total, as text.

    Examples
    --------
    >>> with_share(1234, 2000)
    ('1,234', '61.7 %')
    """
    return f"{count:,}", percent(count / total, digits=1) if total else "–"


def _glass_colours(
    bags: Mapping[str, BagDigest], table: SlideTable
) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return the most frequent glass colours per centre: ``red, green, blue``, slide count."""
    colours: dict[str, Counter[str]] = {}
    for row in table.slides.to_dict("records"):
        bag = bags.get(row["slide"])
        if bag is not None and not bag.is_series:
            rgb = (
                min(255, _COLOUR_STEP * round(c / _COLOUR_STEP)) for c in bag.meta.background_rgb
            )
            of_centre = colours.setdefault(row["centre"] or "all", Counter())
            of_centre[", ".join(map(str, rgb))] += 1
    return [
        (name, colours[name].most_common(_N_COLOURS)) for name in sorted(colours, key=natural_key)
    ]


def _galleries(
    files: SlideFiles, table: SlideTable
) -> list[tuple[str, list[tuple[EmbeddedImage, str]]]]:
    """Return thumbnails and captions by label."""
    shown: dict[str, list[tuple[EmbeddedImage, str]]] = {}
    for row in table.slides.to_dict("records"):
        if image := files.thumbnails.get(row["slide"]):
            caption = f"{row['slide']}, centre {row['centre']}" if row["centre"] else row["slide"]
            thumbnail = embed_image(image, alt=f"Slide {caption}", max_px=THUMBNAIL_PX)
            shown.setdefault(row["label"], []).append((thumbnail, caption))
    return [(label, shown[label]) for label in table.classes if label in shown]


def _schema(table: SlideTable) -> Section:
    columns = Table(
        "Columns",
        ["column", "used as", "type", "missing", "distinct values"],
        [
            [c.name, c.role or "–", c.kind, f"{c.n_missing:,}", f"{c.n_distinct:,}"]
            for c in table.columns
        ],
        text_columns=(0, 1, 2),
    )
    frequencies = [
        Table(
            f"Most frequent values of {column.name}",
            ["value", "rows", "share"],
            [[value, *with_share(count, table.n_rows)] for value, count in column.frequent],
        )
        for column in table.columns
        if column.n_distinct < table.n_rows
    ]
    return Section(
        anchor="table",
        heading="The table",
        text=f"{table.n_rows:,} rows, of which {table.n_rows_repeated:,} equal an earlier one in "
        "every cell. The type is that of all values of a column; ids are always read as text.",
        parts=[columns, *frequencies],
    )


def _labels(summary: CohortSummary) -> Section:
    table, counts = summary.table, summary.labels
    n_slides, n_patients = len(table.slides), len(table.patients)
    sums = [(name, counts["slides"][name], counts["patients"][name]) for name in table.classes]
    by_label = Table(
        "Slides and patients per label",
        ["label", "slides", "share", "patients", "share"],
        [
            [name, *with_share(slides, n_slides), *with_share(patients, n_patients)]
            for name, slides, patients in [*sums, ("sum", n_slides, n_patients)]
        ],
    )
    return Section(
        anchor="labels",
        heading="Labels",
        text="The patient is the unit of every split and score; slides of one patient are not "
        "independent.",
        parts=[by_label],
    )


def _counted(crosstabs: Sequence[Crosstab]) -> Section:
    """Return the section on labels by one grouping, at every level counted."""
    by = crosstabs[0].by
    headings = {
        "centre": "Centres", "slides of a patient": "Slides of a patient",
        "image number": "Image numbers",
    }  # fmt: skip
    texts = {
        "centre": "A centre has its own scanner and stain. If its share of a label differs much "
        "from that of the others, a model can score by recognising the centre.",
        "slides of a patient": "",
        "image number": "An image number counts the slides cut before and says nothing about "
        "tissue: its quartiles and outliers would be meaningless and are not shown.",
    }
    return Section(
        anchor=by.replace(" ", "-"),
        heading=headings[by] + (" and labels" if len(crosstabs[0].classes) > 1 else ""),
        text=texts[by],
        parts=[part for counts in crosstabs for part in (stacked_bars(counts), _crosstab(counts))],
    )


def _crosstab(crosstab: Crosstab) -> Table:
    """Return counts and shares as text, with sums; only the largest of very many rows."""
    n_rows, n_all = len(crosstab.names), int(crosstab.counts.sum())
    largest = np.sort(np.argsort(-crosstab.totals, kind="stable")[:_MAX_ROWS])
    rows = [[crosstab.names[row], *_cells(crosstab.counts[row], n_all)] for row in largest]
    several = len(crosstab.classes) > 1
    shares = [f"{name}, share" for name in crosstab.classes] if several else ["share"]
    cut = f", the {_MAX_ROWS} largest of {n_rows:,}" if n_rows > _MAX_ROWS else ""
    return Table(
        title=f"{crosstab.level.capitalize()} by {crosstab.by}{cut}",
        columns=[crosstab.by, *crosstab.classes, *(["sum"] if several else []), *shares],
        rows=[*rows, ["sum", *_cells(crosstab.counts.sum(axis=0), n_all)]],
    )


def _cells(counts: Ints, n_all: int) -> list[str]:
    """Return counts of one row, their sum and shares; with one label, its share of all rows."""
    total = int(counts.sum())
    if len(counts) == 1:
        return [*with_share(total, n_all)]
    shares = [with_share(int(count), total)[1] for count in counts]
    return [*(f"{count:,}" for count in counts), f"{total:,}", *shares]


def _files(summary: CohortSummary, files: SlideFiles) -> Section:
    table, variables = summary.table, summary.file_variables
    headers = [files.headers[s] for s in table.slides["slide"] if s in files.headers]
    figures = _figures(variables, table, by=["label"])
    if len(headers) > 1:
        figures.append(scatter(variables[0], variables[1], table))
    formats = Counter((h.compression or "not known", h.reader, f"{h.n_levels}") for h in headers)
    of_formats = Table(
        "Compression and reader",
        ["compression of level 0", "reader", "levels", "slides", "share"],
        [[*key, *with_share(count, len(headers))] for key, count in formats.most_common()],
        text_columns=(0, 1),
    )
    text = "From the headers of the files; no pixel was read for these numbers."
    return Section(
        anchor="files",
        heading="Files",
        text=f"{text} {_in_words(summary.largest)}" if summary.largest else text,
        parts=[*figures, _statistics("files", summary, variables), of_formats],
    )


def _in_words(largest: SlideHeader) -> str:
    width, height, n_bytes = largest.width_px0, largest.height_px0, largest.file_bytes
    size = "" if n_bytes is None else f", {rounded(n_bytes / 1e6)} MB"
    return (
        f"The largest slide is {largest.slide_id}: {width:,} × {height:,} px, "
        f"{rounded(width * height / 1e6)} megapixels{size}."
    )


def _tiles(summary: CohortSummary) -> Section:
    table, variables = summary.table, summary.bag_variables
    figures = _figures(variables, table, by=["label", "centre"] if table.has_centres else ["label"])
    of_slides = len(variables) > 1
    return Section(
        anchor="tiles",
        heading="Tiles and tissue" if of_slides else "Images",
        text="From the bags. Tissue is measured inside embedded tiles, so it is less than all "
        "tissue of a slide if some of its tiles were left out."
        if of_slides
        else "From the bags: the number of embedded images of each series.",
        parts=[
            *figures,
            *(
                _tile_counts(by, groups, of_slides=of_slides)
                for by, groups in summary.tile_counts.items()
            ),
            _statistics("tiles and tissue" if of_slides else "images", summary, variables),
        ],
    )


def _tile_counts(by: str, groups: Sequence[TileCount], *, of_slides: bool) -> Table:
    word, about = ("tiles", "Tiles and tissue") if of_slides else ("images", "Images")
    columns = [by, "slides", "patients", word, f"{word} per slide", f"{word} per patient"]
    rows = [
        [
            each.group, f"{each.n_slides:,}", f"{each.n_patients:,}", f"{each.n_tiles:,}",
            *map(rounded, (each.tiles_a_slide, each.tiles_a_patient)),
            *([rounded(100 * each.tissue_share)] if of_slides else []),
        ]
        for each in groups
    ]  # fmt: skip
    return Table(
        title=f"{about} by {by}, with medians over slides and patients",
        columns=[*columns, *(["tissue in tiles, % of the slide"] if of_slides else [])],
        rows=rows,
    )


def _figures(
    variables: Sequence[Variable], table: SlideTable, *, by: Sequence[str]
) -> list[EmbeddedImage]:
    """Return the figures of the variables that vary."""
    varying = [variable for variable in variables if variable.varies]
    if not varying:
        return []
    return [histograms(varying, table), *(boxes(varying, table, by=name) for name in by)]


def _statistics(what: str, summary: CohortSummary, variables: Sequence[Variable]) -> Table:
    names = {variable.name: variable.label for variable in variables}
    rows = [
        [
            names[s.measure], s.group, f"{s.n:,}", f"{s.n_missing:,}",
            *map(rounded, (s.mean, s.sd, s.least, s.q1, s.median, s.q3, s.most)),
            f"{s.n_outliers:,}",
        ]
        for s in summary.statistics
        if s.measure in names
    ]  # fmt: skip
    columns = (
        "measure", "slides", "known", "missing", "mean", "SD", "least", "first quartile", "median",
        "third quartile", "most", "outliers",
    )  # fmt: skip
    return Table(
        f"Statistics of {what} per slide; outliers are beyond 1.5 interquartile ranges from "
        "a quartile",
        columns,
        rows,
        text_columns=(0, 1),
    )


def _differences(summary: CohortSummary) -> Section:
    first, second = summary.differences[0].classes
    medians = Table(
        "Medians over patients; the value of a patient is the median over its slides",
        ["measure", first, second, "AUROC", "p"],
        [
            [d.measure, *map(rounded, d.medians), f"{d.auroc:.3f}", f"{d.p_value:.2g}"]
            for d in summary.differences
        ],
    )
    return Section(
        anchor="differences",
        heading="Comparison of classes by patient",
        text=f"AUROC is the probability that a patient of {second} has a higher value than one of "
        f"{first}; 0.5 means no difference. p is that of the Mann-Whitney U test (1947), "
        "two-sided, not corrected for the number of variables.",
        parts=[medians],
    )
