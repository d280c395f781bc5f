"""Maps, tiles and exports of one slide or series on its explanation page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from features.bags.bag import BagMeta
from features.errors import MilError, SlideError, TileError
from features.series.config import series_config_from_fingerprint
from features.series.manifest import SeriesSpec
from features.series.series import open_series
from features.slides.base import RgbArray, Slide
from features.slides.reader import open_slide
from features.tiling.grid import read_tile
from features.utils.text import pluralize, printable
from features.visualization.heatmap import (
    ColorScale,
    TileLayout,
    draw_heatmap,
    draw_slide,
    grid_from_layout,
    heatmap_downsample,
    tile_layout,
)
from features.visualization.pyramid_tiff import write_heatmap_tiff
from mil.inference.attention import Explanation, SlideAttention
from mil.inference.attention_export import write_geojson, write_tile_table
from mil.reporting.figures import (
    MARK_COLOUR,
    EmbeddedImage,
    class_styles,
    embed_image,
    render_figure,
)

__all__ = ["MapView", "SlideView", "TileView", "show_series", "show_slide"]

_MAP_PX = 1600
_MAP_QUALITY = 88
_TILE_PX = 224


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _SlidePixels:
    """Pixels of a slide that could be read."""

    overview: RgbArray | None = None
    tiles: Mapping[int, RgbArray] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Map:
    """One value per tile, shape (tiles,), with its colour scale."""

    key: str
    label: str
    values: npt.NDArray[np.float64]
    scale: ColorScale


def show_slide(
    explanation: Explanation,
    slide: SlideAttention,
    folder: Path,
    *,
    path: Path | None,
    missing: str,
    top: int,
    classes: Sequence[str],
) -> SlideView:
    """Draw the maps and tiles of a slide, and write its exports to the patient's folder.

    A slide that cannot be read is shown without its tissue, with the reason; ``missing`` is the
    reason if there is no file (``path`` is None). ``top`` is the number of most and of least
    attended tiles.

    Raises
    ------
    OutputError
        If an export cannot be written.
    """
    name = slide.meta.slide_id
    write_tile_table(folder / f"{name}.csv", slide, classes=classes)
    top_tiles, bottom_tiles = slide.top(top).tolist(), slide.bottom(top).tolist()
    layout = tile_layout(slide.meta, slide.coords_px0)
    if layout is None:
        return SlideView(
            slide=slide, files={"table (CSV)": f"{name}.csv"},
            top=[TileView(index=i) for i in top_tiles],
            bottom=[TileView(index=i) for i in bottom_tiles],
            note="its bag has no tile coordinates.",
        )  # fmt: skip
    pixels = _SlidePixels()
    if path is not None:
        pixels = _read_pixels(path, layout, slide.meta, [*top_tiles, *bottom_tiles])
    maps = _maps(explanation, slide, classes)
    write_geojson(folder / f"{name}.geojson", slide, span_px0=layout.tile_size_px0, classes=classes)
    downsample = write_heatmap_tiff(
        folder / f"{name}.overlay.tif", layout, maps[0].values, scale=maps[0].scale
    )
    return SlideView(
        slide=slide,
        maps=list(_draw(maps, layout, pixels.overview, slide)),
        top=_tile_views(slide, top_tiles, pixels.tiles),
        bottom=_tile_views(slide, bottom_tiles, pixels.tiles),
        note=pixels.note if path else missing,
        overlay_downsample=downsample,
        files={
            "table (CSV)": f"{name}.csv",
            "rectangles for QuPath (GeoJSON)": f"{name}.geojson",
            "overlay of percentiles (TIFF pyramid)": f"{name}.overlay.tif",
        },
    )


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
    top_images, bottom_images = slide.top(top).tolist(), slide.bottom(top).tolist()
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
        top=_tile_views(slide, top_images, images),
        bottom=_tile_views(slide, bottom_images, images),
        note=note,
        files={"table (CSV)": name},
    )


def _read_pixels(
    path: Path, layout: TileLayout, meta: BagMeta, tiles: Sequence[int]
) -> _SlidePixels:
    """Read the overview and some tiles of a slide; return the reason if it cannot be read."""
    try:
        slide = open_slide(path)
    except SlideError as error:
        return _SlidePixels(note=f"{error}.")
    try:
        _check_size(slide, meta)
        overview = slide.overview(downsample=heatmap_downsample(layout))
        return _SlidePixels(overview=overview, tiles=dict(_read_tiles(slide, layout, meta, tiles)))
    except SlideError as error:
        return _SlidePixels(note=f"{error}.")
    finally:
        slide.close()


def _read_tiles(
    slide: Slide, layout: TileLayout, meta: BagMeta, tiles: Sequence[int]
) -> Iterator[tuple[int, RgbArray]]:
    """Yield index and pixels of tiles as they were embedded, if they can be decoded."""
    grid = grid_from_layout(layout, meta)
    for index in tiles:
        try:
            yield index, read_tile(slide, grid, index)
        except TileError:
            continue


def _check_size(slide: Slide, meta: BagMeta) -> None:
    actual = (slide.levels[0].width_px, slide.levels[0].height_px)
    expected = (meta.width_px0, meta.height_px0)
    if all(expected) and actual != expected:
        raise SlideError(
            slide.path,
            actual=f"{actual[0]:,} × {actual[1]:,} px",
            expected=f"{expected[0]:,} × {expected[1]:,} px, as stated in its bag",
            hint="Use --slides to name the slides that the bags were made from",
        )


def _maps(explanation: Explanation, slide: SlideAttention, classes: Sequence[str]) -> list[_Map]:
    """Return the maps of a slide; all slides of a patient have the same scales."""
    largest = max(float(each.attention.max()) for each in explanation.slides)
    times = largest * explanation.n_tiles
    maps = [
        _Map(
            key="percentile", label="attention, percentile", values=slide.percentile,
            scale=ColorScale(
                palette="viridis", low=0.0, high=100.0,
                words="attention: percentile in the patient, 0 to 100",
            ),
        ),
        _Map(
            key="raw", label="attention, raw", values=slide.attention,
            scale=ColorScale(
                palette="viridis", low=0.0, high=largest,
                words=f"attention: 0 to {largest:.3g} ({times:.1f} × equal share)",
            ),
        ),
    ]  # fmt: skip
    leading = explanation.leading_class
    contribution = slide.signed_contribution(leading)
    if contribution is not None:
        parts = [each.signed_contribution(leading) for each in explanation.slides]
        largest = max(float(np.abs(part).max()) for part in parts if part is not None)
        name = printable(classes[leading])
        words = f"−{largest:.2g} (against {name}) to +{largest:.2g} (for {name})"
        scale = ColorScale(palette="cividis", low=-largest, high=largest, words=words)
        maps.append(
            _Map(
                key="contribution",
                label=f"contribution to {name}",
                values=contribution,
                scale=scale,
            )
        )
    return maps


def _draw(
    maps: Sequence[_Map], layout: TileLayout, overview: RgbArray | None, slide: SlideAttention
) -> Iterator[MapView]:
    name = slide.meta.slide_id
    of_tiles = pluralize(len(slide.attention), "tiles")
    facts = [of_tiles, f"{100 * slide.share:.1f} % of the patient's attention"]
    x_px0, y_px0 = slide.coords_px0[slide.top(1)[0]].tolist()
    for each in maps:
        drawing = draw_heatmap(
            layout, each.values, scale=each.scale, overview=overview, title=name, facts=facts
        )
        alt = (
            f"Slide {name}, colours show {each.label}. The most attended of {of_tiles} is "
            f"at x {x_px0:,}, y {y_px0:,}."
        )
        yield MapView(
            key=each.key, label=each.label,
            image=embed_image(drawing, alt=alt, max_px=_MAP_PX, quality=_MAP_QUALITY),
        )  # fmt: skip
    if overview is not None:
        drawing = draw_slide(layout, overview, title=name, facts=facts)
        yield MapView(
            key="slide", label="slide only",
            image=embed_image(
                drawing, alt=f"Slide {name} without colours", max_px=_MAP_PX, quality=_MAP_QUALITY
            ),
        )  # fmt: skip


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
