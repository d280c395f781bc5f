"""Common representation of another program's bag, and its conversion to ours."""

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

from features.bags.bag import (
    LARGEST_COORD_PX0,
    UNKNOWN,
    UNKNOWN_COORD,
    Bag,
    BagMeta,
    Fingerprint,
    as_json,
)
from features.bags.embeddings import as_embeddings
from features.errors import BagError
from features.slides.base import StatedMpp
from features.slides.resolution import Resolution, resolve_mpp

__all__ = [
    "CHECK_LAYOUT",
    "COPY_AGAIN",
    "ForeignBag",
    "ImportDefaults",
    "number",
    "text",
    "to_bag",
    "unknown_fields",
]

CHECK_LAYOUT = "Check --from; one vector per slide is imported with --slide-vectors instead."
"""Advice on files that are not of the layout that was named."""
COPY_AGAIN = "Copy it again, or make its embeddings again with the program that wrote it."
"""Advice on files that are damaged."""

_HINT = "Make its embeddings again with the program that wrote the file."
_NEVER_STATED = ("slide_content_id", "tissue", "tissue_fraction", "transform", "weights_sha256")


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignBag:
    """One slide as another program stored it; what its file does not state is 0, empty or None.

    ``features`` has shape (n_tiles, dim) and ``coords`` (n_tiles, 2 or more), x then y, both with
    an optional batch axis. ``coords_are`` corners or centres of tiles, in level-0 px or µm.
    ``tile_px`` and ``overlap_px`` are px of a tile; ``span_px0``, the side of a tile, and
    ``size_px0``, width and height of the slide, are level-0 px. ``target_mpp`` and ``mpp`` are µm
    per px of a tile and of level 0; a nominal ``mpp`` follows from a magnification such as 40.
    ``slide_name`` is the slide that the file says it is of.
    """

    features: npt.NDArray[Any]
    coords: npt.NDArray[Any] | None
    coords_are: Literal["corners_px0", "centres_px0", "corners_um"] = "corners_px0"
    encoder: str = ""
    tile_px: int = 0
    target_mpp: float = 0.0
    overlap_px: int | None = None
    span_px0: float = 0.0
    size_px0: tuple[int, int] = (0, 0)
    mpp: float = 0.0
    mpp_is_nominal: bool = False
    slide_name: str = ""


@dataclass(frozen=True, kw_only=True)
class ImportDefaults:
    """Values for imported bags, used where their files do not state them.

    ``tile_px`` is the side of a tile in px, ``target_mpp`` its resolution in µm per px.
    ``slide_mpp``, of all slides, and ``mpp_by_slide``, by slide id, are µm per level-0 px and
    override the file. ``encoder`` also chooses among several embeddings in a file.
    """

    encoder: str = ""
    tile_px: int = 0
    target_mpp: float = 0.0
    slide_mpp: float | None = None
    mpp_by_slide: Mapping[str, float] = field(default_factory=dict)


def to_bag(
    foreign: ForeignBag, *, path: Path, slide_id: str, layout: str, defaults: ImportDefaults
) -> Bag:
    """Return the bag, in reading order, with a list of the fields that are not known.

    Without coordinates, all are (-1, -1). A resolution that nothing states is assumed, as for
    slides; one that is only a nominal magnification is used, but counts as assumed. ``path`` names
    the file in messages; ``layout``, the format, is kept in ``software``. Raises BagError if
    embeddings, shape (n_tiles, dim), and coordinates, shape (n_tiles, 2), level-0 px or µm, are not
    numbers of as many tiles, or the embeddings cannot be an encoder's, ResolutionError if a given
    resolution is implausible.
    """
    features = _without_batch_axis(path, foreign.features, "features")
    resolution = _resolution(foreign, defaults.mpp_by_slide.get(slide_id, defaults.slide_mpp), path)
    fingerprint = _fingerprint(foreign, defaults, dim=features.shape[1])
    span_x, span_y = (
        foreign.span_px0 or fingerprint.tile_px * fingerprint.target_mpp / mpp
        for mpp in (resolution.mpp_x, resolution.mpp_y)
    )
    coords = _corners_px0(path, foreign, resolution, (span_x, span_y), n_tiles=len(features))
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    meta = BagMeta(
        slide_id=slide_id,
        fingerprint=fingerprint,
        width_px0=foreign.size_px0[0],
        height_px0=foreign.size_px0[1],
        mpp_x=resolution.mpp_x,
        mpp_y=resolution.mpp_y,
        mpp_source=resolution.source,
        span_x_px0=span_x,
        span_y_px0=span_y,
        # Empty bags all have the same content: hashing the name keeps them from counting as copies.
        slide_content_id=f"{UNKNOWN}:"
        + hashlib.sha256(features.tobytes() or slide_id.encode()).hexdigest(),
        n_tried=len(features),
        empty_reason="" if len(features) else f"the {layout} file holds no tile",
        software=as_json(
            imported_from=layout,
            unknown=_list_unknown(foreign, fingerprint, source=resolution.source),
        ),
    )
    return Bag(
        features=features[order],
        coords_px0=coords[order],
        tissue_fraction=np.full(len(features), np.nan, np.float32),
        meta=meta,
    )


