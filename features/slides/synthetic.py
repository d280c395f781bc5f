"""Synthetic slides of stroke clots, whose class shows in the mixture of tissue and in a focus.

Only for demonstrations and tests. The images imitate what matters to the pipeline (one level, no
usable resolution, coloured glass, islands of fibrin bands, red-cell clumps and white cells, a spot
of calcification on some), and carry no information about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile
from PIL import Image
from scipy import ndimage

from features.slides.base import RgbArray
from features.utils.files import atomic_write, make_folder
from features.utils.tables import write_table

__all__ = [
    "GLASSES_RGB",
    "SyntheticSlide",
    "make_cohort",
    "render_slide",
    "write_slide",
    "write_synthetic_cohort",
]

Floats = npt.NDArray[np.float32]

GLASSES_RGB = (
    (255, 255, 255),
    (196, 211, 192),
    (211, 226, 207),
    (234, 216, 254),
    (255, 241, 255),
)
"""Colours of glass on real stroke clot slides: white, grey-green, violet, pinkish."""

_ATLAS_PX = 1024
_CELL_PX = 26  # a red cell of 6.5 µm at 0.25 µm/px
_BLOCK_PX = 256  # painted at once
_COARSE = 16  # factor by which masks are smaller while they are drawn
_FIRST_CLASS_SHARE = 0.62
_RED_SHIFT = 0.42  # of the logit of the red share, up in the second class and down in the first
_RED_SD = 0.7
_TISSUE_PX0 = (58 * 224**2, 68 * 224**2)  # cut into 60 tiles of 224 px or more
_MOST_TISSUE_SHARE = (0.36, 0.43)  # of slides too small for so many tiles
_FOCUS_SHARE, _FOCUS_SHIFT = 0.5, 0.44  # of the patients of a class
_FOCUS_RADIUS_PX0 = (150, 270)  # one to five tiles of 224 px
_N_CENTRES = 3


@dataclass(frozen=True, kw_only=True)
class SyntheticSlide:
    """Parameters that determine one synthetic slide, of shape (height, width, 3) in px.

    ``patient_id`` is six hexadecimal characters that may resemble a number; ``image_num`` counts
    the patient's slides from 0. ``red_share`` is the share of the tissue that is red cells, the
    rest is fibrin; ``white_share`` that covered by white cells. ``has_focus`` says whether there is
    a spot of calcification, which covers a few tiles.
    """

    patient_id: str
    image_num: int
    center_id: str
    label: str
    red_share: float
    white_share: float
    glass_rgb: tuple[int, int, int]
    width_px0: int
    height_px0: int
    seed: int
    has_focus: bool = False

    @property
    def slide_id(self) -> str:
        """Id of the slide, ``<patient_id>_<image_num>``."""
        return f"{self.patient_id}_{self.image_num}"


def make_cohort(
    *, n_patients: int, seed: int, signal: float, classes: tuple[str, str] = ("CE", "LAA")
) -> list[SyntheticSlide]:
    """Draw a cohort: patients of two classes in three centres, some with two slides.

    Two signs tell the classes apart, both with a wide overlap. Clots of the second class have more
    red cells in all of their tissue: at ``signal`` 1 the mixture separates the classes with an
    AUROC of about 0.8. And more of its patients, 94 % against 6 %, have a spot of calcification on
    one slide. At ``signal`` 0, neither sign depends on the class. The slides are in the order of
    their patients.
    """
    rng = np.random.default_rng([seed, 77])
    slides: list[SyntheticSlide] = []
    used: set[str] = set()
    n_first = round(n_patients * _FIRST_CLASS_SHARE)
    labels = rng.permutation([0] * n_first + [1] * (n_patients - n_first))
    for number, label in enumerate(labels):
        patient_id = _patient_id(rng, number, used)
        centre = number % _N_CENTRES
        sign = signal if label else -signal
        red_logit = rng.normal(0, _RED_SD) + sign * _RED_SHIFT
        has_focus = rng.random() < _FOCUS_SHARE + sign * _FOCUS_SHIFT
        for image_num in range(1 + (number % 5 == 4)):
            slides.append(
                SyntheticSlide(
                    patient_id=patient_id,
                    image_num=image_num,
                    center_id=str(centre + 1),
                    label=classes[int(label)],
                    red_share=float(1 / (1 + np.exp(-red_logit - rng.normal(0, 0.15)))),
                    white_share=float(rng.uniform(0.05, 0.25)),
                    has_focus=bool(has_focus and image_num == 0),
                    glass_rgb=_glass_of(centre, rng),
                    width_px0=int(rng.integers(3000, 3600)),
                    height_px0=int(rng.integers(2700, 3300)),
                    seed=int(rng.integers(2**31)),
                )
            )
    return slides


def render_slide(slide: SyntheticSlide) -> RgbArray:
    """Render the pixels of a slide, shape (height_px0, width_px0, 3), uint8, at 0.25 µm/px."""
    rng = np.random.default_rng(slide.seed)
    coarse = tuple(-(-side // _COARSE) for side in (slide.height_px0, slide.width_px0))
    island = _island(rng, coarse)
    red = _soft_mask(_clouds(rng, coarse, grain=14), island > 0.5, slide.red_share)
    white = _soft_mask(_clouds(rng, coarse, grain=6), island > 0.5, slide.white_share)
    focus = _focus(rng, island) if slide.has_focus else np.zeros_like(island)
    masks = [Image.fromarray(mask) for mask in (island, red, white, focus)]
    textures = [_shifted(_atlas(kind), rng) for kind in range(4)]
    stain = rng.normal(1.0, 0.03, 3).astype(np.float32)
    glass = np.array(slide.glass_rgb, np.float32)
    pixels = np.empty((slide.height_px0, slide.width_px0, 3), np.uint8)
    pixels[:] = slide.glass_rgb
    for top, left in _blocks(island):
        painted = pixels[top : top + _BLOCK_PX, left : left + _BLOCK_PX]
        island_, red_, white_, focus_ = (
            _enlarged(mask, top, left)[: painted.shape[0], : painted.shape[1], None]
            for mask in masks
        )
        fibrin_rgb, red_rgb, white_rgb, calcium_rgb = (
            _cut(texture, top, left, painted.shape) for texture in textures
        )
        tissue = fibrin_rgb + (red_rgb - fibrin_rgb) * red_
        # White cells are on top: their texture darkens the tissue below.
        tissue *= 1 - white_ * (1 - white_rgb / np.float32(255))
        if focus_.any():
            tissue += (calcium_rgb - tissue) * focus_
        tissue *= stain
        painted[:] = np.clip(glass + (tissue - glass) * island_, 0, 255)
    return pixels


def write_slide(path: Path, pixels: RgbArray) -> None:
    """Write pixels, shape (height, width, 3), uint8, as a TIFF like those of STRIP.

    It has one level, tiles of 128 px, LZW compression and a resolution of 10 px per cm. Raises
    OutputError if the file cannot be written.
    """
    with atomic_write(path) as temporary:
        tifffile.imwrite(
            temporary, pixels, photometric="rgb", tile=(128, 128), compression="lzw",
            resolution=(10, 10), resolutionunit="CENTIMETER", metadata=None,
        )  # fmt: skip


def write_synthetic_cohort(
    folder: Path,
    slides: Sequence[SyntheticSlide],
    *,
    n_test_patients: int,
    n_workers: int,
    on_slide: Callable[[], None],
) -> None:
    """Write ``slides/*.tif``, ``train.csv``, ``test.csv`` and ``test_labels.csv``.

    The last ``n_test_patients`` are the test patients; ``test.csv`` has no labels. Existing slides
    are not rendered again. ``n_workers`` processes render; ``on_slide`` is called after each slide.
    Raises OutputError if a file cannot be written.
    """
    slides_dir = make_folder(folder / "slides")
    _write_tables(folder, slides, n_test_patients=n_test_patients)
    jobs = [(slides_dir / f"{slide.slide_id}.tif", slide) for slide in slides]
    if n_workers == 1:
        for job in jobs:
            _write_one(job)
            on_slide()
        return
    # Fresh processes: a fork of a process with running threads may hang.
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_write_one, jobs):
            on_slide()


def _write_one(job: tuple[Path, SyntheticSlide]) -> None:
    path, slide = job
    if not path.is_file():
        write_slide(path, render_slide(slide))


def _write_tables(folder: Path, slides: Sequence[SyntheticSlide], *, n_test_patients: int) -> None:
    patients = list(dict.fromkeys(slide.patient_id for slide in slides))
    rows = [(s.slide_id, s.center_id, s.patient_id, s.image_num, s.label) for s in slides]
    names = ["image_id", "center_id", "patient_id", "image_num", "label"]
    table = pd.DataFrame(rows, columns=names)
    labels = {slide.label for slide in slides}
    clinical = {s.patient_id: _clinical(s, first=min(labels)) for s in slides}
    for column, name in enumerate(("age", "atrial_fibrillation")):
        table[name] = [clinical[patient][column] for patient in table["patient_id"]]
    is_test = table["patient_id"].isin(patients[len(patients) - n_test_patients :])
    for name, part in (
        ("train.csv", table[~is_test]),
        ("test.csv", table[is_test].drop(columns="label")),
        ("test_labels.csv", table[is_test]),
    ):
        write_table(folder / name, part)


def _clinical(slide: SyntheticSlide, *, first: str) -> tuple[int, str]:
    """Return a patient's age in years, which says nothing, and a diagnosis that says something.

    Atrial fibrillation is as frequent as 60 % in one class and 20 % in the other, and unknown for
    5 %. Both depend on the patient's id only, not on what is painted.
    """
    rng = np.random.default_rng(list(slide.patient_id.encode()))
    age = int(np.clip(rng.normal(70, 12), 30, 98))
    has = rng.random() < (0.6 if slide.label == first else 0.2)
    return age, "" if rng.random() < 0.05 else ("yes" if has else "no")


def _patient_id(rng: np.random.Generator, number: int, used: set[str]) -> str:
    """An id of six hexadecimal characters; every fifth could be read as a number by mistake."""
    while True:
        text = "".join(rng.choice(list("0123456789abcdef"), 6))
        if number % 10 == 3:
            text = f"0{int(rng.integers(10_000, 99_999))}"
        elif number % 10 == 7:
            text = f"{int(rng.integers(100, 999))}e{int(rng.integers(10, 99))}"
        if text not in used:
            used.add(text)
            return text


def _glass_of(centre: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """White or one of two colours of the centre, independent of the class."""
    colours = (GLASSES_RGB[0], GLASSES_RGB[1 + centre], GLASSES_RGB[1 + (centre + 1) % 4])
    return colours[int(rng.integers(3))]


def _clouds(rng: np.random.Generator, shape: tuple[int, ...], *, grain: float) -> Floats:
    """Smooth noise of about ``grain`` px, with zero mean and unit variance."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), grain)
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def _island(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """One to three ragged islands with soft borders, 0 to 1, on enough of the slide but not all."""
    least, most = (
        min(area / (_COARSE**2 * shape[0] * shape[1]), share)
        for area, share in zip(_TISSUE_PX0, _MOST_TISSUE_SHARE, strict=True)
    )
    size = 1.0
    while True:
        island = _draw_island(rng, shape, size=size)
        if least <= (share := float((island > 0.5).mean())) <= most:
            return island
        size *= 1.08 if share < least else 0.95


def _draw_island(rng: np.random.Generator, shape: tuple[int, ...], *, size: float) -> Floats:
    rows, columns = np.mgrid[0 : 1 : shape[0] * 1j, 0 : 1 : shape[1] * 1j].astype(np.float32)
    height = np.full(shape, -9.0, np.float32)
    for _ in range(int(rng.integers(1, 4))):
        y, x = rng.uniform(0.3, 0.7, 2)
        long, short = size * rng.uniform(0.22, 0.34), size * rng.uniform(0.14, 0.22)
        angle = rng.uniform(0, np.pi)
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        height = np.maximum(height, 1 - (along / long) ** 2 - (across / short) ** 2)
    ragged = height + 0.35 * _clouds(rng, shape, grain=7) + 0.12 * _clouds(rng, shape, grain=2)
    return np.asarray(np.clip(ragged * 4, 0, 1), np.float32)


def _focus(rng: np.random.Generator, island: Floats) -> Floats:
    """Soft mask, 0 to 1, of one ragged spot in the interior of the tissue."""
    radius = rng.uniform(*_FOCUS_RADIUS_PX0) / _COARSE
    depth = ndimage.distance_transform_edt(island > 0.9)
    inside = np.argwhere(depth >= min(radius, depth.max()))
    centre = inside[int(rng.integers(len(inside)))]
    distance = np.hypot(*(np.indices(island.shape) - centre[:, None, None]))
    ragged = distance / radius + 0.15 * _clouds(rng, island.shape, grain=3)
    return np.asarray(np.clip((1 - ragged) * 4 + 0.5, 0, 1), np.float32)


def _soft_mask(field: Floats, area: npt.NDArray[np.bool_], share: float) -> Floats:
    """Soft mask, 0 to 1, of the highest values of a field, which cover ``share`` of an area."""
    if not area.any():
        return np.zeros_like(field)
    border = np.quantile(field[area], 1 - share)
    return np.asarray(np.clip((field - border) * 4 + 0.5, 0, 1), np.float32)


def _blocks(island: Floats) -> list[tuple[int, int]]:
    """Upper left corners, px, of the blocks that hold any tissue."""
    step = _BLOCK_PX // _COARSE
    # Enlarging reaches one px of the mask further.
    within = ndimage.binary_dilation(island > 0)
    starts = np.arange(0, island.shape[0], step), np.arange(0, island.shape[1], step)
    holds = np.logical_or.reduceat(np.logical_or.reduceat(within, starts[0]), starts[1], axis=1)
    return [(int(y) * _BLOCK_PX, int(x) * _BLOCK_PX) for y, x in np.argwhere(holds)]


def _enlarged(mask: Image.Image, top: int, left: int) -> Floats:
    """One block of a mask, enlarged by the factor at which masks are drawn."""
    x, y, step = left // _COARSE, top // _COARSE, _BLOCK_PX // _COARSE
    box = (x, y, min(x + step, mask.width), min(y + step, mask.height))
    size = ((box[2] - x) * _COARSE, (box[3] - y) * _COARSE)
    return np.asarray(mask.resize(size, Image.Resampling.BILINEAR, box=box))


def _shifted(atlas: RgbArray, rng: np.random.Generator) -> RgbArray:
    """A periodic texture, turned and shifted at random, continued by the length of a block."""
    turned = np.rot90(atlas, int(rng.integers(4)))
    shifted = np.roll(turned, tuple(rng.integers(0, _ATLAS_PX, 2)), axis=(0, 1))
    return np.pad(shifted, ((0, _BLOCK_PX), (0, _BLOCK_PX), (0, 0)), mode="wrap")


def _cut(texture: RgbArray, top: int, left: int, shape: tuple[int, ...]) -> Floats:
    """Part of a periodic texture that covers a block."""
    y, x = top % _ATLAS_PX, left % _ATLAS_PX
    return texture[y : y + shape[0], x : x + shape[1]].astype(np.float32)


@lru_cache(maxsize=4)
def _atlas(kind: int) -> RgbArray:
    """Texture rendered once per process: 0 fibrin, 1 red cells, 2 white cells, 3 calcification."""
    rng = np.random.default_rng([13, kind])
    painters = (_render_fibrin, _render_red_cells, _render_white_cells, _render_calcification)
    return painters[kind](rng)


def _wrapped_noise(rng: np.random.Generator, sigma: float | tuple[float, float]) -> Floats:
    noise = rng.normal(size=(_ATLAS_PX, _ATLAS_PX)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap")
    return np.asarray(smooth / smooth.std(), np.float32)


def _render_fibrin(rng: np.random.Generator) -> RgbArray:
    """Bands and threads of pink, bent by a slow flow."""
    threads = 0.6 * _wrapped_noise(rng, (1.2, 16)) + 0.8 * _wrapped_noise(rng, (5, 40))
    rows, columns = np.mgrid[0:_ATLAS_PX, 0:_ATLAS_PX].astype(np.float32)
    bend_y, bend_x = 60 * _wrapped_noise(rng, 90), 25 * _wrapped_noise(rng, 60)
    bent = ndimage.map_coordinates(
        threads, [rows + bend_y, columns + bend_x], order=1, mode="grid-wrap"
    )
    tone = 1 / (1 + np.exp(-1.4 * bent))[..., None]  # 0 pale, 1 deep
    pale, deep = np.array([236, 176, 196], np.float32), np.array([186, 62, 104], np.float32)
    grain = rng.normal(0, 3, (_ATLAS_PX, _ATLAS_PX, 1))
    return np.asarray(np.clip(pale + (deep - pale) * tone + grain, 0, 255), np.uint8)


def _render_red_cells(rng: np.random.Generator) -> RgbArray:
    """Packed discs from orange to brick, darker at their rims."""
    distance, shade = _nearest_seed(rng, spacing_px=_CELL_PX, jitter=0.28)
    inside = np.clip(1.15 - distance / (_CELL_PX / 2), 0, 1)[..., None]
    dimple = 1 - 0.18 * np.exp(-((distance / 5.0) ** 2))[..., None]
    dark, light = np.array([150, 40, 30], np.float32), np.array([222, 116, 70], np.float32)
    cell = dark + (light - dark) * (0.35 + 0.65 * shade[..., None])
    plasma = np.array([206, 130, 110], np.float32)
    edge = np.clip(inside * 2.2, 0, 1)
    colour = plasma + (cell * dimple - plasma) * edge
    colour *= 1 - 0.22 * np.exp(-(((distance - _CELL_PX * 0.46) / 2.5) ** 2))[..., None]
    grain = rng.normal(0, 3, (_ATLAS_PX, _ATLAS_PX, 1))
    return np.asarray(np.clip(colour + grain, 0, 255), np.uint8)


def _render_white_cells(rng: np.random.Generator) -> RgbArray:
    """Dark purple nuclei on white, to be multiplied with the tissue below."""
    distance, shade = _nearest_seed(rng, spacing_px=54, jitter=0.42)
    wobble = 3.0 * _wrapped_noise(rng, 6)
    nucleus = np.clip((18 + 5 * shade + wobble - distance) / 3, 0, 1)[..., None]
    clump = 0.12 * _wrapped_noise(rng, 2.5)[..., None]
    purple = np.array([92, 60, 132], np.float32) * (1 + clump)
    return np.asarray(np.clip(255 + (purple - 255) * nucleus, 0, 255), np.uint8)


def _render_calcification(rng: np.random.Generator) -> RgbArray:
    """Dark violet grains of two sizes, closely packed, with pale cracks between them."""
    coarse, shade = _nearest_seed(rng, spacing_px=38, jitter=0.45)
    grains = 0.5 * _wrapped_noise(rng, 3) + 0.3 * _wrapped_noise(rng, 1)
    tone = np.clip(0.55 + 0.25 * grains + 0.3 * (shade - 0.5), 0, 1)[..., None]
    dark, light = np.array([74, 44, 96], np.float32), np.array([158, 120, 170], np.float32)
    colour = dark + (light - dark) * tone
    crack = np.clip((coarse - 17) / 4, 0, 1)[..., None]
    colour += (np.array([214, 186, 206], np.float32) - colour) * 0.7 * crack
    return np.asarray(np.clip(colour, 0, 255), np.uint8)


def _nearest_seed(
    rng: np.random.Generator, *, spacing_px: int, jitter: float
) -> tuple[Floats, Floats]:
    """Distance to the nearest of many jittered seeds, px, and a random shade of that seed."""
    n_seeds = _ATLAS_PX // spacing_px
    step = _ATLAS_PX / n_seeds
    rows, columns = np.mgrid[0:n_seeds, 0:n_seeds].astype(np.float64)
    columns += 0.5 * (rows % 2)  # every other row shifted: closer packing
    seeds = np.stack([rows, columns], axis=-1) + rng.uniform(-jitter, jitter, (n_seeds, n_seeds, 2))
    pixels = np.rint(seeds.reshape(-1, 2) * step).astype(np.int64) % _ATLAS_PX
    # Padding with copies keeps the pattern periodic.
    empty = np.ones((_ATLAS_PX, _ATLAS_PX), bool)
    empty[pixels[:, 0], pixels[:, 1]] = False
    wide = np.pad(empty, 2 * spacing_px, mode="wrap")
    distance, nearest = ndimage.distance_transform_edt(wide, return_indices=True)
    shades = rng.uniform(size=(_ATLAS_PX, _ATLAS_PX)).astype(np.float32)
    shade = np.pad(shades, 2 * spacing_px, mode="wrap")[nearest[0], nearest[1]]
    core = np.s_[2 * spacing_px : -2 * spacing_px, 2 * spacing_px : -2 * spacing_px]
    return distance[core].astype(np.float32), shade[core]
