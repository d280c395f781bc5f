"""Attention by position in a series of images, and its most and least attended images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from features.errors import MilError
from features.series.config import series_config_from_fingerprint
from features.series.manifest import SeriesSpec
from features.series.series import open_series
from features.slides.base import RgbArray
from mil.inference.attention import SlideAttention
from mil.inference.attention_export import write_tile_table
from mil.reporting.explanation.page import MapView, SlideView, TileView
from mil.reporting.figures import MARK_COLOUR, class_styles, embed_image, render_figure

__all__ = ["show_series"]

_IMAGE_PX = 224


def show_series(
    slide: SlideAttention,
    folder: Path,
    *,
    spec: SeriesSpec | None,
    missing: str,
    top: int,
    classes: Sequence[str],
) -> SlideView:
    """Draw the attention of a series by position, show images, and write the table to the folder.

    A series that cannot be read is shown without its images, with the reason; ``missing`` is the
    reason if its files are not known (``spec`` is None). ``top`` is the number of most and of least
    attended images.

    Raises
    ------
    OutputError
        If the table cannot be written.
    """
    name = f"{slide.meta.slide_id}.csv"
    write_tile_table(folder / name, slide, classes=classes)
    top_images, bottom_images = slide.most(top).tolist(), slide.least(top).tolist()
    images: dict[int, RgbArray] = {}
    note = missing
    if spec is not None:
        try:
            images, note = _read_images(spec, slide, [*top_images, *bottom_images]), ""
        except MilError as error:
            note = f"{error}."
    return SlideView(
        slide=slide,
        maps=[_position_chart(slide)],
        top=[_tile_view(i, images, slide) for i in top_images],
        bottom=[_tile_view(i, images, slide) for i in bottom_images],
        note=note,
        files={"table (CSV)": name},
    )


def _read_images(
    spec: SeriesSpec, slide: SlideAttention, indices: Sequence[int]
) -> dict[int, RgbArray]:
    """Return images as they were embedded, by their row in the bag."""
    settings = series_config_from_fingerprint(slide.meta.fingerprint)
    opened = open_series(spec, windows=settings.windows, side_px=settings.side_px)
    positions = {image.source: position for position, image in enumerate(opened.images)}
    images = {}
    for index in indices:
        source = (slide.source or ())[index]
        pixels = opened.read(positions[source]) if source in positions else None
        if isinstance(pixels, np.ndarray):
            images[index] = pixels
    return images


def _position_chart(slide: SlideAttention) -> MapView:
    """Draw one bar per image, with the most attended one highlighted."""
    positions = np.arange(len(slide.attention)) if slide.order is None else slide.order
    highest = int(slide.most(1)[0])
    (style,) = class_styles(["attention"])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        colours = [MARK_COLOUR if i == highest else style.colour for i in range(len(positions))]
        axes.bar(positions + 1, slide.attention, width=0.9, color=colours)
        axes.set(xlabel="position in the series", ylabel="attention")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))

    alt = (
        f"Attention by position in series {slide.meta.slide_id}: most on {slide.place(highest)}, "
        f"{100 * slide.attention[highest]:.1f} %"
    )
    return MapView(
        key="position",
        label="attention by position",
        image=render_figure(paint, alt=alt, height_in=2.6),
    )


def _tile_view(index: int, images: dict[int, RgbArray], slide: SlideAttention) -> TileView:
    if index not in images:
        return TileView(index=index)
    return TileView(
        index=index,
        image=embed_image(
            Image.fromarray(images[index]),
            alt=f"{slide.place(index)} of series {slide.meta.slide_id}",
            max_px=_IMAGE_PX,
        ),
    )