def unknown_fields(meta: BagMeta) -> tuple[str, ...]:
    """Return the fields that an imported bag does not know; empty for a bag of `mil embed`."""
    try:
        software = json.loads(meta.software or "{}")
    except ValueError:
        return ()
    names = software.get("unknown", []) if isinstance(software, dict) else []
    return tuple(map(str, names)) if isinstance(names, list) else ()


def number(attributes: Mapping[str, Any], name: str) -> float:
    """Return a positive, finite attribute as a number; 0 if there is none."""
    value = attributes.get(name)
    if isinstance(value, tuple) and value:
        value = value[0]
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return result if math.isfinite(result) and result > 0 else 0.0


def text(attributes: Mapping[str, Any], name: str) -> str:
    """Return an attribute that is text; empty if there is none, or it is ``None``."""
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


def _list_unknown(foreign: ForeignBag, fingerprint: Fingerprint, *, source: str) -> list[str]:
    """Return the fields that neither the file nor the user states, sorted."""
    known = {
        "coords": foreign.coords is not None,
        "encoder": fingerprint.encoder != UNKNOWN,
        "mpp": source != "assumed",
        "overlap_px": foreign.overlap_px is not None,
        "size": all(foreign.size_px0),
        "target_mpp": fingerprint.target_mpp > 0,
        "tile_px": fingerprint.tile_px > 0,
    }
    return sorted([*_NEVER_STATED, *(name for name, is_known in known.items() if not is_known)])


def _resolution(foreign: ForeignBag, given_mpp: float | None, path: Path) -> Resolution:
    stated = StatedMpp(x=foreign.mpp, y=foreign.mpp, field=str(path)) if foreign.mpp else None
    resolution = resolve_mpp(stated, given_mpp=given_mpp, where=path)
    if resolution.source == "file" and foreign.mpp_is_nominal:
        return Resolution(mpp_x=resolution.mpp_x, mpp_y=resolution.mpp_y, source="assumed")
    return resolution


def _without_batch_axis(path: Path, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    table = array[0] if array.ndim == 3 and len(array) == 1 else array
    if table.ndim != 2 or table.dtype.kind not in "fiu" or not table.shape[1]:
        raise BagError(
            path,
            actual=f"{name} of shape {array.shape} and type {array.dtype}",
            expected="one row of numbers per tile",
        )
    return np.ascontiguousarray(
        as_embeddings(path, table, hint=_HINT) if name == "features" else table
    )


def _corners_px0(
    path: Path,
    foreign: ForeignBag,
    resolution: Resolution,
    span: tuple[float, ...],
    *,
    n_tiles: int,
) -> npt.NDArray[np.int64]:
    """Return the upper left corners, shape (n_tiles, 2), level-0 px.

    Where the span follows from an assumed resolution, no tile begins before its slide does.
    """
    if foreign.coords is None:
        return np.full((n_tiles, 2), UNKNOWN_COORD, np.int64)
    coords = _without_batch_axis(path, foreign.coords, "coords")[:, :2].astype(np.float64)
    if coords.shape != (n_tiles, 2) or not (np.abs(coords) <= LARGEST_COORD_PX0).all():
        raise BagError(
            path,
            actual=f"coords of shape {foreign.coords.shape}, or not finite",
            expected=f"x and y of each of {n_tiles} tiles",
        )
    if foreign.coords_are == "corners_um":
        coords /= (resolution.mpp_x, resolution.mpp_y)
    elif foreign.coords_are == "centres_px0":
        before = np.broadcast_to(np.asarray(span) / 2, coords.shape)
        if resolution.source == "assumed":  # too fine a resolution gives too large a tile
            before = np.minimum(before, np.maximum(coords, 0))
        coords -= before
    return np.rint(coords).astype(np.int64)
