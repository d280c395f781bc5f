"""Thumbnail of a slide with its tissue, its tiles, and the rules that reject tiles.

Colours are those of Okabe and Ito (2008), distinct for any common colour vision; each has its own
hatch, so that the image also reads in grey.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from features.slides.base import RgbArray
from features.slides.resampling import overview_level
from features.tiling.artifacts import RULES
from features.tiling.slide_tiles import SlideTiles
from features.visualization.caption import add_caption, scale_bar

__all__ = ["draw_tiling", "legend_patch", "sort_rules"]

Bools = npt.NDArray[np.bool_]
Rgb = tuple[int, int, int]

_LONG_SIDE_PX = 1600
_MAX_ENLARGEMENT = 3.0  # beyond, a coarse overview only gets softer
_CHEAP_PX = 16_000_000  # levels of up to so many pixels are read again for a finer picture
_MIN_WIDTH_PX = 760  # so that the legend has room below a narrow slide

_TISSUE_RGB: Rgb = (0, 0, 0)
_KEPT_RGB: Rgb = (0, 158, 115)
_RULES_RGB: tuple[Rgb, ...] = (
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
    (230, 159, 0),
    (0, 114, 178),
)
_OTHER_RGB: Rgb = (204, 121, 167)
_HATCH_PX = 8
_LARGE_TILE_PX = 40
_SOURCES = {
    "file": "from the file",
    "derived": "from the magnification",
    "given": "given",
    "assumed": "assumed",
}

_SYMBOL_PX = (34, 20)


def draw_tiling(
    slide_tiles: SlideTiles,
    *,
    rejected: Mapping[int, str],
    failed: Collection[int],
    tiles_read: bool,
) -> tuple[Image.Image, tuple[int, int]]:
    """Draw a slide with tissue outline, tile grid, rejected tiles, scale bar, legend and caption.

    ``rejected`` are names of rules by index into the grid, ``failed`` indices of tiles that could
    not be decoded; where ``tiles_read`` is False, the legend says so. Returns the RGB image, shape
    (height, width, 3), and width and height of the slide's part of it, px, at its upper left.
    """
    pixels, scale = _read_base_image(slide_tiles)
    height, width = pixels.shape[:2]
    boxes = _boxes(slide_tiles, scale, width=width, height=height)
    kept = [i for i in range(len(boxes)) if i not in rejected and i not in failed]
    _blend(pixels, _edge_mask(boxes[kept], pixels), _KEPT_RGB, opacity=0.9)
    for name in sorted(set(rejected.values())):
        some = boxes[[index for index, rule in rejected.items() if rule == name]]
        _hatch(pixels, _fill_mask(some, pixels), name)
        _blend(pixels, _edge_mask(some, pixels), _rule_rgb(name), opacity=1.0)
    outline = _outline_mask(slide_tiles.tissue.mask, width=width, height=height)
    _blend(pixels, outline, _TISSUE_RGB, opacity=1.0)
    slide = Image.fromarray(pixels)
    _cross(slide, boxes[sorted(failed)])
    image = add_caption(
        slide,
        slide_tiles.slide_id,
        facts=_caption_facts(slide_tiles),
        legend=[
            scale_bar(
                slide_tiles.resolution.mpp_x / scale,
                max_px=width // 4,
                assumed=slide_tiles.resolution.source == "assumed",
            ),
            *_legend(slide_tiles, Counter(rejected.values()), len(failed), tiles_read=tiles_read),
        ],
        min_width_px=_MIN_WIDTH_PX,
    )
    return image, (width, height)


def legend_patch(name: str) -> Image.Image:
    """Return the symbol of ``tissue``, ``kept``, ``failed`` or a rule, shape (20, 34, 3), px."""
    pixels = np.full((_SYMBOL_PX[1], _SYMBOL_PX[0], 3), 255, np.uint8)
    box = np.array([[0, 0, _SYMBOL_PX[0] - 1, _SYMBOL_PX[1] - 1]])
    if name == "tissue":
        inner = np.zeros(pixels.shape[:2], bool)
        inner[2:-2, 2:-2] = True
        _blend(pixels, ~inner, _TISSUE_RGB, opacity=1.0)
    elif name == "kept":
        _blend(pixels, _edge_mask(box, pixels), _KEPT_RGB, opacity=1.0)
    elif name != "failed":
        _hatch(pixels, _fill_mask(box, pixels), name)
        _blend(pixels, _edge_mask(box, pixels), _rule_rgb(name), opacity=1.0)
    image = Image.fromarray(pixels)
    if name == "failed":
        _cross(image, box)
    return image


def sort_rules(names: Collection[str]) -> list[str]:
    """Return names of rules in the order of application, others after them."""
    return sorted(names, key=lambda name: (_rule_index(name), name))


def _read_base_image(slide_tiles: SlideTiles) -> tuple[RgbArray, float]:
    """Image of the slide to draw on, and its px per level-0 px.

    The overview for tissue segmentation is coarse on a small slide; a finer one is read where
    that costs little.
    """
    first = slide_tiles.slide.levels[0]
    long_px0 = max(first.width_px, first.height_px)
    target = max(1, -(-long_px0 // _LONG_SIDE_PX))
    overview, downsample = slide_tiles.overview, slide_tiles.tissue.downsample
    if target < downsample and _level_px(slide_tiles, target) <= _CHEAP_PX:
        overview, downsample = slide_tiles.slide.overview(downsample=target), target
    image = Image.fromarray(overview)
    # A scale beyond level 0 would add no detail.
    scale = min(_LONG_SIDE_PX / max(image.size), _MAX_ENLARGEMENT, float(downsample))
    if scale != 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.array(image), image.width / overview.shape[1] / downsample


def _level_px(slide_tiles: SlideTiles, downsample: int) -> int:
    """Pixels of the level that an overview of that downsample is made from."""
    levels = slide_tiles.slide.levels
    level = levels[overview_level(levels, downsample)]
    return level.width_px * level.height_px


def _caption_facts(slide_tiles: SlideTiles) -> list[str]:
    """Size, resolution and reader as short texts."""
    first, resolution = slide_tiles.slide.levels[0], slide_tiles.resolution
    width_mm = first.width_px * resolution.mpp_x / 1000
    height_mm = first.height_px * resolution.mpp_y / 1000
    mpp = f"{resolution.mpp_x:.4g}"
    if f"{resolution.mpp_y:.4g}" != mpp:
        mpp += f" × {resolution.mpp_y:.4g}"
    return [
        f"{first.width_px:,} × {first.height_px:,} px",
        f"{width_mm:.3g} × {height_mm:.3g} mm",
        f"{mpp} µm/px ({_SOURCES[resolution.source]})",
        f"read by {slide_tiles.slide.reader}",
    ]


def _legend(
    slide_tiles: SlideTiles, counts: Counter[str], n_failed: int, *, tiles_read: bool
) -> list[tuple[Image.Image, str]]:
    n_tiles = slide_tiles.n_tiles
    n_kept = n_tiles - counts.total() - n_failed
    n_all = slide_tiles.n_tissue_tiles
    sample = f" of {n_all:,} found" if n_all > n_tiles else ""
    entries = [
        (legend_patch("tissue"), f"tissue {100 * slide_tiles.tissue.mask.mean():.1f} %"),
        (
            legend_patch("kept"),
            f"{n_kept:,} tiles {'kept' if tiles_read else 'in the grid, not read'}{sample}",
        ),
        *((legend_patch(name), f"{counts[name]:,} {name}") for name in sort_rules(counts)),
    ]
    if n_failed:
        entries.append((legend_patch("failed"), f"{n_failed:,} not decoded"))
    return entries


def _boxes(
    slide_tiles: SlideTiles, scale: float, *, width: int, height: int
) -> npt.NDArray[np.int64]:
    """Left, top, right and bottom of the tiles in the image, px, shape (n_tiles, 4)."""
    grid = slide_tiles.grid
    size_px0 = (grid.tile_width_px0, grid.tile_height_px0)
    corners = np.concatenate([grid.coords_px0, grid.coords_px0 + size_px0], axis=1) * scale
    last = (width - 1, height - 1)
    return np.clip(np.rint(corners), 0, (*last, *last)).astype(np.int64)


def _edge_mask(boxes: npt.NDArray[np.int64], pixels: RgbArray) -> Bools:
    """Borders of boxes, shared by adjacent ones and wider on large tiles, (height, width) in px."""
    mask = np.zeros(pixels.shape[:2], bool)
    for left, top, right, bottom in boxes.tolist():
        mask[top, left : right + 1] = mask[bottom, left : right + 1] = True
        mask[top : bottom + 1, left] = mask[top : bottom + 1, right] = True
    is_large = len(boxes) and (boxes[:, 2] - boxes[:, 0]).max() >= _LARGE_TILE_PX
    return ndimage.binary_dilation(mask, np.ones((2, 2), bool)) if is_large else mask


def _fill_mask(boxes: npt.NDArray[np.int64], pixels: RgbArray) -> Bools:
    mask = np.zeros(pixels.shape[:2], bool)
    for left, top, right, bottom in boxes.tolist():
        mask[top : bottom + 1, left : right + 1] = True
    return mask


def _outline_mask(mask: Bools, *, width: int, height: int) -> Bools:
    """Border of the tissue mask, 2 px wide, scaled to the image."""
    large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return np.asarray(large & ~ndimage.binary_erosion(large, iterations=2, border_value=1))


def _blend(pixels: RgbArray, mask: Bools, rgb: Rgb, *, opacity: float) -> None:
    pixels[mask] = np.rint(pixels[mask] * (1 - opacity) + np.array(rgb) * opacity)


def _hatch(pixels: RgbArray, mask: Bools, name: str) -> None:
    """Tint an area translucently, and hatch it in the pattern of the rule."""
    _blend(pixels, mask, _rule_rgb(name), opacity=0.3)
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    falling, rising = (x - y) % _HATCH_PX < 2, (x + y) % _HATCH_PX < 2
    patterns = {
        0: y % _HATCH_PX < 2,
        1: rising,
        2: x % _HATCH_PX < 2,
        3: falling | rising,
        4: (x % 6 < 3) & (y % 6 < 3),
    }
    pattern = patterns.get(_rule_index(name), falling)
    _blend(pixels, mask & pattern, _rule_rgb(name), opacity=0.9)


def _rule_index(name: str) -> int:
    return list(RULES).index(name) if name in RULES else len(RULES)


def _rule_rgb(name: str) -> Rgb:
    index = _rule_index(name)
    return _RULES_RGB[index] if index < len(_RULES_RGB) else _OTHER_RGB


def _cross(image: Image.Image, boxes: npt.NDArray[np.int64]) -> None:
    """Cross boxes out, black with a white rim, to be visible on any background."""
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes.tolist():
        for colour, width in (("white", 4), ("black", 2)):
            draw.line((left, top, right, bottom), fill=colour, width=width)
            draw.line((left, bottom, right, top), fill=colour, width=width)
            draw.rectangle((left, top, right, bottom), outline=colour, width=width // 2)
