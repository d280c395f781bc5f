"""Generated head scans as grey JPEG slices, with bleeds of several kinds at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["KINDS", "LABELS", "paint_head", "write_cohort"]

Floats = npt.NDArray[np.float32]

KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
"""Kinds of bleeds, named after their location."""
LABELS = ("any", *KINDS)
_SHARES = (0.15, 0.3, 0.25, 0.25, 0.3)  # of scans with a bleed that have each kind
_SHARE_BLEEDING = 0.6
_BLOOD, _BRAIN, _WATER, _BONE = 150.0, 110.0, 80.0, 250.0  # grey levels of 255


def paint_head(
    rng: np.random.Generator, *, height: float, kinds: tuple[str, ...] = (), side_px: int = 650
) -> npt.NDArray[np.uint8]:
    """Paint one slice: a skull around brain with ventricles, and bleeds.

    Parameters
    ----------
    rng
        Source of the random numbers.
    height
        Position in the scan from 0, the base, to 1, the crown; a head is widest in the middle.
    kinds
        Bleeds on this slice, of :data:`KINDS`.
    side_px
        Side of the slice, px.

    Returns
    -------
    numpy.ndarray
        Grey levels, shape (side_px, side_px).
    """
    x, y = _grid(side_px)
    turn, size = rng.uniform(-0.15, 0.15), 0.55 + 0.45 * np.sin(np.pi * (0.15 + 0.75 * height))
    across = (x * float(np.cos(turn)) + y * float(np.sin(turn))) / float(0.36 * size)
    along = (y * float(np.cos(turn)) - x * float(np.sin(turn))) / float(0.44 * size)
    radius, angle = np.hypot(across, along), np.arctan2(along, across)
    brain = radius < 0.9
    grey = np.where(brain, np.float32(_BRAIN), np.where(radius < 1, np.float32(_BONE), 4))
    grey += 6 * np.sin(9 * across + float(rng.uniform(0, 6))) * brain
    furrow = brain & (radius > 0.72) & (np.sin(int(rng.integers(14, 20)) * angle) > 0.8)
    grey[furrow] = _WATER
    horns = np.hypot((np.abs(across) - 0.13) / 0.09, along / 0.35) < 1 - abs(height - 0.55) * 2
    grey[horns] = _WATER
    for kind in kinds:
        blood = _blood(rng, kind, (across, along), (radius, angle), horns=horns, furrow=furrow)
        grey[blood & brain] = _BLOOD + rng.normal(0, 5)
    noise = rng.standard_normal(grey.shape, dtype=np.float32)
    return np.asarray(np.clip(np.rint(grey + 9 * noise * (radius < 1)), 0, 255), np.uint8)


def write_cohort(folder: Path, *, n_scans: int, seed: int = 0, side_px: int = 650) -> None:
    """Write scans of 20 to 40 JPEG slices, and their tables.

    ``series.csv`` lists the slices, and ``slices.csv`` has one row per slice with all labels.

    Parameters
    ----------
    folder
        Folder of the output.
    n_scans
        Scans, each of another patient.
    seed
        Source of the random numbers.
    side_px
        Side of a slice, px.
    """
    rng = np.random.default_rng((seed, n_scans))
    images, labels = ["bag_id,path,order"], [f"slide_id,patient_id,source,{','.join(LABELS)}"]
    for number in range(n_scans):
        name, n_slices = f"s{seed}_{number:03d}", int(rng.integers(20, 41))
        (folder / name).mkdir(parents=True)
        bleeds = _bleeds(rng, n_slices)
        for index in range(n_slices):
            kinds = tuple(kind for kind in KINDS if index in bleeds.get(kind, ()))
            pixels = paint_head(rng, height=index / n_slices, kinds=kinds, side_px=side_px)
            source = f"{name}/{index:02d}.jpg"
            Image.fromarray(pixels).save(folder / source, quality=90)
            images.append(f"{name},{source},{index}")
            scan_labels = [int(bool(kinds)), *(int(kind in kinds) for kind in KINDS)]
            labels.append(f"{name},p{name},{source},{','.join(map(str, scan_labels))}")
    (folder / "series.csv").write_text("\n".join(images) + "\n")
    (folder / "slices.csv").write_text("\n".join(labels) + "\n")


@cache
def _grid(side_px: int) -> tuple[Floats, Floats]:
    """Return x and y of each pixel, -0.5 to 0.5, each of shape (side_px, side_px)."""
    line = np.arange(side_px, dtype=np.float32) / side_px - np.float32(0.5)
    return line[None, :].repeat(side_px, axis=0), line[:, None].repeat(side_px, axis=1)


def _blood(
    rng: np.random.Generator,
    kind: str,
    position: tuple[Floats, Floats],
    polar: tuple[Floats, Floats],
    *,
    horns: npt.NDArray[np.bool_],
    furrow: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Return the pixels of a bleed of that kind."""
    (across, along), (radius, angle) = position, polar
    towards = float(rng.uniform(-np.pi, np.pi))  # direction from the centre of the head
    distance = np.abs((angle - towards + np.pi) % (2 * np.pi) - np.pi)  # angle from that direction
    if kind == "epidural":
        bulge = 0.22 * np.sqrt(np.clip(1 - (distance / 0.45) ** 2, 0, 1))
        return (distance < 0.45) & (radius > 0.9 - bulge)
    if kind == "subdural":
        return (distance < 1.1) & (radius > rng.uniform(0.8, 0.85))
    if kind == "subarachnoid":
        return furrow & (distance < 1.2)
    if kind == "intraventricular":
        return horns & (along > rng.uniform(-0.1, 0.15))
    far_x, far_y = 0.45 * float(np.cos(towards)), 0.45 * float(np.sin(towards))
    return np.hypot(across - far_x, along - far_y) < float(rng.uniform(0.08, 0.18))


def _bleeds(rng: np.random.Generator, n_slices: int) -> dict[str, range]:
    """Return the slices of each kind of bleed in a scan: two to six neighbours."""
    if rng.random() > _SHARE_BLEEDING:
        return {}
    chosen = [kind for kind, share in zip(KINDS, _SHARES, strict=True) if rng.random() < share]
    result = {}
    for kind in chosen or [KINDS[int(rng.integers(len(KINDS)))]]:
        low, high = (0.4, 0.6) if kind == "intraventricular" else (0.15, 0.75)
        first = int(rng.uniform(low, high) * n_slices)
        result[kind] = range(first, min(n_slices, first + int(rng.integers(2, 7))))
    return result
