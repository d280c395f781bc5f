"""Provenance of training slides, and in what the slides of a new patient differ from all of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from features.bags.bag import TILE, BagMeta
from features.utils.files import atomic_write

__all__ = [
    "STAIN_DEGREES",
    "Provenance",
    "ProvenanceNote",
    "read_provenance",
    "stain_direction",
    "write_provenance",
]

_FILE = "provenance.json"
_MPP_FACTOR = 1.5  # objectives differ by a factor of 2
_GLASS_LEVELS = (
    24  # of 255, in the channel that differs most; centres with the same glass differ by 5
)
STAIN_DEGREES = 15.0
"""Angle between two stains above which they differ. Of pairs of pictures of haematoxylin and eosin,
6 % differ by more; haematoxylin, eosin and diaminobenzidine (Ruifrok and Johnston, 2001) by 37 to
48 from each other."""
_LEAST_DENSITY = 0.05  # of tissue that is stained at all, base e
_MAX_NAMED = 4


@dataclass(frozen=True)
class ProvenanceNote:
    """One difference from all training slides: its kind (such as ``glass``), and a description."""

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the bags of the training slides state about scanner, resolution and software.

    ``mpp_is_assumed`` holds the values that occur, ``mpp_range`` are the least and greatest µm per
    level-0 px (0 if unknown), ``glass_rgb`` the colours of glass, ``stains`` the directions of the
    optical density of tissue (red, green, blue), of length 1, ``readers`` the libraries that read
    the slides, and ``software`` the versions that occur, by name. Bags of earlier versions state
    neither stain nor reader.
    """

    mpp_is_assumed: tuple[bool, ...]
    mpp_range: tuple[float, float]
    glass_rgb: tuple[tuple[int, int, int], ...]
    software: Mapping[str, tuple[str, ...]]
    stains: tuple[tuple[float, float, float], ...] = ()
    readers: tuple[str, ...] = ()

    @classmethod
    def of(cls, metas: Iterable[BagMeta]) -> Self:
        """Return the provenance of slides from the metadata of their bags, at least one."""
        bags = list(metas)
        slides = [meta for meta in bags if meta.kind == TILE]
        mpp = [_mpp(meta) for meta in slides if _mpp(meta) > 0]
        software: dict[str, set[str]] = {}
        for meta in bags:
            for name, version in _software(meta).items():
                software.setdefault(name, set()).add(version)
        return cls(
            mpp_is_assumed=tuple(sorted({_is_assumed(meta) for meta in slides})),
            mpp_range=(min(mpp, default=0.0), max(mpp, default=0.0)),
            glass_rgb=tuple(sorted({_rgb(meta.background_rgb) for meta in slides})),
            stains=tuple(sorted({stain for meta in slides if (stain := _stain(meta))})),
            readers=tuple(sorted({meta.reader for meta in slides if meta.reader})),
            software={name: tuple(sorted(found)) for name, found in sorted(software.items())},
        )

    def compare(self, meta: BagMeta) -> tuple[ProvenanceNote, ...]:
        """Return in what a slide differs from all training slides."""
        notes = []
        if meta.kind == TILE:
            notes += self._compare_slide(meta)
        differing = {
            name: version
            for name, version in _software(meta).items()
            if name in self.software and version not in self.software[name]
        }
        if differing:
            named = [
                f"{name} {version}, not {' or '.join(self.software[name])}"
                for name, version in list(differing.items())[:_MAX_NAMED]
            ]
            more = f" and {len(differing) - _MAX_NAMED} more" if len(differing) > _MAX_NAMED else ""
            notes.append(ProvenanceNote("software", f"{'; '.join(named)}{more}"))
        return tuple(notes)

    def _compare_slide(self, meta: BagMeta) -> list[ProvenanceNote]:
        notes, mpp = [], _mpp(meta)
        low, high = self.mpp_range
        if self.mpp_is_assumed and _is_assumed(meta) not in self.mpp_is_assumed:
            words = (
                "assumed, and stated for all training slides" if _is_assumed(meta)
                else f"stated ({mpp:.3g} µm/px), and assumed for all training slides"
            )  # fmt: skip
            notes.append(ProvenanceNote("resolution", f"resolution {words}"))
        elif low > 0 and mpp > 0 and not low / _MPP_FACTOR < mpp < high * _MPP_FACTOR:
            words = f"{mpp:.3g} µm/px, and {low:.3g} to {high:.3g} in training"
            notes.append(ProvenanceNote("resolution", words))
        if self.glass_rgb:
            own = np.array(meta.background_rgb)
            nearest = np.abs(np.array(self.glass_rgb) - own).max(axis=1).min()
            if nearest > _GLASS_LEVELS:
                words = f"glass {_rgb(meta.background_rgb)}, {nearest} from any training slide"
                notes.append(ProvenanceNote("glass", words))
        if self.stains and (stain := _stain(meta)):
            degrees = np.degrees(np.arccos(np.clip(np.array(self.stains) @ stain, -1, 1))).min()
            if degrees > STAIN_DEGREES:
                words = f"stain {degrees:.0f} degrees of colour from any training slide"
                notes.append(ProvenanceNote("stain", words))
        if self.readers and meta.reader and meta.reader not in self.readers:
            words = f"read by {meta.reader}, and in training by {' or '.join(self.readers)}"
            notes.append(ProvenanceNote("reader", words))
        return notes


