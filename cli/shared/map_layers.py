"""Layers over a slide on its explanation page: outlines and colours of tiles, and a scale bar."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_dilation

from features.slides.base import RgbArray
from features.utils.text import pluralize, printable
from features.visualization.caption import round_length_um
from features.visualization.heatmap import (
    ColorScale,
    TileLayout,
    apply_colormap,
    colormap_rgba,
    heatmap_downsample,
    rasterize,
)
from mil.arrays import Bools, Floats
from mil.inference.attention import Explanation, SlideAttention
from mil.reporting.explanation_views import LegendEntry, MapView, ScaleBar
from mil.reporting.figures import EmbeddedImage, embed_image, embed_layer

__all__ = ["draw_base", "draw_layers", "draw_thumbnail", "draw_unlike", "measure_bar"]

_MAP_PX = 1600
_MAP_QUALITY = 88
_THUMBNAIL_PX = 160
_RAMP_PX = 128
_TOP_SHARE = 0.1
_TOP_RGB, _UNLIKE_RGB = (213, 94, 0), (0, 90, 160)
_OUTLINE_PX, _HALO_PX = 3, 2
_GRID_RGB = (226, 229, 233)
_MOST_DOUBLINGS = 3.0
_BAR_SHARE = 0.2


def draw_base(layout: TileLayout, overview: RgbArray | None, *, name: str) -> EmbeddedImage:
    """Return the picture below the layers: the slide, or without it the grid of its tiles.

    ``overview`` has shape (height_px, width_px, 3), uint8.
    """
    if overview is not None:
        return _embed(Image.fromarray(overview), alt=f"Slide {name}")
    raster = rasterize(
        layout, np.ones(len(layout.coords_px0)), downsample=heatmap_downsample(layout)
    )
    pixels = np.full((*raster.shape, 3), 255, np.uint8)
    pixels[np.isfinite(raster)] = _GRID_RGB
    return _embed(Image.fromarray(pixels), alt=f"Grid of the tiles of slide {name}")


def draw_layers(
    explanation: Explanation, slide: SlideAttention, layout: TileLayout, *, classes: Sequence[str]
) -> list[MapView]:
    """Return the layers of a slide; colours mean the same on all slides of a patient."""
    name, n_tiles = slide.meta.slide_id, explanation.n_tiles
    is_top, words = _most_attended(explanation, slide)
    layers = [
        MapView(
            key="top",
            label="outline of the most attended tenth",
            image=_outline(layout, is_top, _TOP_RGB, alt=f"Slide {name}, outlines: {words}"),
            legend=(LegendEntry(colour=_as_hex(_TOP_RGB), words=words),),
        )
    ]
    with np.errstate(divide="ignore"):
        doublings = np.log2(slide.attention * n_tiles)
    largest = max(float(each.attention.max()) for each in explanation.slides) * n_tiles
    layers.append(
        _colours(
            layout, np.where(doublings > 0, doublings, np.nan), key="share", name=name,
            label="colour above an equal share",
            scale=ColorScale(
                palette="viridis", low=0.0, high=_MOST_DOUBLINGS,
                words="1 × to 8 × an equal share of the attention or more; "
                f"the patient's largest is {largest:.1f} ×",
            ),
        )
    )  # fmt: skip
    layers.append(
        _colours(
            layout, slide.percentile, key="percentile", name=name,
            label="all tiles, by percentile",
            scale=ColorScale(
                palette="viridis", low=0.0, high=100.0,
                words="least to most attended tile of the patient, percentile 0 to 100",
            ),
        )
    )  # fmt: skip
    leading = explanation.leading_class
    parts = [each.signed_contribution(leading) for each in explanation.slides]
    most = max((float(np.abs(part).max()) for part in parts if part is not None), default=0.0)
    contribution = slide.signed_contribution(leading)
    if contribution is not None and most > 0:
        shown = printable(classes[leading])
        scale = ColorScale(
            palette="cividis", low=-most, high=most,
            words=f"−{most:.2g} (against {shown}) to +{most:.2g} (for {shown})",
        )  # fmt: skip
        layers.append(
            _colours(
                layout, contribution, key="contribution", name=name, scale=scale,
                label=f"contribution to {shown}",
            )
        )  # fmt: skip
    return layers


def draw_unlike(slide: SlideAttention, layout: TileLayout) -> MapView | None:
    """Return the outlines of tiles unlike training tiles; None without any."""
    if slide.is_unlike is None or not slide.is_unlike.any():
        return None
    n_unlike = int(slide.is_unlike.sum())
    words = f"{pluralize(n_unlike, 'tiles')} unlike the training tiles"
    alt = f"Slide {slide.meta.slide_id}, outlines: {words}"
    return MapView(
        key="unlike",
        label="tiles unlike the training tiles",
        image=_outline(layout, slide.is_unlike, _UNLIKE_RGB, alt=alt),
        legend=(LegendEntry(colour=_as_hex(_UNLIKE_RGB), words=words),),
    )


def draw_thumbnail(
    explanation: Explanation, slide: SlideAttention, layout: TileLayout, overview: RgbArray
) -> EmbeddedImage:
    """Return a small picture of a slide with its most attended tiles outlined.

    ``overview`` has shape (height_px, width_px, 3), uint8.
    """
    is_top, _ = _most_attended(explanation, slide)
    picture = Image.fromarray(overview)
    width = max(1, round(max(picture.size) / _THUMBNAIL_PX))
    rgba = Image.fromarray(_outline_rgba(layout, is_top, _TOP_RGB, width_px=2 * width))
    picture.paste(rgba, mask=rgba)
    return embed_image(picture, alt=f"Slide {slide.meta.slide_id}", max_px=_THUMBNAIL_PX)


def measure_bar(layout: TileLayout) -> ScaleBar | None:
    """Return a scale bar of a round length of about a fifth of the slide's width."""
    width_um = layout.slide_size_px0[0] * layout.mpp_xy[0]
    if not (width_um > 0 and math.isfinite(width_um)):
        return None
    length_um = round_length_um(_BAR_SHARE * width_um)
    words = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    remark = " (assumed)" if layout.mpp_is_assumed else ""
    return ScaleBar(share=length_um / width_um, words=words + remark)


