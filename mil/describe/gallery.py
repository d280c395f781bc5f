"""Which slides a gallery shows: a few of each label, spread over the table."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from mil.describe.table import SlideTable

__all__ = ["THUMBNAIL_PX", "choose_for_gallery"]

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
