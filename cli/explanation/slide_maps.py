"""What ``mil explain`` shows of one slide: maps and tiles, cut from the slide where it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from features.bags.bag import BagMeta
from features.errors import SlideError, TileError
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
from mil.reporting.explanation_page import MapView, SlideView, TileView
from mil.reporting.figures import embed_image

__all__ = ["show_slide"]

_MAP_PX = 1600
_MAP_QUALITY = 88
_TILE_PX = 224


@dataclass(frozen=True, kw_only=True, eq=False)
class _SlidePixels:
    """Pixels of a slide, as far as they can be had."""

    overview: RgbArray | None = None
    tiles: Mapping[int, RgbArray] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Map:
    """A number of every tile, and its colours."""

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
    """Draw the maps of a slide, cut its tiles, and write the exports.

    A slide that cannot be read is shown without its tissue, with the reason.

    Parameters
    ----------
    explanation
        The patient's.
    slide
        One of its slides.
    folder
        Where the exports go.
    path
        The slide's file; None if there is none.
    missing
        Why there is none.
    top
        Tiles to show of the most and of the least attended.
    classes
        Names of the classes.

    Raises
    ------
    OutputError
        If an export cannot be written.
    """
    name = slide.meta.slide_id
    write_tile_table(folder / f"{name}.csv", slide, classes=classes)
    most, least = slide.most(top).tolist(), slide.least(top).tolist()
    places = tile_layout(slide.meta, slide.coords_px0)
    if places is None:
        return SlideView(
            slide=slide, files={"table (CSV)": f"{name}.csv"},
            most=[TileView(index=i, picture=None) for i in most],
            least=[TileView(index=i, picture=None) for i in least],
            note="its bag does not know where on the slide its tiles lie.",
        )  # fmt: skip
    tissue = _read_tissue(path, places, slide.meta, [*most, *least]) if path else _SlidePixels()
    maps = _maps(explanation, slide, classes)
    write_geojson(folder / f"{name}.geojson", slide, span_px0=places.tile_size_px0, classes=classes)
    downsample = write_heatmap_tiff(
        folder / f"{name}.overlay.tif", places, maps[0].values, scale=maps[0].scale
    )
    return SlideView(
        slide=slide,
        maps=list(_draw(maps, places, tissue.overview, slide)),
        most=[_tile_view(i, tissue, slide) for i in most],
        least=[_tile_view(i, tissue, slide) for i in least],
        note=tissue.note if path else missing,
        overlay_downsample=downsample,
        files={
            "table (CSV)": f"{name}.csv",
            "rectangles for QuPath (GeoJSON)": f"{name}.geojson",
            "overlay of percentiles (TIFF pyramid)": f"{name}.overlay.tif",
        },
    )


def _read_tissue(
    path: Path, places: TileLayout, meta: BagMeta, tiles: Sequence[int]
) -> _SlidePixels:
    """The overview and some tiles of a slide; the reason where it cannot be read."""
    try:
        slide = open_slide(path)
    except SlideError as error:
        return _SlidePixels(note=f"{error}.")
    try:
        _require_same_size(slide, meta)
        overview = slide.overview(downsample=heatmap_downsample(places))
        return _SlidePixels(overview=overview, tiles=dict(_read_tiles(slide, places, meta, tiles)))
    except SlideError as error:
        return _SlidePixels(note=f"{error}.")
    finally:
        slide.close()


def _read_tiles(
    slide: Slide, places: TileLayout, meta: BagMeta, tiles: Sequence[int]
) -> Iterator[tuple[int, RgbArray]]:
    """Pixels of tiles as they were embedded; those that cannot be decoded are left out."""
    grid = grid_from_layout(places, meta)
    for index in tiles:
        try:
            yield index, read_tile(slide, grid, index)
        except TileError:
            continue


def _require_same_size(slide: Slide, meta: BagMeta) -> None:
    found = (slide.levels[0].width_px, slide.levels[0].height_px)
    expected = (meta.width_px0, meta.height_px0)
    if all(expected) and found != expected:
        raise SlideError(
            slide.path,
            actual=f"{found[0]:,} × {found[1]:,} px",
            expected=f"{expected[0]:,} × {expected[1]:,} px, as its bag says",
            hint="Name the slides that the bags were made from with --slides",
        )


def _maps(explanation: Explanation, slide: SlideAttention, classes: Sequence[str]) -> list[_Map]:
    """Ways of colouring a slide; all slides of a patient have the same scales."""
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
    signed_contribution = slide.signed_contribution(leading)
    if signed_contribution is not None:
        parts = [each.signed_contribution(leading) for each in explanation.slides]
        most = max(float(np.abs(part).max()) for part in parts if part is not None)
        name = printable(classes[leading])
        words = f"−{most:.2g} (against {name}) to +{most:.2g} (for {name})"
        scale = ColorScale(palette="cividis", low=-most, high=most, words=words)
        maps.append(
            _Map(
                key="contribution",
                label=f"contribution to {name}",
                values=signed_contribution,
                scale=scale,
            )
        )
    return maps


def _draw(
    maps: Sequence[_Map], places: TileLayout, overview: RgbArray | None, slide: SlideAttention
) -> Iterator[MapView]:
    name = slide.meta.slide_id
    of_tiles = pluralize(len(slide.attention), "tiles")
    facts = [of_tiles, f"{100 * slide.share:.1f} % of the patient's attention"]
    x_px0, y_px0 = slide.coords_px0[slide.most(1)[0]].tolist()
    for each in maps:
        image = draw_heatmap(
            places, each.values, scale=each.scale, overview=overview, title=name, facts=facts
        )
        alt = (
            f"Slide {name}, colours show {each.label}. The most attended of {of_tiles} is "
            f"at x {x_px0:,}, y {y_px0:,}."
        )
        yield MapView(
            key=each.key, label=each.label,
            picture=embed_image(image, alt=alt, max_px=_MAP_PX, quality=_MAP_QUALITY),
        )  # fmt: skip
    if overview is not None:
        image = draw_slide(places, overview, title=name, facts=facts)
        yield MapView(
            key="slide", label="slide only",
            picture=embed_image(
                image, alt=f"Slide {name} without colours", max_px=_MAP_PX, quality=_MAP_QUALITY
            ),
        )  # fmt: skip


def _tile_view(index: int, tissue: _SlidePixels, slide: SlideAttention) -> TileView:
    pixels = tissue.tiles.get(index)
    if pixels is None:
        return TileView(index=index, picture=None)
    x_px0, y_px0 = slide.coords_px0[index].tolist()
    alt = f"Tile at x {x_px0:,}, y {y_px0:,} of slide {slide.meta.slide_id}"
    return TileView(
        index=index, picture=embed_image(Image.fromarray(pixels), alt=alt, max_px=_TILE_PX)
    )
