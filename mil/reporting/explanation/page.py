"""Explanation page of one patient, and the index of all patients."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from mil.inference.attention import Explanation, SlideAttention
from mil.inference.bundle import ModelBundle
from mil.inference.predict import PatientPrediction
from mil.reporting.figures import EmbeddedImage
from mil.reporting.html import Table, folder_name, render, write_html

__all__ = [
    "SERIES_TERMS",
    "SLIDE_TERMS",
    "MapView",
    "SlideView",
    "Terms",
    "TileView",
    "write_index",
    "write_page",
]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Terms that a page uses for bags and instances."""

    slide: str
    """A bag: ``slide`` or ``scan``."""
    tile: str
    """An instance: ``tile`` or ``image``."""
    nothing: str
    """Reason why all bags of a patient are empty."""
    picture: str
    """Content that is missing if a slide or its images cannot be read."""
    position: str
    """Meaning of the position of an instance, as a sentence."""

    @property
    def a_tile(self) -> str:
        """An instance, with its article."""
        return f"an {self.tile}" if self.tile[0] in "aeiou" else f"a {self.tile}"

    @property
    def statuses(self) -> dict[str, str]:
        """Description of each status of a patient."""
        return {
            "ok": f"all {self.slide}s used",
            "slides_missing": f"some {self.slide}s have no bag",
            "no_tissue": f"{self.nothing}: the probabilities are the prior",
            "no_bag": f"no {self.slide} has a bag: the probabilities are the prior",
        }


SLIDE_TERMS = Terms(
    slide="slide",
    tile="tile",
    nothing="no tissue on any slide",
    picture="picture of the tissue",
    position="Upper left corner of the tile, in px of the slide's finest level.",
)
"""Terms for bags of tiles of slides."""

SERIES_TERMS = Terms(
    slide="scan",
    tile="image",
    nothing="no image of any scan",
    picture="pictures of the images",
    position="Position of the image in its series, from 1, and its file as listed in the table of "
    "series.",
)
"""Terms for bags of series of images."""


@dataclass(frozen=True, kw_only=True)
class MapView:
    """One map of a slide."""

    key: str
    """``percentile``, ``raw``, ``contribution``, ``slide``, or ``position`` in a series."""
    label: str
    image: EmbeddedImage


@dataclass(frozen=True, kw_only=True)
class TileView:
    """One of the most or least attended tiles."""

    index: int
    """Row in the bag."""
    image: EmbeddedImage | None = None
    """Pixels of the tile; None without slide, or if the tile cannot be decoded."""


@dataclass(frozen=True, kw_only=True)
class SlideView:
    """Maps, tiles and exports of a slide on its page."""

    slide: SlideAttention
    maps: Sequence[MapView] = ()
    """Maps; empty if the bag has no tile coordinates."""
    top: Sequence[TileView] = ()
    """The most attended tiles, the highest first."""
    bottom: Sequence[TileView] = ()
    """The least attended tiles, the lowest first."""
    note: str = ""
    """Reason why the tissue is not shown; empty if it is, or if no slides were asked for."""
    overlay_downsample: int | None = None
    """Level-0 px per px of the overlay; None without overlay."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File name of each export, by its description."""


def write_page(
    path: Path,
    explanation: Explanation,
    views: Sequence[SlideView],
    *,
    run: ModelBundle,
    prior: npt.NDArray[np.float64],
    terms: Terms = SLIDE_TERMS,
) -> None:
    """Write the page of a patient.

    Parameters
    ----------
    path
        Path of the page.
    explanation
        Prediction and attention of the patient.
    views
        Maps and tiles of each slide, in the order of the explanation.
    run
        Model bundle.
    prior
        Class shares of the probabilities, shape (classes,).
    terms
        Terms for slides and tiles.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    labels = {each.key: each.label for view in views for each in view.maps}
    html = render(
        "explain.html",
        explanation=explanation,
        prediction=explanation.prediction,
        status=terms.statuses[explanation.prediction.status],
        classes=run.classes,
        leading=run.classes[explanation.leading_class],
        prior=_in_words(run.classes, prior),
        run=run,
        shares=_table_of_shares(explanation, run.classes, terms),
        views=views,
        labels=labels,
        tiles=[_tiles(view, explanation, terms) for view in views],
        terms=terms,
        link=_link,
    )
    write_html(path, html)


def write_index(
    path: Path,
    predictions: Sequence[PatientPrediction],
    *,
    run: ModelBundle,
    prior: npt.NDArray[np.float64],
    terms: Terms = SLIDE_TERMS,
) -> None:
    """Write the index of the patients, with links to their pages.

    Parameters
    ----------
    path
        Path of the index, in the folder that holds those of the patients.
    predictions
        Predictions of the patients.
    run, prior, terms
        As for :func:`write_page`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    html = render(
        "explain_index.html",
        predictions=predictions,
        classes=run.classes,
        prior=_in_words(run.classes, prior),
        run=run,
        terms=terms,
        folder_name=folder_name,
        link=_link,
    )
    write_html(path, html)


def _link(name: str) -> str:
    """Return the address of a file in the folder of the page."""
    return "./" + quote(os.fsencode(name), safe="/")


def _signed(value: float, digits: str) -> str:
    """Return a number with its sign, with a minus instead of a hyphen."""
    return format(value, f"+{digits}").replace("-", "−")


def _in_words(classes: Sequence[str], prior: npt.NDArray[np.float64]) -> str:
    return ", ".join(f"{name} {share:.3f}" for name, share in zip(classes, prior, strict=True))


def _table_of_shares(explanation: Explanation, classes: Sequence[str], terms: Terms) -> Table:
    """Return the share of tiles and attention of each slide."""
    n_tiles, has_parts = explanation.n_tiles, explanation.logits is not None
    columns = [
        terms.slide.capitalize(), f"{terms.tile.capitalize()}s", f"Share of {terms.tile}s",
        "Share of attention", "Largest × equal share",
        *(f"Sum for {name}" for name in classes if has_parts),
    ]  # fmt: skip
    rows = []
    for slide in explanation.slides:
        parts = () if slide.contributions is None else slide.contributions.sum(axis=0)
        rows.append([
            slide.meta.slide_id,
            f"{len(slide.attention):,}",
            f"{100 * len(slide.attention) / n_tiles:.1f} %",
            f"{100 * slide.share:.1f} %",
            f"{slide.attention.max() * n_tiles:.1f}",
            *(_signed(part, ".3f") for part in parts),
        ])  # fmt: skip
    return Table(f"The patient's {terms.slide}s with {terms.tile}s", columns, rows)


def _tiles(
    view: SlideView, explanation: Explanation, terms: Terms
) -> dict[str, list[dict[str, object]]]:
    """Return images and captions of the most and least attended tiles, by heading."""
    slide = view.slide
    contribution = slide.signed_contribution(explanation.leading_class)

    def describe(tile: TileView) -> dict[str, object]:
        index = tile.index
        return {
            "image": tile.image,
            "position": slide.place(index),
            "times": f"{slide.attention[index] * explanation.n_tiles:.2g} × equal share",
            "percentile": f"percentile {slide.percentile[index]:.1f}",
            "contribution": None if contribution is None else _signed(contribution[index], ".2g"),
        }

    return {
        f"{which} attended {terms.tile}s": [describe(tile) for tile in tiles]
        for which, tiles in (("Most", view.top), ("Least", view.bottom))
    }
