"""The bag: embeddings of a slide or series, the one seam between the two halves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from features.errors import BagError

__all__ = [
    "IMAGE",
    "TILE",
    "UNKNOWN",
    "UNKNOWN_COORD",
    "Bag",
    "BagInfo",
    "BagMeta",
    "BagRef",
    "BagSource",
    "Fingerprint",
    "as_json",
    "check_fingerprint",
    "is_plain_id",
    "meta_attributes",
    "meta_from_attrs",
]

UNKNOWN = "unknown"
"""Stands in a bag's attributes for what the file it was imported from does not say."""

TILE = "tile"
"""Kind of a bag whose instances are tiles of a slide."""

IMAGE = "image"
"""Kind of a bag whose instances are images of a series: they have an order and a source, and no
place."""

UNKNOWN_COORD = -1
"""Both coordinates of an instance whose place is not known."""

_KINDS: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}
"""What an attribute may be, by the annotation of its field."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """How embeddings were made: bags that differ in any field must not be mixed."""

    encoder: str
    """timm name of the backbone."""
    weights_sha256: str
    """SHA-256 of its weights."""
    transform: str
    """Its preprocessing, as JSON."""
    dim: int
    """Length of one embedding."""
    tile_px: int
    """Side of a tile in px."""
    target_mpp: float
    """Resolution of a tile in µm per px."""
    overlap_px: int
    """Overlap of neighbouring tiles in px."""
    tissue: str
    """Settings of the tissue search and of the choice of tiles, as JSON."""
    filter_sha256: str = ""
    """Hash of the tile filter that dropped tiles, see :mod:`features.filters.classifier`; empty for
    none."""
    stain_norm: str = ""
    """How the stains of all slides were made alike, as JSON; empty where they were left alone."""
    views: str = ""
    """Views of each tile besides the plain one, as JSON; empty where there are none."""

    @property
    def n_views(self) -> int:
        """Views of each tile besides the plain one."""
        return int(json.loads(self.views)["n_views"]) if self.views else 0


@dataclass(frozen=True, kw_only=True)
class BagMeta:
    """All that a bag says about itself besides its arrays."""

    slide_id: str
    """Name of the slide, without folder and suffix."""
    fingerprint: Fingerprint
    """How the embeddings were made."""
    width_px0: int
    """Width of the slide in level-0 px."""
    height_px0: int
    """Height of the slide in level-0 px."""
    mpp_x: float
    """µm per level-0 px along x."""
    mpp_y: float
    """µm per level-0 px along y."""
    mpp_source: str
    """``file``, ``given`` or ``assumed``."""
    span_x_px0: float
    """Width of a tile in level-0 px."""
    span_y_px0: float
    """Height of a tile in level-0 px."""
    slide_content_id: str
    """Content of the slide file, see :func:`features.slides.file_info.content_hash`."""
    background_rgb: tuple[int, int, int] = (255, 255, 255)
    """Colour of the slide's glass."""
    min_tissue_used: float = 0.0
    """Least tissue fraction of a tile that was applied to this slide, after any fall."""
    n_tried: int = 0
    """Tiles that were to be embedded."""
    n_failed: int = 0
    """Tiles among them that could not be decoded."""
    left_out: str = "{}"
    """Tiles among them that were left out, by the rule that spoke against them, as JSON."""
    empty_reason: str = ""
    """Why the bag holds no tile; empty if it holds one."""
    software: str = ""
    """Versions of what made it, as JSON."""
    kind: str = TILE
    """What an instance is: :data:`TILE` or :data:`IMAGE`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bag:
    """The embeddings of one slide, or of one series of images."""

    features: npt.NDArray[np.floating[Any]]
    """Embeddings, shape (n_tiles, dim), float16 or float32."""
    coords_px0: npt.NDArray[np.int64]
    """Upper left corners, x then y, shape (n_tiles, 2), level-0 px, in reading order;
    all -1 where no place is known."""
    tissue_fraction: npt.NDArray[np.float32]
    """Share of each tile that is tissue, shape (n_tiles,), 0 to 1; NaN where it is not known."""
    meta: BagMeta
    """What the bag says about itself."""
    order: npt.NDArray[np.int64] | None = None
    """Place of each image in its series, shape (n_tiles,), rising; None in a bag of tiles."""
    source: tuple[str, ...] | None = None
    """Which image each embedding is of; None in a bag of tiles."""
    views: npt.NDArray[np.floating[Any]] | None = None
    """Embeddings of further views of each tile, shape (n_tiles, n_views, dim); None without."""
    features_sha256: str = field(init=False)
    """Hash of the embeddings of plain tiles: equal for copies of a slide embedded alike."""
    views_sha256: str = field(init=False)
    """Hash of the embeddings of views; empty without."""

    def __post_init__(self) -> None:
        n_tiles, dim = self.features.shape
        _require_whole_series(self)
        if self.coords_px0.shape != (n_tiles, 2) or self.tissue_fraction.shape != (n_tiles,):
            raise BagError(
                self.meta.slide_id,
                actual=f"coords {self.coords_px0.shape}, tissue {self.tissue_fraction.shape}",
                expected=f"({n_tiles}, 2) and ({n_tiles},), one row an embedding",
            )
        if dim != self.meta.fingerprint.dim:
            raise BagError(
                self.meta.slide_id,
                actual=f"embeddings of {dim} numbers",
                expected=f"{self.meta.fingerprint.dim}, as its fingerprint says",
            )
        n_views = self.meta.fingerprint.n_views
        found = "no views" if self.views is None else f"views of shape {self.views.shape}"
        wanted = f"views of shape {(n_tiles, n_views, dim)}" if n_views else "no views"
        if found != wanted:
            raise BagError(
                self.meta.slide_id, actual=found, expected=f"{wanted}, as its fingerprint says"
            )
        object.__setattr__(self, "features_sha256", _hash_of(self.features))
        object.__setattr__(self, "views_sha256", "" if self.views is None else _hash_of(self.views))

    @classmethod
    def from_series(
        cls,
        features: npt.NDArray[np.floating[Any]],
        *,
        order: npt.NDArray[np.int64],
        source: tuple[str, ...],
        meta: BagMeta,
    ) -> Bag:
        """A bag of images, which have no place and no tissue.

        Parameters
        ----------
        features
            Embeddings, shape (n, dim).
        order, source
            Place of each image in its series, shape (n,), rising, and which image it is.
        meta
            Of kind :data:`IMAGE`.
        """
        return cls(
            features=features,
            coords_px0=np.full((len(features), 2), UNKNOWN_COORD, np.int64),
            tissue_fraction=np.full(len(features), np.nan, np.float32),
            meta=meta,
            order=order,
            source=source,
        )

    def only(self, rows: npt.NDArray[np.bool_], *, meta: BagMeta) -> Bag:
        """The bag of some of its rows.

        Parameters
        ----------
        rows
            Which, shape (n_tiles,), bool.
        meta
            What it says about itself then.
        """
        source = self.source
        return Bag(
            features=self.features[rows],
            coords_px0=self.coords_px0[rows],
            tissue_fraction=self.tissue_fraction[rows],
            meta=meta,
            order=None if self.order is None else self.order[rows],
            source=None if source is None else tuple(source[i] for i in np.flatnonzero(rows)),
            views=None if self.views is None else self.views[rows],
        )


@dataclass(frozen=True, kw_only=True)
class BagInfo:
    """A bag without its arrays."""

    meta: BagMeta
    """What it says about itself."""
    n_tiles: int
    """Embeddings in it."""
    dtype: np.dtype[Any]
    """Their type, float16 or float32."""
    views_dtype: np.dtype[Any] | None = None
    """Type of the embeddings of views; None without views."""


class BagSource(Protocol):
    """A bag that is no file of its own, but lies among others."""

    def __hash__(self) -> int:
        """Places may be keys."""
        ...

    def read(self) -> Bag:
        """As :func:`read_bag`."""
        ...

    def read_features(self) -> npt.NDArray[np.floating[Any]]:
        """As :func:`read_features`."""
        ...

    def read_views(self) -> npt.NDArray[np.floating[Any]]:
        """As :func:`read_views`."""
        ...

    def read_bag_info(self) -> BagInfo:
        """As :func:`read_bag_info`."""
        ...


BagRef = Path | BagSource
"""Where a bag lies: its own HDF5 file, or a place in a packed store; read alike."""


def is_plain_id(slide_id: str) -> bool:
    """Whether a slide id can be a file name that leads nowhere else."""
    return bool(slide_id) and slide_id[0] != "." and not {"/", "\\", "\0"} & set(slide_id)


def check_fingerprint(
    expected: Fingerprint, found: Iterable[tuple[object, Fingerprint]], *, source: str
) -> None:
    """Refuse bags that were not made as expected.

    Parameters
    ----------
    expected
        How bags must have been made.
    found
        Where each bag lies, and how it was made.
    source
        Whose expectation it is, e.g. ``the run 'runs/a'``.

    Raises
    ------
    BagError
        For the first that differs; the message names the field and both values.
    """
    for where, other in found:
        if other == expected:
            continue
        name = next(
            part.name
            for part in fields(Fingerprint)
            if getattr(other, part.name) != getattr(expected, part.name)
        )
        raise BagError(
            where,
            actual=f"{name} is {getattr(other, name)!r}",
            expected=f"{getattr(expected, name)!r} as in {source}",
            hint="Embed all slides with the same settings, or choose bags that were.",
        )


def _hash_of(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _require_whole_series(bag: Bag) -> None:
    """Refuse a bag whose order and source do not go with its embeddings, or with its kind."""
    n_images = len(bag.features)
    told = None if bag.order is None or bag.source is None else (bag.order.shape, len(bag.source))
    expected = ((n_images,), n_images) if bag.meta.kind == IMAGE else None
    if told != expected:
        raise BagError(
            bag.meta.slide_id,
            actual=f"order and source {told} of {n_images} embeddings of kind {bag.meta.kind!r}",
            expected=f"{expected}",
        )
    if bag.order is not None and (np.diff(bag.order) <= 0).any():
        raise BagError(bag.meta.slide_id, actual="images out of order", expected="a rising order")


def meta_attributes(meta: BagMeta) -> dict[str, Any]:
    """What a bag says about itself as plain values by name, the fingerprint's fields among them."""
    flat = {name: getattr(meta, name) for name in _flat_names()}
    return {**flat, **{p.name: getattr(meta.fingerprint, p.name) for p in fields(Fingerprint)}}


