"""The page ``describe.html`` of a cohort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from features.utils.text import natural_key, pluralize
from mil.reporting.cohort_report.collect import CohortSummary
from mil.reporting.cohort_report.sections import sections_of, with_share
from mil.reporting.cohort_report.slides import SlideBag, SlideFiles
from mil.reporting.cohort_report.table import SlideTable
from mil.reporting.figures import EmbeddedImage, embed_image
from mil.reporting.html import render

__all__ = ["THUMBNAIL_PX", "choose_for_gallery", "render_cohort_report"]

THUMBNAIL_PX = 352
"""Long side of a thumbnail, px: twice its size on the page, for screens of double density."""

_N_COLOURS = 8
_COLOUR_STEP = 8


def render_cohort_report(summary: CohortSummary) -> str:
    """Return the HTML page of a cohort, complete in one file."""
    table = summary.table
    return render(
        "describe.html",
        name=table.path.name,
        summary=_in_sentences(summary),
        key_figures=_key_figures(summary),
        findings=summary.findings,
        sections=sections_of(summary),
        glasses=_glass_colours(summary.bags, table) if summary.bags is not None else [],
        galleries=_galleries(summary.files, table) if summary.files else [],
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


def _in_sentences(summary: CohortSummary) -> str:
    """Return the cohort in one or two sentences."""
    table = summary.table
    n_slides, n_patients = len(table.slides), len(table.patients)
    text = f"{pluralize(n_slides, 'slides')} of {pluralize(n_patients, 'patients')}"
    if table.has_centres:
        text += f" at {pluralize(table.n_centres, 'centres')}"
    if not table.labelled:
        return f"{text}."
    parts = [
        "{} ({}) {}".format(*with_share(count, n_patients), name)
        for name, count in summary.labels["patients"].items()
    ]
    return f"{text}. Of the patients, {', '.join(parts)}."


def _key_figures(summary: CohortSummary) -> list[tuple[str, str]]:
    """Return names and values at the top of the page."""
    table = summary.table
    figures = [
        ("slides", f"{len(table.slides):,}"),
        ("patients", f"{len(table.patients):,}"),
    ]
    if table.has_centres:
        figures.append(("centres", f"{table.n_centres:,}"))
    if table.labelled:
        for name, count in summary.labels["patients"].items():
            text = " · ".join(with_share(count, len(table.patients)))
            figures.append((f"patients of {name}", text))
    if summary.files:
        n_files = sum(slide in summary.files.headers for slide in table.slides["slide"])
        figures.append(("slides with a file", f"{n_files:,}"))
    if summary.bags is not None:
        figures.append(("slides with a bag", f"{len(summary.bags):,}"))
    return figures


def _glass_colours(
    bags: Mapping[str, SlideBag], table: SlideTable
) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return the most frequent glass colours per centre: ``red, green, blue``, slide count."""
    colours: dict[str, Counter[str]] = {}
    for row in table.slides.to_dict("records"):
        bag = bags.get(row["slide"])
        if bag is not None and not bag.is_series:
            rgb = (min(255, _COLOUR_STEP * round(c / _COLOUR_STEP)) for c in bag.glass_rgb)
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
