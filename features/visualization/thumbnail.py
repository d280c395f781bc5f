"""A picture of one slide: its tissue, its tiles, and why tiles are left out.

Colours are those of Okabe and Ito (2008), which people with any common colour vision tell apart;
a hatch of its own goes with each, so that the picture also reads in grey.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from features.slides.base import RgbArray
from features.slides.reader import slide_id_of
from features.slides.resampling import overview_level
from features.tiling.artifacts import RULES
from features.tiling.slide_tiles import SlideTiles
from features.visualization.caption import draw_caption, scale_bar

__all__ = ["draw_tiling", "legend_patch", "sort_rules"]

Bools = npt.NDArray[np.bool_]
Rgb = tuple[int, int, int]

_LONG_SIDE_PX = 1600
_MOST_ENLARGED = 3.0  # beyond, a coarse overview only gets softer
_CHEAP_PX = 16_000_000  # levels of up to so many pixels are read again for a finer picture
_LEAST_WIDTH_PX = 760  # so that the legend has room beside a narrow slide

_TISSUE: Rgb = (0, 0, 0)
_KEPT: Rgb = (0, 158, 115)
_COLOURS: tuple[Rgb, ...] = (
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
    (230, 159, 0),
    (0, 114, 178),
)
_OTHER: Rgb = (204, 121, 167)
_HATCH_PX = 8
_LARGE_TILE_PX = 40
_SOURCES = {"file": "from the file", "given": "given", "assumed": "assumed"}

_SWATCH_PX = (34, 20)


def draw_tiling(
    survey: SlideTiles,
    *,
    left_out: Mapping[int, str],
    failed: Collection[int],
    tiles_read: bool,
) -> tuple[Image.Image, tuple[int, int]]:
    """Picture of a slide with outline, grid, left-out tiles, scale bar, legend and caption.

    Parameters
    ----------
    survey
        The slide, open, and its tiles.
    left_out
        Rule that spoke against a tile, by its index into the grid.
    failed
        Indices into the grid of tiles that could not be decoded.
    tiles_read
        False where tiles were laid, but neither read nor judged; the legend then says so.

    Returns
    -------
    tuple
        The picture, RGB; width and height of the slide's part of it, px, which is at its upper
        left.
    """
    pixels, scale = _ground(survey)
    height, width = pixels.shape[:2]
    boxes = _boxes(survey, scale, width=width, height=height)
    kept = [i for i in range(len(boxes)) if i not in left_out and i not in failed]
    _mark(pixels, _edges(boxes[kept], pixels), _KEPT, share=0.9)
    for name in sorted(set(left_out.values())):
        some = boxes[[index for index, rule in left_out.items() if rule == name]]
        _hatch(pixels, _filled(some, pixels), name)
        _mark(pixels, _edges(some, pixels), _colour_of(name), share=1.0)
    _mark(pixels, _outline(survey.tissue.mask, width=width, height=height), _TISSUE, share=1.0)
    slide = Image.fromarray(pixels)
    _cross(slide, boxes[sorted(failed)])
    caption = draw_caption(
        slide_id_of(survey.slide.path),
        facts=_facts(survey),
        legend=[
            scale_bar(
                survey.resolution.mpp_x / scale,
                most_px=width // 4,
                assumed=survey.resolution.source == "assumed",
            ),
            *_legend(survey, Counter(left_out.values()), len(failed), tiles_read=tiles_read),
        ],
        width_px=max(width, _LEAST_WIDTH_PX),
    )
    picture = Image.new("RGB", (caption.width, height + caption.height), "white")
    picture.paste(slide, (0, 0))
    picture.paste(caption, (0, height))
    return picture, (width, height)


def legend_patch(name: str) -> Image.Image:
    """How ``tissue``, ``kept``, ``failed`` or the tiles of a rule look in the picture, small."""
    pixels = np.full((_SWATCH_PX[1], _SWATCH_PX[0], 3), 255, np.uint8)
    box = np.array([[0, 0, _SWATCH_PX[0] - 1, _SWATCH_PX[1] - 1]])
    if name == "tissue":
        inner = np.zeros(pixels.shape[:2], bool)
        inner[2:-2, 2:-2] = True
        _mark(pixels, ~inner, _TISSUE, share=1.0)
    elif name == "kept":
        _mark(pixels, _edges(box, pixels), _KEPT, share=1.0)
    elif name != "failed":
        _hatch(pixels, _filled(box, pixels), name)
        _mark(pixels, _edges(box, pixels), _colour_of(name), share=1.0)
    image = Image.fromarray(pixels)
    if name == "failed":
        _cross(image, box)
    return image


def sort_rules(names: Collection[str]) -> list[str]:
    """Names of rules in the order in which they are asked, others after them."""
    return sorted(names, key=lambda name: (_place_of(name), name))


def _ground(survey: SlideTiles) -> tuple[RgbArray, float]:
    """The slide's picture to draw on, and its px per level-0 px.

    The overview of the survey was made for finding tissue and is small on a small slide; where a
    level is there that costs little to read, a finer one is taken.
    """
    first = survey.slide.levels[0]
    long_px0 = max(first.width_px, first.height_px)
    wanted = max(1, -(-long_px0 // _LONG_SIDE_PX))
    overview, downsample = survey.overview, survey.tissue.downsample
    if wanted < downsample and _level_px(survey, wanted) <= _CHEAP_PX:
        overview, downsample = survey.slide.overview(downsample=wanted), wanted
    image = Image.fromarray(overview)
    # Never finer than level 0: there is nothing more to see.
    scale = min(_LONG_SIDE_PX / max(image.size), _MOST_ENLARGED, float(downsample))
    if scale != 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.array(image), image.width / overview.shape[1] / downsample


def _level_px(survey: SlideTiles, downsample: int) -> int:
    """Pixels of the level that an overview of that downsample is made from."""
    levels = survey.slide.levels
    level = levels[overview_level(levels, downsample)]
    return level.width_px * level.height_px


def _facts(survey: SlideTiles) -> list[str]:
    """Size, resolution and reader in words."""
    first, resolution = survey.slide.levels[0], survey.resolution
    width_mm = first.width_px * resolution.mpp_x / 1000
    height_mm = first.height_px * resolution.mpp_y / 1000
    mpp = f"{resolution.mpp_x:.4g}"
    if f"{resolution.mpp_y:.4g}" != mpp:
        mpp += f" × {resolution.mpp_y:.4g}"
    return [
        f"{first.width_px:,} × {first.height_px:,} px",
        f"{width_mm:.3g} × {height_mm:.3g} mm",
        f"{mpp} µm/px ({_SOURCES[resolution.source]})",
        f"read by {survey.slide.reader}",
    ]


def _legend(
    survey: SlideTiles, counts: Counter[str], n_failed: int, *, tiles_read: bool
) -> list[tuple[Image.Image, str]]:
    n_tiles = survey.n_tiles
    n_kept = n_tiles - counts.total() - n_failed
    drawn = f" of {survey.n_found:,} found" if survey.n_found > n_tiles else ""
    entries = [
        (legend_patch("tissue"), f"tissue {100 * survey.tissue.mask.mean():.1f} %"),
        (
            legend_patch("kept"),
            f"{n_kept:,} tiles {'kept' if tiles_read else 'laid, not read'}{drawn}",
        ),
        *((legend_patch(name), f"{counts[name]:,} {name}") for name in sort_rules(counts)),
    ]
    if n_failed:
        entries.append((legend_patch("failed"), f"{n_failed:,} not decoded"))
    return entries


def _boxes(survey: SlideTiles, scale: float, *, width: int, height: int) -> npt.NDArray[np.int64]:
    """Tiles in the picture: left, top, right, bottom (the neighbour's first px); (n_tiles, 4)."""
    grid = survey.grid
    span = (grid.span_x_px0, grid.span_y_px0)
    corners = np.concatenate([grid.coords_px0, grid.coords_px0 + span], axis=1) * scale
    last = (width - 1, height - 1)
    return np.clip(np.rint(corners), 0, (*last, *last)).astype(np.int64)


def _edges(boxes: npt.NDArray[np.int64], pixels: RgbArray) -> Bools:
    """Borders of boxes, shared by neighbours and wider on large tiles; shape (height, width)."""
    where = np.zeros(pixels.shape[:2], bool)
    for left, top, right, bottom in boxes.tolist():
        where[top, left : right + 1] = where[bottom, left : right + 1] = True
        where[top : bottom + 1, left] = where[top : bottom + 1, right] = True
    is_large = len(boxes) and (boxes[:, 2] - boxes[:, 0]).max() >= _LARGE_TILE_PX
    return ndimage.binary_dilation(where, np.ones((2, 2), bool)) if is_large else where


def _filled(boxes: npt.NDArray[np.int64], pixels: RgbArray) -> Bools:
    where = np.zeros(pixels.shape[:2], bool)
    for left, top, right, bottom in boxes.tolist():
        where[top : bottom + 1, left : right + 1] = True
    return where


def _outline(mask: Bools, *, width: int, height: int) -> Bools:
    """Border of the mask, 2 px wide, in the picture."""
    large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return np.asarray(large & ~ndimage.binary_erosion(large, iterations=2, border_value=1))


def _mark(pixels: RgbArray, where: Bools, rgb: Rgb, *, share: float) -> None:
    pixels[where] = np.rint(pixels[where] * (1 - share) + np.array(rgb) * share)


def _hatch(pixels: RgbArray, where: Bools, name: str) -> None:
    """Tint an area so that the slide shines through, and hatch it in the pattern of the rule."""
    _mark(pixels, where, _colour_of(name), share=0.3)
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    falling, rising = (x - y) % _HATCH_PX < 2, (x + y) % _HATCH_PX < 2
    patterns = {
        0: y % _HATCH_PX < 2,
        1: rising,
        2: x % _HATCH_PX < 2,
        3: falling | rising,
        4: (x % 6 < 3) & (y % 6 < 3),
    }
    pattern = patterns.get(_place_of(name), falling)
    _mark(pixels, where & pattern, _colour_of(name), share=0.9)


def _place_of(name: str) -> int:
    return list(RULES).index(name) if name in RULES else len(RULES)


def _colour_of(name: str) -> Rgb:
    place = _place_of(name)
    return _COLOURS[place] if place < len(_COLOURS) else _OTHER


def _cross(image: Image.Image, boxes: npt.NDArray[np.int64]) -> None:
    """Cross boxes out: black on white, to be seen on any ground."""
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes.tolist():
        for colour, width in (("white", 4), ("black", 2)):
            draw.line((left, top, right, bottom), fill=colour, width=width)
            draw.line((left, bottom, right, top), fill=colour, width=width)
            draw.rectangle((left, top, right, bottom), outline=colour, width=width // 2)
