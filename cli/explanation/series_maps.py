"""What ``mil explain`` shows of a series of images: attention by place, and the images."""

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
from mil.reporting.explanation_page import MapView, SlideView, TileView
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
    """Draw the attention of a series by place, show images, and write the table.

    A series that cannot be read is shown without its images, with the reason.

    Parameters
    ----------
    slide
        The series.
    folder
        Where the table goes.
    spec
        Its files; None if they were not given.
    missing
        Why they are not there.
    top
        Images to show of the most and of the least attended.
    classes
        Names of the classes.

    Raises
    ------
    OutputError
        If the table cannot be written.
    """
    name = f"{slide.meta.slide_id}.csv"
    write_tile_table(folder / name, slide, classes=classes)
    most, least = slide.most(top).tolist(), slide.least(top).tolist()
    pictures: dict[int, RgbArray] = {}
    note = missing
    if spec is not None:
        try:
            pictures, note = _read_images(spec, slide, [*most, *least]), ""
        except MilError as error:
            note = f"{error}."
    return SlideView(
        slide=slide,
        maps=[_by_place(slide)],
        most=[_view(i, pictures, slide) for i in most],
        least=[_view(i, pictures, slide) for i in least],
        note=note,
        files={"table (CSV)": name},
    )


def _read_images(
    spec: SeriesSpec, slide: SlideAttention, indices: Sequence[int]
) -> dict[int, RgbArray]:
    """Images as they were embedded, by their place in the bag."""
    settings = series_config_from_fingerprint(slide.meta.fingerprint)
    opened = open_series(spec, windows=settings.windows, side_px=settings.side_px)
    places = {image.source: place for place, image in enumerate(opened.images)}
    found = {}
    for index in indices:
        source = (slide.source or ())[index]
        pixels = opened.read(places[source]) if source in places else None
        if isinstance(pixels, np.ndarray):
            found[index] = pixels
    return found


def _by_place(slide: SlideAttention) -> MapView:
    """A bar an image, the most attended one marked."""
    places = np.arange(len(slide.attention)) if slide.order is None else slide.order
    highest = int(slide.most(1)[0])
    (style,) = class_styles(["attention"])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        colours = [MARK_COLOUR if i == highest else style.colour for i in range(len(places))]
        axes.bar(places + 1, slide.attention, width=0.9, color=colours)
        axes.set(xlabel="place in the series", ylabel="attention")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))

    alt = (
        f"Attention by place in series {slide.meta.slide_id}: most on {slide.place(highest)}, "
        f"{100 * slide.attention[highest]:.1f} %"
    )
    return MapView(
        key="place",
        label="attention by place",
        picture=render_figure(paint, alt=alt, height_in=2.6),
    )


def _view(index: int, pictures: dict[int, RgbArray], slide: SlideAttention) -> TileView:
    if index not in pictures:
        return TileView(index=index, picture=None)
    image = Image.fromarray(pictures[index])
    return TileView(
        index=index,
        picture=embed_image(
            image, alt=f"{slide.place(index)} of series {slide.meta.slide_id}", max_px=_IMAGE_PX
        ),
    )
