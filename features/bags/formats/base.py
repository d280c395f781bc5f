"""What another program's file says of one slide, and the bag of ours that it becomes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from features.bags.bag import UNKNOWN, UNKNOWN_COORD, Bag, BagMeta, Fingerprint, as_json
from features.errors import BagError
from features.slides.resolution import Resolution, resolve_mpp

__all__ = [
    "ForeignBag",
    "ImportDefaults",
    "find_files",
    "number",
    "text",
    "to_bag",
    "unknown_fields",
]

_NEVER_SAID = ("slide_content_id", "tissue", "tissue_fraction", "transform", "weights_sha256")


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignBag:
    """One slide as another program stored it; what it does not say is 0 or empty."""

    features: npt.NDArray[Any]
    """Embeddings, shape (n_tiles, dim), or (1, n_tiles, dim) with a batch axis."""
    coords: npt.NDArray[Any] | None
    """Places of the tiles, shape (n_tiles, 2 or more), x then y, or with a batch axis as well."""
    coords_are: Literal["corners_px0", "centres_px0", "corners_um"] = "corners_px0"
    """Which point of a tile ``coords`` names, and in level-0 px or µm."""
    encoder: str = ""
    """Name of the backbone."""
    tile_px: int = 0
    """Side of a tile as it was embedded, px."""
    target_mpp: float = 0.0
    """Its resolution, µm per px."""
    overlap_px: int | None = None
    """Overlap of neighbouring tiles, px."""
    span_px0: float = 0.0
    """Side of a tile in level-0 px."""
    size_px0: tuple[int, int] = (0, 0)
    """Width and height of the slide in level-0 px."""
    mpp: float = 0.0
    """µm per level-0 px."""
    mpp_is_nominal: bool = False
    """Whether ``mpp`` comes from a round magnification such as 40, not from the scanner."""


@dataclass(frozen=True, kw_only=True)
class ImportDefaults:
    """What the user says about bags to import; used only where their files are silent."""

    encoder: str = ""
    """Name of the backbone; where a file holds several embeddings, the one to take."""
    tile_px: int = 0
    """Side of a tile, px."""
    target_mpp: float = 0.0
    """Its resolution, µm per px."""
    slide_mpp: float | None = None
    """µm per level-0 px of all slides; this and ``mpp_by_slide`` overrule the file."""
    mpp_by_slide: Mapping[str, float] = field(default_factory=dict)
    """µm per level-0 px of single slides."""


def to_bag(
    foreign: ForeignBag, *, path: Path, slide_id: str, layout: str, defaults: ImportDefaults
) -> Bag:
    """A bag of ours, in reading order, that says what it does not know.

    Without coordinates, all are (-1, -1). A resolution that nobody states is assumed, as for
    slides; one that is only a nominal magnification is used, but counts as assumed.

    Parameters
    ----------
    foreign
        What the file says.
    path
        The file, for messages.
    slide_id
        Name of the slide.
    layout
        Which program's layout it was, kept in ``software``.
    defaults
        What the user adds.

    Raises
    ------
    BagError
        If embeddings or coordinates are no tables of numbers of the same length.
    ResolutionError
        If a given resolution is implausible.
    """
    features = _without_batch_axis(path, foreign.features, "features")
    resolution = _resolution(foreign, defaults.mpp_by_slide.get(slide_id, defaults.slide_mpp), path)
    made = _fingerprint(foreign, defaults, dim=features.shape[1])
    span_x, span_y = (
        foreign.span_px0 or made.tile_px * made.target_mpp / mpp
        for mpp in (resolution.mpp_x, resolution.mpp_y)
    )
    coords = _corners_px0(path, foreign, resolution, (span_x, span_y), n_tiles=len(features))
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    meta = BagMeta(
        slide_id=slide_id,
        fingerprint=made,
        width_px0=foreign.size_px0[0],
        height_px0=foreign.size_px0[1],
        mpp_x=resolution.mpp_x,
        mpp_y=resolution.mpp_y,
        mpp_source=resolution.source,
        span_x_px0=span_x,
        span_y_px0=span_y,
        # Of bags without tiles, which are all alike, the name: they are no copies of each other.
        slide_content_id=f"{UNKNOWN}:"
        + hashlib.sha256(features.tobytes() or slide_id.encode()).hexdigest(),
        n_tried=len(features),
        empty_reason="" if len(features) else f"the {layout} file holds no tile",
        software=as_json(
            imported_from=layout, unknown=_unknown(foreign, made, source=resolution.source)
        ),
    )
    return Bag(
        features=features[order],
        coords_px0=coords[order],
        tissue_fraction=np.full(len(features), np.nan, np.float32),
        meta=meta,
    )


def unknown_fields(meta: BagMeta) -> tuple[str, ...]:
    """What an imported bag does not know; empty for a bag that was embedded here."""
    try:
        software = json.loads(meta.software or "{}")
    except ValueError:
        return ()
    names = software.get("unknown", []) if isinstance(software, dict) else []
    return tuple(map(str, names)) if isinstance(names, list) else ()


def find_files(source: Path, *patterns: str, expected: str) -> dict[str, Path]:
    """Files by slide id, of the first pattern that finds any.

    Parameters
    ----------
    source
        Folder to look in.
    patterns
        Glob patterns, preferred first.
    expected
        What should be there, for the message.

    Raises
    ------
    BagError
        If no pattern finds a file, or one finds files in several folders.
    """
    for pattern in patterns:
        found = sorted(p for p in source.glob(pattern) if not p.name.startswith("."))
        folders = sorted({path.parent for path in found})
        if len(folders) > 1:
            raise BagError(
                source,
                actual=f"bags in several folders: {', '.join(map(str, folders[:5]))}",
                expected="one set of bags",
                hint="Name one of these folders.",
            )
        if found:
            return {path.stem: path for path in found}
    raise BagError(source, actual="no such bag in it", expected=expected, hint="Check --from.")


def number(attributes: Mapping[str, Any], name: str) -> float:
    """A positive, finite number among attributes; 0 where there is none."""
    value = attributes.get(name)
    if isinstance(value, tuple) and value:
        value = value[0]
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0


def text(attributes: Mapping[str, Any], name: str) -> str:
    """A text among attributes; empty where there is none, or where it says ``None``."""
    value = attributes.get(name)
    return value if isinstance(value, str) and value != "None" else ""


def _fingerprint(foreign: ForeignBag, defaults: ImportDefaults, *, dim: int) -> Fingerprint:
    return Fingerprint(
        encoder=foreign.encoder or defaults.encoder or UNKNOWN,
        weights_sha256=UNKNOWN,
        transform=as_json(unknown=True),
        dim=dim,
        tile_px=foreign.tile_px or defaults.tile_px,
        target_mpp=foreign.target_mpp or defaults.target_mpp,
        overlap_px=foreign.overlap_px or 0,
        tissue=as_json(unknown=True),
    )


def _unknown(foreign: ForeignBag, made: Fingerprint, *, source: str) -> list[str]:
    """What neither the file nor the user said, sorted."""
    known = {
        "coords": foreign.coords is not None,
        "encoder": made.encoder != UNKNOWN,
        "mpp": source != "assumed",
        "overlap_px": foreign.overlap_px is not None,
        "size": all(foreign.size_px0),
        "target_mpp": made.target_mpp > 0,
        "tile_px": made.tile_px > 0,
    }
    return sorted([*_NEVER_SAID, *(name for name, is_known in known.items() if not is_known)])


def _resolution(foreign: ForeignBag, given_mpp: float | None, path: Path) -> Resolution:
    file_mpp = (foreign.mpp, foreign.mpp) if foreign.mpp else None
    found = resolve_mpp(file_mpp, given_mpp=given_mpp, where=path)
    if found.source == "file" and foreign.mpp_is_nominal:
        return Resolution(mpp_x=found.mpp_x, mpp_y=found.mpp_y, source="assumed")
    return found


def _without_batch_axis(path: Path, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    table = array[0] if array.ndim == 3 and len(array) == 1 else array
    if table.ndim != 2 or table.dtype.kind not in "fiu" or not table.shape[1]:
        raise BagError(
            path,
            actual=f"{name} of shape {array.shape} and type {array.dtype}",
            expected="one row of numbers a tile",
        )
    if name == "features" and table.dtype != np.float16:
        table = table.astype(np.float32)
    return np.ascontiguousarray(table)


def _corners_px0(
    path: Path,
    foreign: ForeignBag,
    resolution: Resolution,
    span: tuple[float, ...],
    *,
    n_tiles: int,
) -> npt.NDArray[np.int64]:
    """Upper left corners, shape (n_tiles, 2), level-0 px, whatever the file gives."""
    if foreign.coords is None:
        return np.full((n_tiles, 2), UNKNOWN_COORD, np.int64)
    coords = _without_batch_axis(path, foreign.coords, "coords")[:, :2].astype(np.float64)
    if coords.shape != (n_tiles, 2) or not (np.abs(coords) < 2**53).all():
        raise BagError(
            path,
            actual=f"coords of shape {foreign.coords.shape}, or not finite",
            expected=f"x and y of each of {n_tiles} tiles",
        )
    if foreign.coords_are == "corners_um":
        coords /= (resolution.mpp_x, resolution.mpp_y)
    elif foreign.coords_are == "centres_px0":
        coords -= np.asarray(span) / 2
    return np.rint(coords).astype(np.int64)
