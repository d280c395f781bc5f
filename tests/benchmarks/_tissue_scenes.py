"""Painted overviews of slides whose tissue is known, by group of what makes it hard to find.

Each is drawn as a scanner sees it: stains absorb the light that the glass lets through (Beer and
Lambert), the lamp is uneven, the optics blur, the sensor adds noise, and JPEG its blocks.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

from features.slides.base import RgbArray

__all__ = ["GLASSES_RGB", "GROUPS", "INKS", "MPP", "STAINS", "Scene", "paint_scene"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

MPP = 8.0
"""µm per px of every overview."""

GLASSES_RGB = {
    "white": (246, 246, 246), "grey": (206, 206, 208), "blue": (204, 216, 240),
    "green": (200, 220, 198), "yellow": (240, 230, 188), "brown": (218, 190, 156),
    "pink": (242, 212, 222), "rose": (234, 186, 202), "violet": (214, 198, 240),
    "dark": (132, 130, 126),
}  # fmt: skip
"""Colours of glass with mounting medium, new and aged, under lamps of several whites."""

OTHER_GLASSES_RGB = {
    "grey-blue": (188, 198, 212), "greenish": (226, 236, 214), "amber": (236, 204, 148),
}  # fmt: skip
"""Colours of which no other group draws its glass."""

_VECTORS = {
    "haematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.09, 0.95, 0.28),
    "dab": (0.27, 0.57, 0.78),
    "magenta": (0.18, 0.90, 0.40),
    "red cells": (0.16, 0.70, 0.69),
    "fibrin": (0.12, 0.92, 0.37),
    "methyl blue": (0.80, 0.59, 0.10),
    "fuchsin": (0.10, 0.74, 0.67),
    "alcian blue": (0.87, 0.46, 0.16),
    "picric acid": (0.06, 0.22, 0.97),
}
"""Optical densities of stains in red, green and blue, of length 1 (Ruifrok and Johnston, 2001)."""

STAINS: dict[str, tuple[tuple[str, float], tuple[str, float]]] = {
    "he": (("eosin", 0.32), ("haematoxylin", 0.30)),
    "clot": (("fibrin", 0.30), ("red cells", 0.55)),
    "ihc": (("haematoxylin", 0.28), ("dab", 0.45)),
    "pas": (("magenta", 0.36), ("haematoxylin", 0.25)),
}
"""Two stains each: name and optical density where the tissue is of ordinary strength."""

OTHER_STAINS: dict[str, tuple[tuple[str, float], tuple[str, float]]] = {
    "trichrome": (("methyl blue", 0.35), ("fuchsin", 0.40)),
    "van Gieson": (("picric acid", 0.45), ("fuchsin", 0.35)),
    "alcian blue": (("alcian blue", 0.30), ("haematoxylin", 0.10)),
    "dab alone": (("dab", 0.25), ("dab", 0.35)),
}
"""Stains of which no other group draws its tissue."""

INKS = {
    "blue": (0.16, 0.30, 0.62), "green": (0.15, 0.52, 0.36), "red": (0.82, 0.16, 0.20),
    "black": (0.08, 0.08, 0.09),
}  # fmt: skip
"""Share of red, green and blue light that pen ink lets through."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An overview, shape (height, width, 3), uint8, and its tissue, shape (height, width), bool.

    ``ignored`` are pixels of ink, edges of coverslips and bubbles, which are left to the rules for
    tiles: the mask may count them as tissue or not.
    """

    overview: RgbArray
    tissue: Bools
    ignored: Bools

    def iou(self, mask: Bools) -> float:
        """Intersection over union of tissue and mask, or of the glass where there is no tissue."""
        truth, found = self.tissue[~self.ignored], mask[~self.ignored]
        if not truth.any():
            truth, found = ~truth, ~found
        return float((truth & found).sum() / max(1, (truth | found).sum()))


class _Painter:
    """A slide while it is drawn: glass, tissue and what lies upon them."""

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        shape: tuple[int, int] = (300, 400),
        glass: str | None = None,
        noise: float | None = None,
        jpeg: int | None = None,
        light: str | None = None,
    ) -> None:
        self.rng, self.shape = rng, shape
        name = glass or str(rng.choice([*GLASSES_RGB]))
        glasses = GLASSES_RGB | OTHER_GLASSES_RGB
        self.glass = np.clip(np.array(glasses[name]) + rng.uniform(-6, 6, 3), 0, 254)
        self.noise = float(rng.choice([0.3, 1.0, 3.0])) if noise is None else noise
        self.jpeg = int(rng.choice([0, 60, 80, 90])) if jpeg is None else jpeg
        self.light = str(rng.choice(["even", "tilted", "vignette"])) if light is None else light
        self.tissue = np.zeros(shape, bool)
        self.ignored = np.zeros(shape, bool)
        self.density = np.zeros((*shape, 3))
        self.after: list[Callable[[Floats], Floats]] = []

    def field(self, *sigmas_px: float) -> Floats:
        """Smooth noise of mean 0 and standard deviation 1, summed over scales."""
        total = np.zeros(self.shape)
        for sigma in sigmas_px:
            one = ndimage.gaussian_filter(self.rng.normal(size=self.shape), sigma)
            total += one / one.std()
        return np.asarray(total / total.std())

    def islands(self, share: float, *, size_px: float = 30.0, within: Bools | None = None) -> Bools:
        """Ragged islands that cover this share of the picture, or of a part of it."""
        height = self.field(size_px) + 0.12 * self.field(4)
        allowed = np.ones(self.shape, bool) if within is None else within
        level = np.quantile(height[allowed], 1 - share)
        return np.asarray((height > level) & allowed)

    def core(self, share: float) -> Bools:
        """One ragged ellipse that covers about this share of the picture."""
        height, width = self.shape
        rows, columns = np.indices(self.shape)
        y, x = self.rng.uniform(0.3, 0.7, 2) * self.shape
        radius, stretch = np.sqrt(share * height * width / np.pi), self.rng.uniform(1, 1.5)
        distance = ((rows - y) / radius * stretch) ** 2 + ((columns - x) / radius / stretch) ** 2
        return np.asarray(distance + 0.1 * self.field(6) < 1)

    def stain(self, where: Bools, name: str | None = None, strength: float | None = None) -> None:
        """Draw stained tissue: a ground with fibres and, in patches, cells of the second stain."""
        rng = self.rng
        where = _without_small(where)
        (ground, ground_od), (cells, cells_od) = (STAINS | OTHER_STAINS)[
            name or str(rng.choice([*STAINS]))
        ]
        strength = (
            float(np.exp(rng.uniform(np.log(0.3), np.log(1.6)))) if strength is None else strength
        )
        tone = np.clip(1 + 0.18 * self.field(12) + 0.22 * self.field(1.2), 0.45, None)
        crowd = np.clip(0.35 + 0.35 * self.field(10), 0, 1.2) * rng.gamma(2.0, 0.5, self.shape)
        od = (
            ground_od * tone[..., None] * _VECTORS[ground]
            + cells_od * ndimage.gaussian_filter(crowd, 0.7)[..., None] * _VECTORS[cells]
        )
        self.density[where] = (strength * od)[where]
        self.tissue |= where

    def fat(self, where: Bools) -> None:
        """Draw adipose tissue: whole empty cells of 50 to 110 µm with walls of 3 to 6 µm."""
        rng = self.rng
        where = _without_small(where)
        fine = 4  # the walls are narrower than a px
        spacing = float(rng.uniform(55, 95)) / MPP * fine
        height, width = (side * fine for side in self.shape)
        rows, columns = np.mgrid[0 : height + spacing : spacing, 0 : width + spacing : spacing]
        columns = columns + spacing / 2 * (np.arange(len(rows)) % 2)[:, None]
        seeds = np.stack([rows, columns], -1).reshape(-1, 2)
        seeds += rng.uniform(-0.22, 0.22, seeds.shape) * spacing
        y, x = np.mgrid[0:height, 0:width]
        places = np.stack([y.ravel(), x.ravel()], 1)
        near, cell = map(np.asarray, cKDTree(seeds).query(places, k=2))
        gap = (near[:, 1] - near[:, 0]).reshape(height, width) / fine * MPP  # µm, twice the way
        wall_um = float(rng.uniform(3, 6))
        # Cells at the border of the region are drawn with the whole of their walls, or not at all.
        y, x = np.minimum(seeds // fine, np.array(self.shape) - 1).clip(0).astype(int).T
        one, other = np.moveaxis(where[y, x][cell].reshape(height, width, 2), -1, 0)
        # A pixel of 2 µm on a wall is covered by it in part.
        cover = np.asarray(np.clip((wall_um - gap) / 4 + 0.5, 0, 1) * (one | other))
        light = np.exp(-cover[..., None] * 0.75 * np.array(_VECTORS["eosin"]))

        def average(values: Floats) -> Floats:
            blocks = values.reshape(self.shape[0], fine, self.shape[1], fine, -1)
            return np.asarray(blocks.mean(axis=(1, 3)))

        self.density = np.maximum(self.density, -np.log(average(light)))
        self.tissue |= average(one | (other & (gap < wall_um)))[..., 0] >= 0.5

    def ink(self, where: Bools, colour: str) -> None:
        """Draw pen ink over whatever is there."""
        strokes = np.asarray(np.clip(1 + 0.15 * self.field(5), 0.6, 1.3))
        through = -np.log(INKS[colour]) * strokes[..., None]
        self.density[where] += through[where]
        self.ignored |= ndimage.binary_dilation(where, iterations=2) & ~self.tissue

    def finish(self) -> Scene:
        """Light, blur, noise and compression."""
        rng = self.rng
        y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in self.shape), indexing="ij")
        angle = rng.uniform(0, 2 * np.pi)
        share = {
            "even": np.ones(self.shape),
            "tilted": 0.94 + 0.06 * (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2),
            "vignette": 1 - 0.05 * (x**2 + y**2),
        }[self.light]
        pixels = self.glass * share[..., None] * np.exp(-self.density)
        pixels = ndimage.gaussian_filter(pixels, (0.5, 0.5, 0))
        for draw in self.after:
            pixels = draw(pixels)
        pixels = pixels + rng.normal(0, self.noise, pixels.shape)
        overview = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        if self.jpeg:
            buffer = io.BytesIO()
            Image.fromarray(overview).save(buffer, "JPEG", quality=self.jpeg)
            overview = np.asarray(Image.open(buffer))
        return Scene(overview=overview, tissue=self.tissue, ignored=self.ignored)


def _without_small(where: Bools) -> Bools:
    """Without islands and holes of less than 4,000 µm², which no mask is asked for."""
    least_px = 4000 / MPP**2
    eight = np.ones((3, 3), bool)
    for value in (True, False):
        labels, _ = ndimage.label(where == value, structure=eight)
        small = np.bincount(labels.ravel()) < 1.5 * least_px
        small[0] = False
        where = np.where(small[labels], not value, where)
    return where


def _half(painter: _Painter, *, right: bool) -> Bools:
    """One half of the picture, apart from a strip in the middle."""
    columns = np.arange(painter.shape[1])
    width = painter.shape[1]
    inside = columns > 0.54 * width if right else columns < 0.46 * width
    return np.broadcast_to(inside, painter.shape)


def _on_glass(name: str) -> Callable[[np.random.Generator], Scene]:
    def paint(rng: np.random.Generator) -> Scene:
        painter = _Painter(rng, glass=name)
        painter.stain(painter.islands(float(rng.uniform(0.05, 0.5))))
        return painter.finish()

    return paint


def _stained(name: str | None, least: float, most: float) -> Callable[[np.random.Generator], Scene]:
    def paint(rng: np.random.Generator) -> Scene:
        painter = _Painter(rng)
        strength = float(np.exp(rng.uniform(np.log(least), np.log(most))))
        painter.stain(painter.islands(float(rng.uniform(0.05, 0.5))), name, strength)
        return painter.finish()

    return paint


def _pale(name: str | None, least: float, most: float) -> Callable[[np.random.Generator], Scene]:
    def paint(rng: np.random.Generator) -> Scene:
        painter = _Painter(rng, noise=float(rng.uniform(0.2, 1.0)), jpeg=int(rng.choice([0, 90])))
        where = painter.islands(float(rng.uniform(0.05, 0.5)))
        painter.stain(where, name, float(rng.uniform(least, most)))
        return painter.finish()

    return paint


def _unlike(rng: np.random.Generator) -> Scene:
    painter = _Painter(rng, noise=float(rng.uniform(0.2, 1.0)), jpeg=int(rng.choice([0, 90])))
    stain = str(rng.choice([*STAINS]))
    for right in (False, True):
        strength = float(rng.uniform(0.12, 0.3) if right else rng.uniform(0.9, 1.8))
        where = painter.islands(float(rng.uniform(0.2, 0.7)), within=_half(painter, right=right))
        painter.stain(where, stain, strength)
    return painter.finish()


def _unlike_touching(rng: np.random.Generator) -> Scene:
    painter = _Painter(rng, noise=float(rng.uniform(0.2, 1.0)), jpeg=int(rng.choice([0, 90])))
    where = painter.islands(float(rng.uniform(0.2, 0.5)))
    stain = str(rng.choice([*STAINS]))
    painter.stain(where, stain, float(rng.uniform(0.12, 0.3)))
    dark = where & (painter.field(25) > 0.3)
    painter.stain(dark, stain, float(rng.uniform(0.9, 1.8)))
    return painter.finish()


def _covered(share: float) -> Callable[[np.random.Generator], Scene]:
    def paint(rng: np.random.Generator) -> Scene:
        painter = _Painter(rng, shape=(500, 700) if share == 0.01 else (300, 400))
        if share == 0.01:
            painter.stain(painter.core(share))
        elif share:
            where = painter.islands(share, size_px=12.0 if share > 0.9 else 30.0)
            painter.stain(where, None, float(np.exp(rng.uniform(np.log(0.4), np.log(1.6)))))
        return painter.finish()

    return paint


def _padded(value: int) -> Callable[[np.random.Generator], Scene]:
    def paint(rng: np.random.Generator) -> Scene:
        painter = _Painter(rng, jpeg=0)
        height, width = painter.shape
        outside = np.ones(painter.shape, bool)
        top, left = int(rng.uniform(0.05, 0.3) * height), int(rng.uniform(0.05, 0.3) * width)
        outside[top : height - top // 2, left : width - left // 3] = False
        share = float(rng.uniform(0.1, 0.6))
        painter.stain(
            painter.islands(share, within=~ndimage.binary_dilation(outside, iterations=3))
        )
        scene = painter.finish()
        scene.overview[outside] = value
        scene.tissue[outside] = False
        return scene

    return paint


def _inked(*, on_tissue: bool) -> Callable[[np.random.Generator], Scene]:
    def paint(rng: np.random.Generator) -> Scene:
        painter = _Painter(rng)
        where = painter.islands(float(rng.uniform(0.1, 0.4)))
        painter.stain(where, None, float(rng.uniform(0.5, 1.5)))
        rows, columns = np.indices(painter.shape)
        for _ in range(int(rng.integers(1, 4))):
            far = ~ndimage.binary_dilation(painter.tissue, iterations=12)
            places = np.argwhere(painter.tissue if on_tissue else far)
            y, x = places[rng.integers(len(places))]
            long, short, turn = rng.uniform(12, 40), rng.uniform(4, 12), rng.uniform(0, np.pi)
            along = (rows - y) * np.sin(turn) + (columns - x) * np.cos(turn)
            across = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
            blot = (along / long) ** 2 + (across / short) ** 2 + 0.15 * painter.field(4) < 1
            painter.ink(blot if on_tissue else blot & far, str(rng.choice([*INKS])))
        return painter.finish()

    return paint


def _dirty(rng: np.random.Generator) -> Scene:
    """Edges of coverslips, bubbles and dust."""
    painter = _Painter(rng)
    painter.stain(
        painter.islands(float(rng.uniform(0.05, 0.4))), None, float(rng.uniform(0.4, 1.5))
    )
    rows, columns = np.indices(painter.shape)
    grey = np.zeros(painter.shape)
    marks = np.zeros(painter.shape, bool)
    for _ in range(int(rng.integers(1, 4))):  # bubbles
        y, x = rng.uniform(0, 1, 2) * painter.shape
        ring = np.abs(np.hypot(rows - y, columns - x) - rng.uniform(10, 40)) < rng.uniform(0.6, 1.5)
        grey[ring] += rng.uniform(0.1, 0.6)
        marks |= ring
    slope, start = rng.uniform(-0.03, 0.03), rng.uniform(0.05, 0.2) * painter.shape[0]
    below = rows - start - slope * columns
    line = np.abs(below) < rng.uniform(0.6, 1.6)
    grey[line] += rng.uniform(0.1, 0.5)
    painter.density += np.where(below < 0, rng.uniform(0, 0.02), 0)[..., None]  # no medium there
    marks |= line
    for _ in range(int(rng.integers(10, 60))):  # dust
        y, x = rng.uniform(0, 1, 2) * painter.shape
        speck = np.hypot(rows - y, columns - x) < rng.uniform(0.5, 3.0)
        grey[speck] += rng.uniform(0.1, 0.8)
    painter.density += grey[..., None]
    painter.ignored |= ndimage.binary_dilation(marks, iterations=3) & ~painter.tissue
    return painter.finish()


def _fatty(rng: np.random.Generator) -> Scene:
    painter = _Painter(rng, noise=float(rng.uniform(0.2, 1.0)), jpeg=int(rng.choice([0, 90])))
    where = painter.islands(float(rng.uniform(0.15, 0.5)))
    painter.fat(where)
    painter.stain(
        where & (painter.field(30) > rng.uniform(0, 2.5)), "he", float(rng.uniform(0.5, 1.4))
    )
    return painter.finish()


def _ink_of(colour: str) -> Callable[[np.random.Generator], Scene]:
    """Pen ink of one colour across the edge of eosin and haematoxylin."""

    def paint(rng: np.random.Generator) -> Scene:
        painter = _Painter(rng)
        where = painter.islands(float(rng.uniform(0.1, 0.4)))
        painter.stain(where, "he", float(rng.uniform(0.4, 1.4)))
        edge = np.argwhere(painter.tissue & ~ndimage.binary_erosion(painter.tissue))
        y, x = edge[rng.integers(len(edge))]
        rows, columns = np.indices(painter.shape)
        turn, half_width = rng.uniform(0, np.pi), rng.uniform(3, 9)
        across = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
        painter.ink(np.abs(across + 3 * painter.field(15)) < half_width, colour)
        return painter.finish()

    return paint


def _frozen(rng: np.random.Generator) -> Scene:
    """A frozen section: thick and uneven, with clefts where ice crystals were."""
    painter = _Painter(rng)
    where = painter.islands(float(rng.uniform(0.1, 0.5)))
    painter.stain(where, "he", float(rng.uniform(0.5, 1.4)))
    clefts = painter.field(0.8) > rng.uniform(1.2, 1.8)
    painter.density[clefts] *= rng.uniform(0.1, 0.5)
    painter.density *= np.exp(0.3 * painter.field(20))[..., None]
    return painter.finish()


def _cores(rng: np.random.Generator) -> Scene:
    """Needle biopsies of 0.3 to 0.5 mm width, about one hundredth of the slide."""
    painter = _Painter(rng, shape=(900, 1200))
    rows, columns = np.indices(painter.shape)
    where = np.zeros(painter.shape, bool)
    for _ in range(2):
        y, x = rng.uniform(0.2, 0.8, 2) * painter.shape
        turn, long, short = rng.uniform(0, np.pi), rng.uniform(50, 80), rng.uniform(18, 30)
        along = (rows - y) * np.sin(turn) + (columns - x) * np.cos(turn)
        across = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
        across = across + 6 * painter.field(25) + painter.field(4)
        where |= (np.abs(along) < long) & (np.abs(across) < short)
    painter.stain(where, None, float(rng.uniform(0.4, 1.4)))
    return painter.finish()


def _array(rng: np.random.Generator) -> Scene:
    """A tissue microarray: discs of 0.6 mm every millimetre, some of them lost, of any strength."""
    painter = _Painter(rng, shape=(400, 520))
    rows, columns = np.indices(painter.shape)
    stain = str(rng.choice([*STAINS]))
    for y in range(60, 360, 125):
        for x in range(60, 480, 125):
            radius = rng.uniform(30, 38)
            disc = np.hypot(rows - y, columns - x) + 2 * painter.field(8) < radius
            if rng.random() < 0.85:
                painter.stain(disc, stain, float(rng.uniform(0.3, 1.4)))
    return painter.finish()


def _noisy(rng: np.random.Generator) -> Scene:
    painter = _Painter(rng, noise=float(rng.uniform(4, 12)), jpeg=0)
    painter.stain(painter.islands(float(rng.uniform(0.1, 0.5))), None, float(rng.uniform(0.6, 1.6)))
    return painter.finish()


def _compressed(rng: np.random.Generator) -> Scene:
    painter = _Painter(rng, noise=float(rng.uniform(0, 3)), jpeg=int(rng.integers(30, 60)))
    painter.stain(painter.islands(float(rng.uniform(0.1, 0.5))), None, float(rng.uniform(0.5, 1.6)))
    return painter.finish()


GROUPS: dict[str, Callable[[np.random.Generator], Scene]] = {
    **{f"glass: {name}": _on_glass(name) for name in GLASSES_RGB},
    **{f"stain: {name}": _stained(name, 0.3, 1.6) for name in STAINS},
    "stain: pale": _pale(None, 0.12, 0.3),
    "stain: dark": _stained(None, 1.6, 2.6),
    "unlike: side by side": _unlike,
    "unlike: touching": _unlike_touching,
    **{f"tissue: {share:.0%}": _covered(share) for share in (0, 0.01, 0.5, 0.95, 1.0)},
    "padding: black": _padded(0),
    "padding: white": _padded(255),
    "ink: beside tissue": _inked(on_tissue=False),
    "ink: on tissue": _inked(on_tissue=True),
    "edges, bubbles, dust": _dirty,
    "fat": _fatty,
    "noise": _noisy,
    "compression": _compressed,
    **{f"other glass: {name}": _on_glass(name) for name in OTHER_GLASSES_RGB},
    **{f"other stain: {name}": _stained(name, 0.3, 1.4) for name in OTHER_STAINS},
    **{f"ink across an edge: {name}": _ink_of(name) for name in INKS},
    "dab alone, pale": _pale("dab alone", 0.2, 0.4),
    "frozen section": _frozen,
    "needle biopsies": _cores,
    "tissue microarray": _array,
}
"""Painters by group."""


def paint_scene(group: str, seed: int) -> Scene:
    """Return the overview and the tissue of one slide of a group, shape (height, width)."""
    return GROUPS[group](np.random.default_rng([seed, *map(ord, group)]))
