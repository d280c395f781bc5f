from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from features.embedding.batching import SlideBuffer
from features.errors import MilError, SlideError
from features.tiling.augmentation import AugmentationConfig
from features.tiling.stain import (
    STAIN_NORMS,
    MacenkoNormalizer,
    build_stain_normalizer,
    require_stain_norm,
)
from features.tiling.transforms import TileTransform
from tests.features.embedding.test_batching import make_buffer

GLASS = (240, 236, 244)
STRONG = (2.0, 1.0)
REFERENCE = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
OTHER = ((0.55, 0.75, 0.36), (0.20, 0.90, 0.30))


def concentrations(side: int, seed: int) -> np.ndarray:
    """Concentrations of two stains, shape (side, side, 2): nuclei over a softer ground."""
    rng = np.random.default_rng(seed)
    nuclei = ndimage.gaussian_filter(rng.normal(size=(side, side)), 4) * 18 - 0.6
    ground = ndimage.gaussian_filter(rng.normal(size=(side, side)), 9) * 25 + 0.3
    return np.clip(np.stack([nuclei, ground], axis=2), 0, (1.5, 1.2))


def stained(
    stain: np.ndarray, stains: tuple[tuple[float, ...], ...] = OTHER, *, strength: float = 1.0,
    glass: tuple[int, int, int] = GLASS,
) -> np.ndarray:  # fmt: skip
    """Pixels by the law of Beer and Lambert with a little noise."""
    colours = np.array([np.array(stain) / np.linalg.norm(stain) for stain in stains])
    light = np.array(glass) * np.exp(-strength * (stain @ colours))
    light += np.random.default_rng(0).normal(size=light.shape) * 1.5
    return np.clip(light.round(), 0, 255).astype(np.uint8)


def normalise(pixels: np.ndarray, glass: tuple[int, int, int] = GLASS) -> np.ndarray:
    return MacenkoNormalizer(pixels, glass_rgb=glass, where="s1")(pixels)


@pytest.mark.parametrize("strength", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("glass", [GLASS, (210, 222, 205)])
def test_slides_stained_and_lit_otherwise_become_similar(
    strength: float, glass: tuple[int, int, int]
) -> None:
    stain = concentrations(256, seed=1)
    plain = stained(stain, REFERENCE)
    other = stained(stain, OTHER, strength=strength, glass=glass)
    before = np.abs(plain.astype(float) - other).mean()
    after = np.abs(normalise(plain).astype(float) - normalise(other, glass)).mean()
    assert after < 8
    assert after < 0.6 * before


def test_a_slide_stained_like_the_reference_hardly_changes() -> None:
    stain = concentrations(256, seed=2)
    scaled = stain * np.array(STRONG) / np.percentile(stain.reshape(-1, 2), 99, axis=0)
    pixels = stained(scaled, REFERENCE, glass=(255, 255, 255))
    assert np.abs(normalise(pixels, (255, 255, 255)).astype(float) - pixels).mean() < 6


def test_glass_becomes_white() -> None:
    recolour = MacenkoNormalizer(stained(concentrations(256, seed=1)), glass_rgb=GLASS, where="s1")
    assert recolour(np.full((8, 8, 3), GLASS, np.uint8)).min() >= 254


def test_the_whole_slide_is_treated_alike_whatever_lies_on_a_tile() -> None:
    pixels = stained(concentrations(256, seed=1))
    recolour = MacenkoNormalizer(pixels, glass_rgb=GLASS, where="s1")
    whole, part = recolour(pixels), recolour(pixels[:64, 100:164])
    assert np.abs(whole[:64, 100:164].astype(int) - part).max() <= 1
    assert recolour(np.zeros((4, 4, 3), np.uint8)).max() < 60


def test_the_same_slide_gives_the_same_bytes() -> None:
    pixels = stained(concentrations(128, seed=3))
    assert normalise(pixels).tobytes() == normalise(pixels).tobytes()


@pytest.mark.parametrize("pixels", [
    np.full((64, 64, 3), GLASS, np.uint8),
    stained(concentrations(128, seed=1), (REFERENCE[0], REFERENCE[0])),
])  # fmt: skip
def test_a_slide_without_two_stains_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(SlideError, match="s1: two stains cannot be separated"):
        normalise(pixels)


def test_unknown_ways_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MilError, match="'reinhard'; expected none or macenko"):
        require_stain_norm("reinhard")
    monkeypatch.setattr("features.tiling.stain.importlib.util.find_spec", lambda name: None)
    require_stain_norm("none")
    with pytest.raises(MilError, match=r"pip install 'mil-slides\[stain\]'"):
        require_stain_norm("macenko")


def test_rules_apply_to_tiles_as_read_and_views_to_normalised_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("features.tiling.transforms.content_hash", lambda path: "0" * 64)
    slide_tiles = make_buffer(2, bright=(1,)).instances
    still = AugmentationConfig(
        n_views=1, angle_deg=0, shift=0, scale=0, shear_deg=0, brightness=0, contrast=0,
        saturation=0, hue=0, sharpness=0,
    )  # fmt: skip
    transform = TileTransform(slide_tiles, views=still, stain_normalizer=np.zeros_like)
    work = SlideBuffer(slide_tiles, dim=3, transform=transform)
    result = work.read(0)
    assert isinstance(result, np.ndarray)
    assert result.shape == (2, 32, 32, 3)
    assert result.max() == 0
    assert work.read(1) == "bright"


def test_there_is_no_normaliser_without_a_method_and_where_no_tile_is_kept() -> None:
    assert build_stain_normalizer("none", make_buffer(2).instances) is None
    slide_tiles = replace(make_buffer(1).instances, detect_artifact=lambda tile: "blur")
    assert build_stain_normalizer("macenko", slide_tiles) is None
    assert STAIN_NORMS["none"] == ""
