"""Tissue on painted slides of which the truth is known, on blank ones, and on real pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from features.slides.protocol import RgbArray
from features.tissue import TissueMask, TissueSettings, find_tissue

GLASSES_RGB = [(255, 255, 255), (196, 211, 192), (211, 226, 207), (234, 216, 254), (255, 241, 255)]
LIGHTS = ["even", "tilted", "vignette"]
NOISES = [0.0, 4.0, 12.0]

Bools = npt.NDArray[np.bool_]


def find(overview: RgbArray, settings: TissueSettings | None = None) -> TissueMask:
    return find_tissue(overview, downsample=32, mpp=0.25, settings=settings or TissueSettings())


def iou(one: Bools, other: Bools) -> float:
    return float((one & other).sum() / (one | other).sum())


def paint_truth(rng: np.random.Generator, shape: tuple[int, int] = (400, 520)) -> Bools:
    """Some ragged islands."""
    rows, columns = np.indices(shape)
    height = np.full(shape, -1.0)
    for _ in range(3):
        y, x = rng.uniform(0.25, 0.75, 2) * shape
        long, short = rng.uniform(60, 130), rng.uniform(40, 80)
        height = np.maximum(height, 1 - ((rows - y) / short) ** 2 - ((columns - x) / long) ** 2)
    return height + ndimage.gaussian_filter(rng.normal(size=shape), 8) * 4 > 0


def paint_tissue(rng: np.random.Generator, shape: tuple[int, int], glass: object) -> RgbArray:
    """Colours from pale to deep pink and red as stains leave of the glass's light."""
    tone = ndimage.gaussian_filter(rng.normal(size=shape), 5)
    tone = np.clip(0.5 + tone / tone.std() / 4, 0, 1)[..., None]
    pale, deep = np.array([0.93, 0.74, 0.82]), np.array([0.6, 0.2, 0.35])
    return np.asarray(glass) * (pale + (deep - pale) * tone)


def light_of(kind: str, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Share of the light at each place, 1 at the brightest."""
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    share = {"even": np.ones(shape), "tilted": 0.93 + 0.07 * (x + y) / 2,
             "vignette": 1 - 0.06 * (x**2 + y**2)}[kind]  # fmt: skip
    return share[..., None]


def photograph(scene: object, kind: str, noise: float, rng: np.random.Generator) -> RgbArray:
    picture = np.asarray(scene) * light_of(kind, np.shape(scene)[:2])
    return np.clip(np.rint(picture + rng.normal(0, noise, picture.shape)), 0, 255).astype(np.uint8)


def blank(glass: tuple[int, int, int], shape: tuple[int, int] = (300, 400)) -> RgbArray:
    return np.full((*shape, 3), glass, np.uint8)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("glass", GLASSES_RGB)
def test_tissue_is_found_on_every_glass_in_every_light(
    glass: tuple[int, int, int], light: str, noise: float
) -> None:
    rng = np.random.default_rng(sum(glass) + int(noise))
    truth = paint_truth(rng)
    scene = np.where(truth[..., None], paint_tissue(rng, truth.shape, glass), glass)
    found = find(photograph(scene, light, noise, rng))
    assert iou(found.mask, truth) >= 0.95
    assert np.abs(np.subtract(found.background_rgb, glass)).max() <= 22  # as bright as anywhere
    assert found.threshold >= TissueSettings().floor_distance


@pytest.mark.parametrize("noise", [*NOISES, 25.0])
@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("glass", GLASSES_RGB)
def test_a_blank_slide_has_no_tissue(glass: tuple[int, int, int], light: str, noise: float) -> None:
    rng = np.random.default_rng(3)
    found = find(photograph(blank(glass), light, noise, rng))
    assert not found.mask.any()