def _most_attended(explanation: Explanation, slide: SlideAttention) -> tuple[Bools, str]:
    """Return which tiles are in the patient's most attended tenth, shape (tiles,), and words.

    Tiles with no more than an equal share are not in it.
    """
    every = np.concatenate([each.attention for each in explanation.slides])
    n_top = math.ceil(_TOP_SHARE * len(every))
    least = max(float(np.sort(every)[-n_top]), (1 + 1e-6) / len(every))
    share = float(every[every >= least].sum())
    n_marked = int((every >= least).sum())
    if not n_marked:
        return slide.attention >= least, "no tile: all have an equal share of the attention"
    words = (
        f"the {n_marked:,} most attended of {pluralize(len(every), 'tiles')}: "
        f"{100 * share:.0f} % of the patient's attention"
    )
    return slide.attention >= least, words


def _colours(
    layout: TileLayout, values: Floats, *, key: str, label: str, name: str, scale: ColorScale
) -> MapView:
    """Return tiles coloured by value, shape (tiles,), NaN for clear."""
    is_shown = np.isfinite(values)
    shown = TileLayout(
        coords_px0=layout.coords_px0[is_shown], tile_size_px0=layout.tile_size_px0,
        slide_size_px0=layout.slide_size_px0, mpp_xy=layout.mpp_xy,
        mpp_is_assumed=layout.mpp_is_assumed,
    )  # fmt: skip
    raster = rasterize(shown, values[is_shown], downsample=heatmap_downsample(layout))
    alt = f"Slide {name}, colours: {label}"
    ramp = apply_colormap(np.linspace(scale.low, scale.high, _RAMP_PX)[None], scale)
    entry = LegendEntry(image=embed_layer(ramp, alt="from low to high"), words=scale.words)
    image = embed_layer(colormap_rgba(raster, scale), alt=alt)
    return MapView(key=key, label=label, image=image, legend=(entry,))


def _outline(
    layout: TileLayout, chosen: Bools, rgb: tuple[int, int, int], *, alt: str
) -> EmbeddedImage:
    return embed_layer(_outline_rgba(layout, chosen, rgb, width_px=_OUTLINE_PX), alt=alt)


def _outline_rgba(
    layout: TileLayout,
    chosen: Bools,
    rgb: tuple[int, int, int],
    *,
    width_px: int,
) -> npt.NDArray[np.uint8]:
    """Return lines around tiles, shape (height_px, width_px, 4), uint8, with a white halo.

    They run outside the tiles, which stay visible.
    """
    raster = rasterize(layout, chosen.astype(np.float64), downsample=heatmap_downsample(layout))
    inside = np.nan_to_num(raster) > 0
    rgba = np.zeros((*inside.shape, 4), np.uint8)
    if inside.any():
        line = binary_dilation(inside, iterations=width_px)
        halo = binary_dilation(line, iterations=max(1, width_px * _HALO_PX // _OUTLINE_PX))
        rgba[halo & ~inside] = (255, 255, 255, 220)
        rgba[line & ~inside] = (*rgb, 255)
    return rgba


def _embed(picture: Image.Image, *, alt: str) -> EmbeddedImage:
    return embed_image(picture, alt=alt, max_px=_MAP_PX, quality=_MAP_QUALITY)


def _as_hex(rgb: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{level:02x}" for level in rgb)
