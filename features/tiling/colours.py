"""Colours of a slide that no scanner makes of a stained section: too dark, or exchanged."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from features.errors import MilError
from features.slides.base import RgbArray, Slide
from features.slides.resampling import mean_cells, overview_level
from features.tiling.tissue import TissueMask, TissueSettings, mask_downsample, segment_tissue

__all__ = ["colour_warnings", "inspect_colours"]

_LEAST_LIGHT = 112
"""Brightest channel of glass that is too dark: scanners expose it to 200 and more."""
_FILL = 254
_LIKE_GLASS, _LEAST_GLASS = 16, 0.01
"""Grey levels up to which a pixel is glass, and the share of a picture that is some."""
_BLACK = 32
_MOST_BLACK = 0.5
_LEAST_DENSITY, _MOST_SAMPLES = 0.25, 100_000
_LEAST_SAMPLES = 200
_PALE = 0.2
"""Share of the tissue, by density, that is pale."""
_VIOLET, _BLUE = 0.05, 0.2
"""Optical density of red less that of blue over the sum: eosin has -0.25, haematoxylin 0.2."""
_LEAST_GREEN = 0.45
"""Share of green in the density: eosin has 0.5, haematoxylin alone and other blue stains 0.4."""
_REDDER = -0.3
"""Correlation of that difference with the density, which nuclei make positive."""
_N_AREAS_PER_SIDE, _AREA_PX, _MOST_CELL_PX = 8, 256, 16
_MAX_WHOLE_PX = 1 << 24


def colour_warnings(overview: RgbArray, tissue: TissueMask) -> tuple[str, ...]:
    """Return warnings of colours that an export may have spoilt, a sentence each; mostly none.

    ``overview``, shape (height, width, 3), uint8, is the picture of which ``tissue`` is the mask.
    Looked at are glass that is too dark, a picture that is black where glass should be, and tissue
    in which pale parts are violet and dark ones redder: haematoxylin and eosin make the reverse.
    """
    pixels = _sample(overview.reshape(-1, 3))
    brightest = pixels.max(axis=1)
    seen = brightest[pixels.min(axis=1) < _FILL]
    light = min(max(tissue.background_rgb), np.quantile(seen, 0.995) if len(seen) else _FILL)
    if light < _LEAST_LIGHT:
        text = (
            f"its brightest parts reach only {light:.0f} of 255: it is read too dark, as after an "
            "export of fewer bits. Export it again with glass of 200 or more."
        )
        return (text,)
    share = float((brightest <= _BLACK).mean())
    near = np.abs(pixels.astype(int) - tissue.background_rgb).max(axis=1) < _LIKE_GLASS
    has_glass = near.mean() > _LEAST_GLASS
    if share > _MOST_BLACK and not has_glass:
        text = (
            f"{share:.0%} of it is black and none of it glass, as in fluorescence or an inverted "
            "picture. Look at 'mil preview'."
        )
        return (text,)
    darkest = pixels.min(axis=1)
    lightest = pixels[darkest >= np.quantile(darkest, 1 - _LEAST_GLASS)]
    glass = tissue.background_rgb if has_glass else np.median(lightest, axis=0)
    stained = _sample(overview[tissue.mask])  # however little it is
    if _is_exchanged(stained[stained.max(axis=1) > _BLACK], glass):
        text = (
            "red and blue may be exchanged: its pale tissue is violet and its dark tissue redder, "
            "the reverse of haematoxylin and eosin. Look at 'mil preview', and export it again "
            "as RGB unless it has another stain."
        )
        return (text,)
    return ()


def inspect_colours(slide: Slide, *, mpp: float) -> tuple[str, ...]:
    """Return the warnings of :func:`colour_warnings` from parts of a slide, at ``mpp`` µm per px.

    They are read from 64 areas, or from the whole slide where a level is small. What cannot be read
    is passed over.
    """
    settings = TissueSettings()
    downsample = mask_downsample(mpp, settings)
    size = slide.levels[overview_level(slide.levels, downsample)]
    with suppress(MilError):  # whoever embeds the slide says what cannot be read
        if size.width_px * size.height_px <= _MAX_WHOLE_PX:
            overview = slide.overview(downsample=downsample)
        else:
            overview, downsample = _sampled_areas(slide, downsample)
        mask = segment_tissue(overview, downsample=downsample, mpp=mpp, settings=settings)
        return colour_warnings(overview, mask)
    return ()


def _sample(pixels: RgbArray) -> RgbArray:
    return pixels[:: max(1, -(-len(pixels) // _MOST_SAMPLES))]


def _sampled_areas(slide: Slide, downsample: int) -> tuple[RgbArray, int]:
    """Areas of a slide one below the other, shape (height, width, 3), and their downsample."""
    level = overview_level(slide.levels, downsample)
    size = slide.levels[level]
    cell_px = min(_MOST_CELL_PX, max(1, round(downsample / size.downsample)))
    areas = []
    for number in range(_N_AREAS_PER_SIDE**2):
        row, column = divmod(number, _N_AREAS_PER_SIDE)
        left, top = (
            math.floor((place + 0.5) / _N_AREAS_PER_SIDE * side) - _AREA_PX // 2
            for place, side in ((column, size.width_px), (row, size.height_px))
        )
        with suppress(MilError):
            area = slide.read(
                level=level, x_px=left, y_px=top, width_px=_AREA_PX, height_px=_AREA_PX
            )
            areas.append(mean_cells(area, cell_px))
    if not areas:
        raise MilError(slide.path, actual="no area of it can be read")
    return np.concatenate(areas), round(cell_px * size.downsample)


def _is_exchanged(pixels: RgbArray, glass_rgb: npt.ArrayLike) -> bool:
    """Whether tissue, shape (n, 3), uint8, has the hues of haematoxylin and eosin, but as BGR."""
    light = np.maximum(np.asarray(glass_rgb, np.float64), 1)
    density = (-np.log(np.maximum(pixels, 1) / light)).clip(0, None)
    total = density.sum(axis=1)
    density, total = density[total > _LEAST_DENSITY], total[total > _LEAST_DENSITY]
    if len(total) < _LEAST_SAMPLES or not np.ptp(total):
        return False
    bluer = (density[:, 0] - density[:, 2]) / total
    is_pale = total <= np.quantile(total, _PALE)
    pale_green = float(np.median(density[is_pale, 1] / total[is_pale]))
    if np.median(bluer[is_pale]) < _VIOLET or pale_green < _LEAST_GREEN:
        return False
    mean = float((density[:, 0] - density[:, 2]).sum() / total.sum())
    return mean > _BLUE or (mean > 0 and float(np.corrcoef(bluer, total)[0, 1]) < _REDDER)