def meta_from_attrs(attributes: Mapping[str, Any]) -> BagMeta:
    """The way back from :func:`meta_attributes`; what an older bag lacks has its default.

    Raises
    ------
    TypeError, ValueError
        If an attribute is of another kind, or missing.
    """
    fingerprint = Fingerprint(**_values(fields(Fingerprint), attributes))
    flat = [part for part in fields(BagMeta) if part.name != "fingerprint"]
    return BagMeta(fingerprint=fingerprint, **_values(flat, attributes))


def _flat_names() -> list[str]:
    """Fields of BagMeta that are stored as root attributes of their own."""
    return [part.name for part in fields(BagMeta) if part.name != "fingerprint"]


def _values(parts: Iterable[Field[Any]], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes by field; one that an older bag lacks keeps its default."""
    values = {}
    for part in parts:
        if part.name in attributes:
            values[part.name] = value = attributes[part.name]
            kind = _KINDS.get(str(part.type), object)
            if not isinstance(value, kind):
                raise TypeError(f"attribute {part.name!r} is {value!r:.60}")
        elif part.default is MISSING:
            raise ValueError(f"no attribute {part.name!r}")
    return values


def as_json(**values: Any) -> str:
    """Settings as one line of JSON with sorted keys, so that equal settings give equal text."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
