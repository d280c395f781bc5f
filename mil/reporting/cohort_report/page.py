"""The page that shows a description."""

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

__all__ = ["THUMBNAIL_PX", "choose_for_gallery", "render_description"]

_N_COLOURS = 8
_STEP = 8


def render_description(description: CohortSummary) -> str:
    """HTML page of a description, complete in one file."""
    table = description.table
    return render(
        "describe.html",
        name=table.path.name,
        summary=_summary(description),
        key_figures=_key_figures(description),
        findings=description.findings,
        sections=sections_of(description),
        glasses=_glasses(description.bags, table) if description.bags is not None else [],
        galleries=_galleries(description.files, table) if description.files else [],
    )


def _summary(description: CohortSummary) -> str:
    """The cohort in one or two sentences."""
    table = description.table
    text = (
        f"{pluralize(len(table.slides), 'slides')} of {pluralize(len(table.patients), 'patients')}"
    )
    if table.has_centres:
        text += f" at {pluralize(table.n_centres, 'centres')}"
    if not table.labelled:
        return f"{text}."
    told = [
        "{} ({}) {}".format(*with_share(count, len(table.patients)), name)
        for name, count in description.labels["patients"].items()
    ]
    return f"{text}. Of the patients, {', '.join(told)}."


def _key_figures(description: CohortSummary) -> list[tuple[str, str]]:
    """Names and values that stand first on the page."""
    table = description.table
    n_slides = len(table.slides)
    found = [("slides", f"{n_slides:,}"), ("patients", f"{len(table.patients):,}")]
    if table.has_centres:
        found.append(("centres", f"{table.n_centres:,}"))
    if table.labelled:
        for name, count in description.labels["patients"].items():
            shown = " · ".join(with_share(count, len(table.patients)))
            found.append((f"patients of {name}", shown))
    if description.files:
        n_files = sum(slide in description.files.headers for slide in table.slides["slide"])
        found.append(("slides with a file", f"{n_files:,}"))
    if description.bags is not None:
        found.append(("slides with a bag", f"{len(description.bags):,}"))
    return found


def _glasses(
    bags: Mapping[str, SlideBag], table: SlideTable
) -> list[tuple[str, list[tuple[str, int]]]]:
    """Commonest colours of glass by centre: ``red, green, blue`` and how many slides have it."""
    found: dict[str, Counter[str]] = {}
    for row in table.slides.to_dict("records"):
        bag = bags.get(row["slide"])
        if bag is not None and not bag.is_series:
            rgb = (min(255, _STEP * round(c / _STEP)) for c in bag.glass_rgb)
            colours = found.setdefault(row["centre"] or "all", Counter())
            colours[", ".join(map(str, rgb))] += 1
    return [(name, found[name].most_common(_N_COLOURS)) for name in sorted(found, key=natural_key)]


def _galleries(
    files: SlideFiles, table: SlideTable
) -> list[tuple[str, list[tuple[EmbeddedImage, str]]]]:
    """Pictures and captions by label."""
    shown: dict[str, list[tuple[EmbeddedImage, str]]] = {}
    for row in table.slides.to_dict("records"):
        if image := files.thumbnails.get(row["slide"]):
            words = f"{row['slide']}, centre {row['centre']}" if row["centre"] else row["slide"]
            picture = embed_image(image, alt=f"Slide {words}", most_px=THUMBNAIL_PX)
            shown.setdefault(row["label"], []).append((picture, words))
    return [(label, shown[label]) for label in table.classes if label in shown]


THUMBNAIL_PX = 352
"""Longer side of a picture: twice that on the page, for screens of double density."""


def choose_for_gallery(
    table: SlideTable, available: Collection[str], *, n_a_label: int
) -> list[str]:
    """Slides to show: the first of each patient, of these ``n_a_label`` a label, evenly spaced.

    Parameters
    ----------
    table
        The cohort.
    available
        Slides that can be shown.
    n_a_label
        Most slides of a label.
    """
    can = table.slides[table.slides["slide"].isin(list(available))].drop_duplicates("patient")
    chosen: list[str] = []
    for name in table.classes:
        slides = can.loc[can["label"] == name, "slide"].tolist()
        places = np.linspace(0, len(slides) - 1, min(n_a_label, len(slides)))
        chosen += [slides[place] for place in places.round().astype(int)]
    return chosen
