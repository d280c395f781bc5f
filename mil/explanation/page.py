"""The page of one patient, and the page over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from features.files import written_beside
from mil.explanation.attention import Explanation, SlideAttention
from mil.figures import Picture
from mil.inference import PatientPrediction
from mil.model import Run
from mil.pages import folder_name, render

__all__ = ["MapView", "SlideView", "TileView", "write_index", "write_page"]

_STATUSES = {
    "ok": "all slides used",
    "slides_missing": "some slides have no bag",
    "no_tissue": "no tissue on any slide: the probabilities are the prior",
    "no_bag": "no slide has a bag: the probabilities are the prior",
}


@dataclass(frozen=True, kw_only=True)
class MapView:
    """One way of colouring a slide."""

    key: str
    """Which: ``percentile``, ``raw``, ``contribution``, ``slide``, or ``place`` of a series."""
    label: str
    """What the switch says."""
    picture: Picture
    """The map."""


@dataclass(frozen=True, kw_only=True)
class TileView:
    """A tile shown by itself."""

    index: int
    """Its place in the bag."""
    picture: Picture | None
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
    run: Run,
    prior: npt.NDArray[np.float64],
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
        status=_STATUSES[explanation.prediction.status],
        classes=run.classes,
        leading=run.classes[explanation.leading_class],
        prior=_in_words(run.classes, prior),
        run=run,
        shares=_table_of_shares(explanation, run.classes),
        views=views,
        labels=labels,
        tiles=[_tiles(view, explanation) for view in views],
        link=_link,
    )
    _write(path, html)


def write_index(
    path: Path,
    predictions: Sequence[PatientPrediction],
    *,
    run: Run,
    prior: npt.NDArray[np.float64],
) -> None:
    """Write the page over patients, with links to theirs.

    Parameters
    ----------
    path
        Where to; the patients' folders lie beside it.
    predictions
        The patients.
    run, prior
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
        statuses=_STATUSES,
        folder_name=folder_name,
        link=_link,
    )
    _write(path, html)


def _write(path: Path, html: str) -> None:
    with written_beside(path) as beside:
        beside.write_text(html, encoding="utf-8", errors="replace")


def _link(name: str) -> str:
    """Address of a file beside a page."""
    return "./" + quote(os.fsencode(name), safe="/")


def _signed(value: float, digits: str) -> str:
    """A number with its sign, set as a minus and not as a hyphen."""
    return format(value, f"+{digits}").replace("-", "−")


def _in_words(classes: Sequence[str], prior: npt.NDArray[np.float64]) -> str:
    return ", ".join(f"{name} {share:.3f}" for name, share in zip(classes, prior, strict=True))


def _table_of_shares(explanation: Explanation, classes: Sequence[str]) -> dict[str, object]:
    """Slides beside each other, as the macro ``table`` takes them."""
    has_parts = explanation.logits is not None
    columns = ["Slide", "Tiles", "Share of tiles", "Share of attention", "Largest × equal share"]
    columns += [f"Sum for {name}" for name in classes] if has_parts else []
    return {
        "title": "The patient's slides with tiles",
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


def _tiles(view: SlideView, explanation: Explanation) -> dict[str, list[dict[str, object]]]:
    return {
        "Most attended tiles": list(_captions(view, view.most, explanation)),
        "Least attended tiles": list(_captions(view, view.least, explanation)),
    }


def _captions(
    view: SlideView, tiles: Sequence[TileView], explanation: Explanation
) -> Iterator[dict[str, object]]:
    """Picture and words of tiles."""
    slide = view.slide
    leaning = slide.leaning(explanation.leading_class)
    for tile in tiles:
        yield {
            "picture": tile.picture,
            "place": slide.place(tile.index),
            "times": f"{slide.attention[tile.index] * explanation.n_tiles:.2g} × equal share",
            "percentile": f"percentile {slide.percentile[tile.index]:.1f}",
            "leaning": None if leaning is None else _signed(leaning[tile.index], ".2g"),
        }