def stain_direction(
    tissue_rgb: Iterable[float], glass_rgb: Iterable[float]
) -> tuple[float, float, float] | None:
    """Return the direction of the optical density of tissue on glass, of length 1.

    None where tissue is hardly darker than glass, or not known, which is a negative colour.
    """
    tissue, glass = np.array([*tissue_rgb], np.float64), np.array([*glass_rgb], np.float64)
    if tissue.min() < 0:
        return None
    density = np.log((np.maximum(glass, tissue) + 1) / (tissue + 1))
    length = float(np.linalg.norm(density))
    return None if length < _LEAST_DENSITY else _stain_of((density / length).round(4).tolist())


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write ``provenance.json``; raises OutputError if it cannot be written."""
    with atomic_write(folder / _FILE) as temporary:
        temporary.write_text(json.dumps(asdict(provenance)) + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> Provenance | None:
    """Read ``provenance.json``; None from a run of a version without it.

    Raises
    ------
    LookupError, OSError, TypeError, ValueError
        If the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    low, high = values["mpp_range"]
    return Provenance(
        mpp_is_assumed=tuple(map(bool, values["mpp_is_assumed"])),
        mpp_range=(float(low), float(high)),
        glass_rgb=tuple(_rgb(colour) for colour in values["glass_rgb"]),
        software={name: tuple(map(str, found)) for name, found in values["software"].items()},
        stains=tuple(_stain_of(direction) for direction in values.get("stains", ())),
        readers=tuple(map(str, values.get("readers", ()))),
    )


def _is_assumed(meta: BagMeta) -> bool:
    return meta.mpp_source == "assumed"


def _mpp(meta: BagMeta) -> float:
    product = meta.mpp_x * meta.mpp_y
    return math.sqrt(product) if product > 0 and math.isfinite(product) else 0.0


def _rgb(colour: Iterable[int]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def _stain(meta: BagMeta) -> tuple[float, float, float] | None:
    """Return the stain of a slide; None where it is not known."""
    return stain_direction(meta.tissue_rgb, meta.background_rgb)


def _stain_of(direction: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in direction)
    return red, green, blue


def _software(meta: BagMeta) -> dict[str, str]:
    """Return the versions that a bag states; empty where it states none."""
    try:
        versions = json.loads(meta.software or "{}")
    except ValueError:
        return {}
    if not isinstance(versions, dict):
        return {}
    return {name: version for name, version in versions.items() if isinstance(version, str)}
