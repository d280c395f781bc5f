from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from features.slides.reader import open_slide
from features.tiling import colours
from features.tiling.colours import colour_warnings, inspect_colours
from features.tiling.tissue import TissueSettings, segment_tissue

HAEMATOXYLIN, EOSIN = (0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)
"""Optical densities of red, green and blue, of the method of Macenko et al. (2009)."""
PURE_HAEMATOXYLIN, DAB = (0.65, 0.70, 0.29), (0.27, 0.57, 0.78)
"""Of Ruifrok and Johnston (2001)."""
WHITE = (243, 241, 244)


def stained(
    pale: tuple[float, ...], dark: tuple[float, ...], glass: tuple[int, ...] = WHITE
) -> np.ndarray:
    """A section in one stain with groups of cells in another, shape (256, 256, 3), uint8."""
    rng = np.random.default_rng(0)
    tone = ndimage.gaussian_filter(rng.normal(size=(256, 256)), 3)
    tone /= tone.std()
    is_tissue = np.zeros((256, 256, 1))
    is_tissue[50:200, 40:220] = 1
    cells = np.clip(tone - 0.8, 0, 1)[..., None]
    density = (0.45 + 0.1 * tone[..., None]) * np.array(pale) + 1.5 * cells * np.array(dark)
    pixels = np.array(glass) * np.exp(-density.clip(0) * is_tissue) + rng.normal(size=(256, 256, 1))
    return pixels.clip(0, 255).astype(np.uint8)


def warned(pixels: np.ndarray) -> str:
    mask = segment_tissue(pixels, downsample=16, mpp=0.5, settings=TissueSettings())
    return " ".join(colour_warnings(pixels, mask))


HE = stained(EOSIN, HAEMATOXYLIN)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (HE // 4, "reach only 6"), (HE >> 4, "reach only 15"), (HE >> 2, "read too dark"),
        (HE[..., ::-1], "red and blue may be exchanged"),
        (stained(EOSIN, HAEMATOXYLIN, (240, 235, 205))[..., ::-1], "may be exchanged"),
        (np.pad(HE // 4, ((40, 40), (40, 40), (0, 0)), constant_values=255), "reach only 6"),
        (255 - np.pad(HE, ((99, 99), (99, 99), (0, 0)), constant_values=255), "is black and none"),
    ],
    ids=["glass of 60", "12 bits", "14 bits", "exchanged", "yellow glass, exchanged",
         "dark in white fill", "inverted"],
)  # fmt: skip
def test_dark_and_exchanged_colours_are_warned_of(pixels: np.ndarray, message: str) -> None:
    assert message in warned(np.ascontiguousarray(pixels))


def test_little_tissue_is_looked_at_on_a_large_slide() -> None:
    for part, message in ((HE, ""), (HE[..., ::-1], "red and blue may be exchanged")):
        pixels = np.tile(np.array(WHITE, np.uint8), (2500, 2500, 1))
        pixels[1000:1060, 1200:1260] = part[100:160, 100:160]
        assert message in warned(pixels)
        assert bool(warned(pixels)) == bool(message)


@pytest.mark.parametrize("glass", [WHITE, (255, 255, 255), (240, 235, 205), (205, 225, 240),
                                   (245, 215, 225), (160, 158, 150)])  # fmt: skip
@pytest.mark.parametrize(
    ("pale", "dark"),
    [(EOSIN, HAEMATOXYLIN), (HAEMATOXYLIN, DAB), (PURE_HAEMATOXYLIN, DAB),
     (PURE_HAEMATOXYLIN, PURE_HAEMATOXYLIN), (DAB, HAEMATOXYLIN), (EOSIN, EOSIN),
     (PURE_HAEMATOXYLIN, EOSIN)],
    ids=["HE", "few DAB", "few DAB on blue", "haematoxylin", "DAB", "eosin", "red chromogen"],
)  # fmt: skip
def test_other_stains_and_tinted_glass_are_not_warned_of(
    pale: tuple[float, ...], dark: tuple[float, ...], glass: tuple[int, ...]
) -> None:
    assert warned(stained(pale, dark, glass)) == ""


@pytest.mark.parametrize("most_px", [1 << 24, 0], ids=["whole", "areas"])
def test_a_slide_is_looked_at_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_px: int
) -> None:
    monkeypatch.setattr(colours, "_MAX_WHOLE_PX", most_px)
    for name, pixels, message in (("a", HE, ""), ("b", HE // 4, "read too dark"),
                                  ("c", HE[..., ::-1], "may be exchanged")):  # fmt: skip
        path = tmp_path / f"{name}.tif"
        whole = np.repeat(np.repeat(pixels, 8, 0), 8, 1)
        tifffile.imwrite(path, whole, photometric="rgb", tile=(256, 256), metadata=None)
        with closing(open_slide(path)) as slide:
            found = " ".join(inspect_colours(slide, mpp=1.0))
        assert (message in found) == bool(found or not message)
        assert bool(found) == bool(message)


@pytest.mark.skipif("MIL_DATA" not in os.environ, reason="MIL_DATA is not set")
def test_real_pictures_are_not_warned_of_and_a_real_slide_exchanged_is() -> None:
    folder = Path(os.environ["MIL_DATA"])
    for path in sorted((folder / "images").glob("*/*.*g")):
        pixels = np.asarray(Image.open(path).convert("RGB").reduce(4))
        if min(pixels.shape[:2]) >= 16:
            assert warned(pixels) == "", path.name
    with closing(open_slide(folder / "slides/cmu-1-small-region.svs")) as slide:
        overview = slide.overview(downsample=16)
    assert warned(overview) == ""
    assert "may be exchanged" in warned(np.ascontiguousarray(overview[..., ::-1]))
