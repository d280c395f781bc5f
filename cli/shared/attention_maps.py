"""Maps, tiles and exports of one slide or series on its explanation page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cli.shared.map_layers import (
    draw_base,
    draw_layers,
    draw_thumbnail,
    draw_unlike,
    measure_bar,
)
from cli.viewer.slides import check_slide_size
from features.bags.bag import BagMeta
from features.errors import MilError, SlideError, TileError
from features.series.config import series_config_from_fingerprint
from features.series.manifest import SeriesSpec
from features.series.series import open_series
from features.slides.base import RgbArray
from features.slides.reader import open_slide
from features.tiling.grid import read_tile
from features.visualization.heatmap import (
    ColorScale,
    TileLayout,
    grid_from_layout,
    heatmap_downsample,
    tile_layout,
)
from features.visualization.pyramid_tiff import write_heatmap_tiff
from mil.inference.attention import Explanation, SlideAttention
from mil.inference.attention_export import write_geojson, write_tile_table
from mil.reporting.explanation_views import MapView, SlideView, TileView
from mil.reporting.figures import (
    MARK_COLOUR,
    EmbeddedImage,
    class_styles,
    embed_image,
    render_figure,
)

__all__ = ["show_bag"]

_TILE_PX, _THUMBNAIL_PX = 224, 160
_OVERLAY_SCALE = ColorScale(palette="viridis", low=0.0, high=100.0, words="percentile")


def show_bag(
    explanation: Explanation,
    slide: SlideAttention,
    folder: Path,
    *,
    slides: Mapping[str, Path] | None,
    series: Mapping[str, SeriesSpec] | None,
    top: int,
    classes: Sequence[str],
) -> SlideView:
    """Draw the attention on a slide or series, and write its exports to the patient's folder.

    Slides have layers of outlines and colours, and tiles of shape (tile_px, tile_px, 3), uint8;
    series have a chart by position, and images. Without files (``slides`` and ``series`` by id;
    None if not given), or with unreadable ones, there are no pixels, and the note states the
    reason. ``top`` is the number of most and of least attended tiles. Raises ``OutputError`` if an
    export cannot be written.
    """
    name = slide.meta.slide_id
    write_tile_table(folder / f"{name}.csv", slide, classes=classes)
    most, least = slide.top(top).tolist(), slide.bottom(top).tolist()
    layout = tile_layout(slide.meta, slide.coords_px0) if slide.order is None else None
    view = SlideView(slide=slide, files={"table (CSV)": f"{name}.csv"})
    if slide.order is not None:
        pixels, note = _read_images(series, slide, [*most, *least])
        view = replace(view, maps=[_position_chart(slide)], thumbnail=_picture(pixels, most, name))
    elif layout is None:
        pixels, note = {}, "its bag has no tile coordinates."
    else:
        overview, pixels, note = _read_slide(slides, layout, slide.meta, [*most, *least])
        view = replace(
            view,
            base=draw_base(layout, overview, name=name),
            has_tissue=overview is not None,
            maps=draw_layers(explanation, slide, layout, classes=classes),
            unlike=draw_unlike(slide, layout),
            bar=measure_bar(layout),
            thumbnail=None
            if overview is None
            else draw_thumbnail(explanation, slide, layout, overview),
            **_export(slide, layout, folder, classes),
        )
    return replace(
        view,
        top=_tile_views(slide, most, pixels),
        bottom=_tile_views(slide, least, pixels),
        note=note,
    )


def _export(
    slide: SlideAttention, layout: TileLayout, folder: Path, classes: Sequence[str]
) -> dict[str, Any]:
    """Write the exports of a slide, and return their part of its view."""
    name = slide.meta.slide_id
    write_geojson(folder / f"{name}.geojson", slide, span_px0=layout.tile_size_px0, classes=classes)
    downsample = write_heatmap_tiff(
        folder / f"{name}.overlay.tif", layout, slide.percentile, scale=_OVERLAY_SCALE
    )
    return {
        "overlay_downsample": downsample,
        "files": {
            "table (CSV)": f"{name}.csv",
            "rectangles for QuPath (GeoJSON)": f"{name}.geojson",
            "overlay of percentiles (TIFF pyramid)": f"{name}.overlay.tif",
        },
    }


def _read_slide(
    slides: Mapping[str, Path] | None, layout: TileLayout, meta: BagMeta, indices: Sequence[int]
) -> tuple[RgbArray | None, dict[int, RgbArray], str]:
    """Return overview, decodable tiles by index, and the reason if the slide cannot be read."""
    path = (slides or {}).get(meta.slide_id)
    if path is None:
        missing = "no file of that name is in the folder of slides."
        return None, {}, "" if slides is None else missing
    grid = grid_from_layout(layout, meta)
    tiles: dict[int, RgbArray] = {}
    try:
        with closing(open_slide(path, scene=meta.scene or None)) as slide:
            check_slide_size(slide, meta)
            overview = slide.overview(downsample=heatmap_downsample(layout))
            for index in indices:
                try:
                    tiles[index] = read_tile(slide, grid, index)
                except TileError:
                    continue  # its caption is shown without its pixels
    except SlideError as error:
        return None, {}, f"{error}."
    return overview, tiles, ""


def _read_images(
    series: Mapping[str, SeriesSpec] | None, slide: SlideAttention, indices: Sequence[int]
) -> tuple[dict[int, RgbArray], str]:
    """Return images as they were embedded, by row of the bag, and the reason if there are none."""
    spec = (series or {}).get(slide.meta.slide_id)
    if spec is None:
        return {}, "" if series is None else "the table of series does not list it."
    images = {}
    try:
        config = series_config_from_fingerprint(slide.meta.fingerprint)
        opened = open_series(spec, windows=config.windows, side_px=config.side_px)
        positions = {image.source: position for position, image in enumerate(opened.images)}
        for index in indices:
            source = (slide.source or ())[index]
            pixels = opened.read(positions[source]) if source in positions else None
            if isinstance(pixels, np.ndarray):
                images[index] = pixels
    except MilError as error:
        return {}, f"{error}."
    return images, ""


def _picture(
    pixels: Mapping[int, RgbArray], indices: Sequence[int], name: str
) -> EmbeddedImage | None:
    """Return the most attended image of a series that can be read, if any, for the index."""
    for index in indices:
        if index in pixels:
            alt = f"Most attended image of series {name}"
            return embed_image(Image.fromarray(pixels[index]), alt=alt, max_px=_THUMBNAIL_PX)
    return None


def _tile_views(
    slide: SlideAttention, indices: Sequence[int], pixels: Mapping[int, RgbArray]
) -> list[TileView]:
    """Return tiles of a slide or images of a series, with their pixels if known."""
    what, whole = ("Tile at ", "slide") if slide.order is None else ("", "series")
    views = []
    for index in indices:
        image = None
        if index in pixels:
            alt = f"{what}{slide.describe_tile(index)} of {whole} {slide.meta.slide_id}"
            image = embed_image(Image.fromarray(pixels[index]), alt=alt, max_px=_TILE_PX)
        views.append(TileView(index=index, image=image))
    return views


def _position_chart(slide: SlideAttention) -> MapView:
    """Draw one bar per image, with the most attended one highlighted."""
    positions = np.arange(len(slide.attention)) if slide.order is None else slide.order
    highest = int(slide.top(1)[0])
    (style,) = class_styles(["attention"])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        colours = [MARK_COLOUR if i == highest else style.colour for i in range(len(positions))]
        axes.bar(positions + 1, slide.attention, width=0.9, color=colours)
        axes.set(xlabel="position in the series", ylabel="attention")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))

    alt = (
        f"Attention by position in series {slide.meta.slide_id}: most on "
        f"{slide.describe_tile(highest)}, {100 * slide.attention[highest]:.1f} %"
    )
    return MapView(
        key="position",
        label="attention by position",
        image=render_figure(paint, alt=alt, height_in=2.6),
    )
