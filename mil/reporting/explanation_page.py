"""The page of one patient, and the page over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from features.utils.files import atomic_write
from mil.inference.attention import Explanation, SlideAttention
from mil.inference.bundle import ModelBundle
from mil.inference.predict import PatientPrediction
from mil.reporting.figures import EmbeddedImage
from mil.reporting.html import folder_name, render

__all__ = [
    "OF_SERIES",
    "OF_SLIDES",
    "MapView",
    "SlideView",
    "Terms",
    "TileView",
    "write_index",
    "write_page",
]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What pages call that which becomes a bag."""

    slide: str
    """One bag's: a slide, or a scan."""
    tile: str
    """One instance's: a tile, or an image."""
    nothing: str
    """Why none of a patient's bags holds an instance."""
    picture: str
    """What cannot be shown where a slide or its images are not there."""
    place: str
    """What the place of an instance means, as a sentence."""

    @property
    def a_tile(self) -> str:
        """One of them, with its article."""
        return f"an {self.tile}" if self.tile[0] in "aeiou" else f"a {self.tile}"

    @property
    def statuses(self) -> dict[str, str]:
        """What became of a patient's slides, by status."""
        return {
            "ok": f"all {self.slide}s used",
            "slides_missing": f"some {self.slide}s have no bag",
            "no_tissue": f"{self.nothing}: the probabilities are the prior",
            "no_bag": f"no {self.slide} has a bag: the probabilities are the prior",
        }


OF_SLIDES = Terms(
    slide="slide",
    tile="tile",
    nothing="no tissue on any slide",
    picture="picture of the tissue",
    place="Upper left corner of the tile, in px of the slide's finest level.",
)
"""For bags of tiles of slides."""

OF_SERIES = Terms(
    slide="scan",
    tile="image",
    nothing="no image of any scan",
    picture="pictures of the images",
    place="Place of the image in its series, from 1, and its file as the table of series names it.",
)
"""For bags of series of images."""


@dataclass(frozen=True, kw_only=True)
class MapView:
    """One way of colouring a slide."""

    key: str
    """Which: ``percentile``, ``raw``, ``contribution``, ``slide``, or ``place`` of a series."""
    label: str
    """What the switch says."""
    picture: EmbeddedImage
    """The map."""


@dataclass(frozen=True, kw_only=True)
class TileView:
    """A tile shown by itself."""

    index: int
    """Its place in the bag."""
    picture: EmbeddedImage | None
    """Cut from the slide; None where there is no slide or it cannot be decoded."""


@dataclass(frozen=True, kw_only=True)
class SlideView:
    """All that a page shows of a slide besides numbers."""

    slide: SlideAttention
    """The numbers."""
    maps: Sequence[MapView] = ()
    """Ways of colouring it; none where the bag does not know where its tiles lie."""
    most: Sequence[TileView] = ()
    """The most attended tiles, the highest first."""
    least: Sequence[TileView] = ()
    """The least attended tiles, the lowest first."""
    note: str = ""
    """Why the tissue cannot be shown; empty where it is, or where no slides were asked for."""
    overlay_downsample: int | None = None
    """Level-0 px per px of the overlay; None where there is none."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name of each export beside the page, by what it is."""


def write_page(
    path: Path,
    explanation: Explanation,
    views: Sequence[SlideView],
    *,
    run: ModelBundle,
    prior: npt.NDArray[np.float64],
    words: Terms = OF_SLIDES,
) -> None:
    """Write the page of a patient.

    Parameters
    ----------
    path
        Where to.
    explanation
        The numbers.
    views
        What is shown of each slide, in the same order.
    run
        The run.
    prior
        Shape (classes,): what the probabilities are for.
    words
        What slides and tiles are called.

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
        status=words.statuses[explanation.prediction.status],
        classes=run.classes,
        leading=run.classes[explanation.leading_class],
        prior=_in_words(run.classes, prior),
        run=run,
        shares=_table_of_shares(explanation, run.classes, words),
        views=views,
        labels=labels,
        tiles=[_tiles(view, explanation, words) for view in views],
        words=words,
        link=_link,
    )
    _write(path, html)


def write_index(
    path: Path,
    predictions: Sequence[PatientPrediction],
    *,
    run: ModelBundle,
    prior: npt.NDArray[np.float64],
    words: Terms = OF_SLIDES,
) -> None:
    """Write the page over patients, with links to theirs.

    Parameters
    ----------
    path
        Where to; the patients' folders lie beside it.
    predictions
        The patients.
    run, prior, words
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
        words=words,
        folder_name=folder_name,
        link=_link,
    )
    _write(path, html)


def _write(path: Path, html: str) -> None:
    with atomic_write(path) as beside:
        beside.write_text(html, encoding="utf-8", errors="replace")


def _link(name: str) -> str:
    """Address of a file beside a page."""
    return "./" + quote(os.fsencode(name), safe="/")


def _signed(value: float, digits: str) -> str:
    """A number with its sign, set as a minus and not as a hyphen."""
    return format(value, f"+{digits}").replace("-", "−")


def _in_words(classes: Sequence[str], prior: npt.NDArray[np.float64]) -> str:
    return ", ".join(f"{name} {share:.3f}" for name, share in zip(classes, prior, strict=True))


def _table_of_shares(
    explanation: Explanation, classes: Sequence[str], words: Terms
) -> dict[str, object]:
    """Slides beside each other, as the macro ``table`` takes them."""
    has_parts = explanation.logits is not None
    columns = [
        words.slide.capitalize(), f"{words.tile.capitalize()}s", f"Share of {words.tile}s",
        "Share of attention", "Largest × equal share",
    ]  # fmt: skip
    columns += [f"Sum for {name}" for name in classes] if has_parts else []
    return {
        "title": f"The patient's {words.slide}s with {words.tile}s",
        "columns": columns,
        "numeric": [False] + [True] * (len(columns) - 1),
        "rows": [
            [
                slide.meta.slide_id,
                f"{len(slide.attention):,}",
                f"{100 * len(slide.attention) / explanation.n_tiles:.1f} %",
                f"{100 * slide.share:.1f} %",
                f"{slide.attention.max() * explanation.n_tiles:.1f}",
                *(
                    ()
                    if slide.contributions is None
                    else (_signed(part, ".3f") for part in slide.contributions.sum(axis=0))
                ),
            ]
            for slide in explanation.slides
        ],
    }


def _tiles(
    view: SlideView, explanation: Explanation, words: Terms
) -> dict[str, list[dict[str, object]]]:
    return {
        f"{which} attended {words.tile}s": list(_captions(view, tiles, explanation))
        for which, tiles in (("Most", view.most), ("Least", view.least))
    }


def _captions(
    view: SlideView, tiles: Sequence[TileView], explanation: Explanation
) -> Iterator[dict[str, object]]:
    """Picture and words of tiles."""
    slide = view.slide
    signed_contribution = slide.signed_contribution(explanation.leading_class)
    for tile in tiles:
        yield {
            "picture": tile.picture,
            "place": slide.place(tile.index),
            "times": f"{slide.attention[tile.index] * explanation.n_tiles:.2g} × equal share",
            "percentile": f"percentile {slide.percentile[tile.index]:.1f}",
            "leaning": None
            if signed_contribution is None
            else _signed(signed_contribution[tile.index], ".2g"),
        }
