"""Bags: the embeddings of a slide or series, which `features` writes and `mil` reads."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from features.bags.setting_words import UNKNOWN, describe_difference
from features.bags.tile_keys import TileKeys, hash_tiles, make_tile_keys, sketch_tiles
from features.errors import BagError, MilError
from features.utils.paths import slide_name
from features.utils.spreadsheet_dates import date_hint
from features.utils.text import nearest_names, pluralize

__all__ = [
    "IMAGE",
    "LARGEST_COORD_PX0",
    "TILE",
    "UNKNOWN",
    "UNKNOWN_COORD",
    "UNKNOWN_RGB",
    "UNKNOWN_SHARE",
    "Bag",
    "BagInfo",
    "BagMeta",
    "BagRef",
    "BagSource",
    "Fingerprint",
    "as_json",
    "bag_id",
    "check_complete",
    "check_fingerprint",
    "check_format",
    "check_no_tie",
    "check_same_fingerprint",
    "check_slide_id",
    "is_plain_id",
    "meta_attributes",
    "meta_from_attrs",
    "no_bag_error",
    "usual_fingerprint",
]


TILE = "tile"
"""Kind of a bag whose instances are tiles of a slide."""

IMAGE = "image"
"""Kind of a bag whose instances are images of a series: with order and source, without
coordinates."""

UNKNOWN_COORD = -1
"""Both coordinates of an instance whose position is not known."""

LARGEST_COORD_PX0 = 2**53 - 1
"""Largest coordinate, above which floating-point numbers are not exact."""

UNKNOWN_SHARE = -1.0
"""Share of a slide that is tissue where it is not known: bags of images, of other programs, of
earlier versions, and where the whole slide was taken."""

UNKNOWN_RGB = (-1, -1, -1)
"""Colour of tissue where it is not known."""

_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}
"""Types that an attribute may have, by the annotation of its field."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Provenance of embeddings: bags that differ in any field must not be mixed.

    ``encoder`` is a timm name and ``dim`` the length of one embedding; ``tile_px`` and
    ``overlap_px`` are in px of a tile, ``target_mpp`` is its resolution in µm per px. Settings of
    preprocessing, tissue segmentation, stain normalisation and augmented views are JSON,
    ``filter_sha256`` is the hash of the tile filter that was applied; an empty text stands for
    none.
    """

    encoder: str
    weights_sha256: str
    transform: str
    dim: int
    tile_px: int
    target_mpp: float
    overlap_px: int
    tissue: str
    filter_sha256: str = ""
    stain_norm: str = ""
    views: str = ""

    @property
    def n_views(self) -> int:
        """Number of views of each tile, whose embeddings have shape (n_tiles, n_views, dim)."""
        return int(json.loads(self.views)["n_views"]) if self.views else 0


@dataclass(frozen=True, kw_only=True)
class BagMeta:
    """Metadata of a bag.

    Names that end in ``_px0`` are in level-0 px of the slide: ``span_x_px0`` is the width of a
    tile. ``mpp_x`` and ``mpp_y`` are µm per level-0 px, from ``mpp_source``: ``file``, ``derived``
    (from a magnification in the file), ``given`` or ``assumed``. ``slide_content_id`` is the hash
    of the slide file (see :func:`features.slides.file_info.content_hash`), ``background_rgb`` the
    colour of its glass.
    ``min_tissue_used`` is the minimum tissue fraction of a tile, after it was lowered for a slide
    with little tissue, and ``tissue_share`` the share of the slide that is tissue. Of ``n_tried``
    tiles, ``n_failed`` could not be decoded, and those that ``left_out`` counts, as
    JSON, were rejected by artefact rule or filter. ``empty_reason`` is set if no tile is left.
    ``software`` holds versions as JSON; ``kind`` is :data:`TILE` or :data:`IMAGE`. Of a file with
    several scenes, ``scene`` is the number of the one that the bag is of, 0 where there is only
    one, and ``other_scenes`` lists the others with their size in px. ``settings`` are those of
    ``mil embed`` in TOML, for its ``--config``. ``reader`` is the library that read the slide, and
    ``tissue_rgb`` the median colour of its tissue, :data:`UNKNOWN_RGB` where it is not known.
    ``warnings`` says what is wrong with the slide's file although it could be read: sentences
    separated by ``" | "``.
    """

    slide_id: str
    fingerprint: Fingerprint
    width_px0: int
    height_px0: int
    mpp_x: float
    mpp_y: float
    mpp_source: str
    span_x_px0: float
    span_y_px0: float
    slide_content_id: str
    background_rgb: tuple[int, int, int] = (255, 255, 255)
    min_tissue_used: float = 0.0
    n_tried: int = 0
    n_failed: int = 0
    left_out: str = "{}"
    empty_reason: str = ""
    software: str = ""
    kind: str = TILE
    tissue_share: float = UNKNOWN_SHARE
    scene: int = 0
    other_scenes: str = ""
    settings: str = ""
    reader: str = ""
    tissue_rgb: tuple[int, int, int] = UNKNOWN_RGB
    warnings: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bag:
    """The embeddings of one slide, or of one series of images.

    Parameters
    ----------
    features
        Embeddings, shape (n_tiles, dim), float16 or float32.
    coords_px0
        Upper left corners, x then y, shape (n_tiles, 2), level-0 px, in reading order;
        :data:`UNKNOWN_COORD` where the position is not known.
    tissue_fraction
        Tissue fraction of each tile, shape (n_tiles,), 0 to 1; NaN where it is not known.
    meta
        Metadata.
    order, source
        Index of each image in its series, shape (n_tiles,), increasing, and its name; None in a
        bag of tiles.
    views
        Embeddings of augmented views of each tile, shape (n_tiles, n_views, dim); None for none.

    Raises
    ------
    BagError
        If shapes do not fit each other, the fingerprint or the kind, or a tile is outside the
        slide.
    """

    features: npt.NDArray[np.floating[Any]]
    coords_px0: npt.NDArray[np.int64]
    tissue_fraction: npt.NDArray[np.float32]
    meta: BagMeta
    order: npt.NDArray[np.int64] | None = None
    source: tuple[str, ...] | None = None
    views: npt.NDArray[np.floating[Any]] | None = None
    features_sha256: str = field(init=False)
    """Hash of the embeddings; equal for copies of a slide with equal fingerprints."""
    views_sha256: str = field(init=False)
    """Hash of the embeddings of views; empty for none."""

    def __post_init__(self) -> None:
        n_tiles, dim = self.features.shape
        _check_series(self)
        if self.coords_px0.shape != (n_tiles, 2) or self.tissue_fraction.shape != (n_tiles,):
            raise BagError(
                self.meta.slide_id,
                actual=f"coords {self.coords_px0.shape}, tissue {self.tissue_fraction.shape}",
                expected=f"({n_tiles}, 2) and ({n_tiles},), one row per embedding",
            )
        _check_places(self)
        if dim != self.meta.fingerprint.dim:
            raise BagError(
                self.meta.slide_id,
                actual=f"embeddings of {dim} numbers",
                expected=f"{self.meta.fingerprint.dim}, as its fingerprint states",
            )
        n_views = self.meta.fingerprint.n_views
        actual = "no views" if self.views is None else f"views of shape {self.views.shape}"
        expected = f"views of shape {(n_tiles, n_views, dim)}" if n_views else "no views"
        if actual != expected:
            raise BagError(
                self.meta.slide_id, actual=actual, expected=f"{expected}, as its fingerprint states"
            )
        object.__setattr__(self, "features_sha256", _hash_of(self.features))
        object.__setattr__(self, "views_sha256", "" if self.views is None else _hash_of(self.views))

    @cached_property
    def tiles_sha256(self) -> str:
        """Hash of the embeddings in any order, see :func:`features.bags.tile_keys.hash_tiles`."""
        return hash_tiles(self._tile_keys, dim=self.features.shape[1])

    @cached_property
    def tile_sketch(self) -> TileKeys:
        """Keys of some tiles, (n_keys,), see :func:`features.bags.tile_keys.sketch_tiles`."""
        return sketch_tiles(self._tile_keys)

    @cached_property
    def _tile_keys(self) -> TileKeys:
        return make_tile_keys(self.features)

    @classmethod
    def from_series(
        cls,
        features: npt.NDArray[np.floating[Any]],
        *,
        order: npt.NDArray[np.int64],
        source: tuple[str, ...],
        meta: BagMeta,
    ) -> Bag:
        """Return a bag of images, without coordinates and tissue fractions.

        ``features`` has shape (n, dim), ``order``, the increasing indices of the images in their
        series, shape (n,); ``source`` names the images. Coordinates in px are unknown. ``meta`` is
        of kind :data:`IMAGE`.
        """
        return cls(
            features=features,
            coords_px0=np.full((len(features), 2), UNKNOWN_COORD, np.int64),
            tissue_fraction=np.full(len(features), np.nan, np.float32),
            meta=meta,
            order=order,
            source=source,
        )

    def select(self, rows: npt.NDArray[np.bool_], *, meta: BagMeta) -> Bag:
        """Return the bag of the instances where ``rows``, bool of shape (n_tiles,), is True.

        ``meta`` is the metadata of the new bag.
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
    """Header of a bag: metadata, and number and type (float16 or float32) of its embeddings.

    The arrays have shape (n_tiles, dim) and, unless ``views_dtype`` is None, (n_tiles, n_views,
    dim).
    """

    meta: BagMeta
    n_tiles: int
    dtype: np.dtype[Any]
    views_dtype: np.dtype[Any] | None = None


class BagSource(Protocol):
    """A bag that is not a file of its own, e.g. rows of a packed store, shape (n_rows, dim)."""

    def __hash__(self) -> int: ...

    def read(self) -> Bag:
        """Read all arrays, embeddings of shape (n_tiles, dim) among them."""

    def read_features(self) -> npt.NDArray[np.floating[Any]]:
        """Read the embeddings only, shape (n_tiles, dim)."""

    def read_views(self) -> npt.NDArray[np.floating[Any]]:
        """Read the embeddings of views only, shape (n_tiles, n_views, dim)."""

    def read_bag_info(self) -> BagInfo:
        """Read the metadata, and shape and types of the arrays."""


BagRef = Path | BagSource
"""Reference to a bag: the path of its HDF5 file, or its rows of a packed store."""


def is_plain_id(slide_id: str) -> bool:
    """Return whether a slide id is safe as a file name, i.e. cannot lead to another folder."""
    return bool(slide_id) and slide_id[0] != "." and not {"/", "\\", "\0"} & set(slide_id)


def bag_id(name: str) -> str:
    """Return the id under which a bag is found: its slide's, without suffix, composed (NFC).

    Examples
    --------
    >>> bag_id("006388_0.svs")
    '006388_0'
    """
    return slide_name(name)


def no_bag_error(
    where: object, slide_ids: Sequence[str], bags: Collection[str], *, of: str = ""
) -> BagError:
    """Return the error for slides of which none has a bag, with the names that are nearest.

    ``of`` says which slides of ``where`` they are, such as ``of class 'CE'``.
    """
    first = slide_ids[0] if slide_ids else ""
    near = nearest_names(first, bags)
    count = pluralize(len(bags), "bags")
    there = f"; there are {count}, such as {min(bags)!r}" if bags else ""
    if near:
        verb = "is" if len(near) == 1 else "are"
        there = f"; the nearest of the {count} of other names {verb} {', '.join(map(repr, near))}"
    return BagError(
        where,
        actual=f"none of its {pluralize(len(slide_ids), 'slides')}{of and ' ' + of} has a bag "
        f"(first: {first!r}){there}",
        expected="a bag named after each slide",
        hint=date_hint(slide_ids, bags)
        or "Check --bags, and that slide ids equal file names without suffix.",
    )


def check_fingerprint(
    expected: Fingerprint,
    actual: Iterable[tuple[object, Fingerprint]],
    *,
    source: str,
    hint: str = "Embed all slides with the same settings, or choose bags that were.",
) -> None:
    """Raise BagError for the first bag whose fingerprint differs, with the settings that differ.

    ``actual`` holds the reference, for messages, and the fingerprint of each bag; ``source`` names
    the origin of the expected fingerprint, e.g. ``the run 'runs/a'``; ``hint`` says what to do.
    """
    for ref, other in actual:
        if other != expected:
            found, wanted = describe_difference(vars(other), vars(expected))
            raise BagError(
                ref, actual=f"made with {found}", expected=f"{wanted} as in {source}", hint=hint
            )


def check_same_fingerprint(bags: Sequence[tuple[object, Fingerprint]]) -> None:
    """Raise BagError for the first bag that was made otherwise than most of them.

    ``bags`` holds the reference, for messages, and the fingerprint of each.
    """
    usual = usual_fingerprint(fingerprint for _, fingerprint in bags)
    n_usual = sum(fingerprint == usual for _, fingerprint in bags)
    check_fingerprint(usual, bags, source=f"{n_usual:,} of {len(bags):,} bags")


def usual_fingerprint(fingerprints: Iterable[Fingerprint]) -> Fingerprint:
    """Return the most frequent fingerprint; of several, the one that comes first."""
    counts = Counter(fingerprints)
    return max(counts, key=counts.__getitem__)


def check_no_tie(where: object, fingerprints: Iterable[Fingerprint], *, hint: str) -> None:
    """Raise BagError, with a hint, if as many bags were made in one way as in another."""
    most = Counter(fingerprints).most_common(2)
    if len(most) < 2 or most[0][1] > most[1][1]:
        return
    (one, n_bags), (other, _) = most
    found, others = describe_difference(vars(one), vars(other))
    raise BagError(
        where,
        actual=f"{pluralize(n_bags, 'bags')} made with {found}, and as many with {others}",
        expected="bags that were made in the same way",
        hint=hint,
    )


def check_format(
    where: object,
    attributes: Mapping[str, Any],
    *,
    name: str,
    newest: int,
    error: type[MilError] = BagError,
) -> None:
    """Raise ``error`` unless attributes state this format and no version after the newest."""
    if (actual := attributes.get("format")) != name:
        raise error(where, actual=f"format {actual!r:.40}", expected=f"{name!r}")
    version = attributes.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= newest:
        raise error(
            where,
            actual=f"format version {version!r:.40}",
            expected="1" if newest == 1 else f"1 to {newest}",
            hint="Install the version of this program that wrote it, or a later one.",
        )


def check_complete(where: object, attributes: Mapping[str, Any], *, hint: str) -> None:
    """Raise BagError, with a hint, unless attributes state that writing the file was finished."""
    if attributes.get("complete") is not True:
        raise BagError(
            where,
            actual="not complete: writing it was interrupted, or is still running",
            expected="a finished file",
            hint=hint,
        )


def check_slide_id(bag_ref: BagRef, meta: BagMeta, slide_id: str) -> None:
    """Raise BagError if a bag under the name of one slide has the metadata of another."""
    if bag_id(meta.slide_id) != slide_id:
        raise BagError(
            bag_ref,
            actual=f"the bag of slide {meta.slide_id!r}",
            expected=f"that of {slide_id!r}",
            hint="Name the file after its slide, or move it away and embed the slide again.",
        )


def _hash_of(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _check_series(bag: Bag) -> None:
    """Raise if order and source do not fit the embeddings, or the kind of the bag."""
    n_images = len(bag.features)
    actual = None if bag.order is None or bag.source is None else (bag.order.shape, len(bag.source))
    expected = ((n_images,), n_images) if bag.meta.kind == IMAGE else None
    if actual != expected:
        raise BagError(
            bag.meta.slide_id,
            actual=f"order and source {actual} of {n_images} embeddings of kind {bag.meta.kind!r}",
            expected=f"{expected}",
        )
    if bag.order is not None and (np.diff(bag.order) <= 0).any():
        raise BagError(
            bag.meta.slide_id, actual="images out of order", expected="an increasing order"
        )


def _check_places(bag: Bag) -> None:
    """Raise for a tile whose corner is not on its slide, unless no place of the bag is known."""
    coords, meta = bag.coords_px0, bag.meta
    size = np.array([meta.width_px0 or np.inf, meta.height_px0 or np.inf])  # 0 of unknown size
    is_outside = ((coords < 0) | (coords >= size)).any(axis=1)
    if is_outside.any() and (coords != UNKNOWN_COORD).any():
        x, y = coords[is_outside][0]
        of_size = f" of {meta.width_px0:,} × {meta.height_px0:,} px" if meta.width_px0 else ""
        raise BagError(
            meta.slide_id,
            actual=f"{is_outside.sum():,} of {len(coords):,} tiles outside the slide{of_size}, the "
            f"first at x {x:,}, y {y:,}",
            expected="the level-0 px of upper left corners",
        )


def meta_attributes(meta: BagMeta) -> dict[str, Any]:
    """Return the metadata of a bag, fields of the fingerprint included, as plain values by name."""
    own = {name: value for name, value in vars(meta).items() if name != "fingerprint"}
    return own | vars(meta.fingerprint)


def meta_from_attrs(attributes: Mapping[str, Any]) -> BagMeta:
    """Return the metadata from :func:`meta_attributes`; missing attributes get their defaults.

    Raises TypeError for an attribute of another type, ValueError for a missing one without default
    and for a kind, size, resolution or count that no slide has.
    """
    fingerprint = Fingerprint(**_values(fields(Fingerprint), attributes))
    own = [part for part in fields(BagMeta) if part.name != "fingerprint"]
    meta = BagMeta(fingerprint=fingerprint, **_values(own, attributes))
    if meta.kind not in {TILE, IMAGE}:
        raise ValueError(f"bag of kind {meta.kind!r:.40}")
    for name in ("width_px0", "height_px0", "span_x_px0", "span_y_px0", "n_tried", "n_failed"):
        value = getattr(meta, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value:g}")
    mpp_xy = (meta.mpp_x, meta.mpp_y)
    if meta.kind == TILE and not all(math.isfinite(mpp) and mpp > 0 for mpp in mpp_xy):
        raise ValueError(f"a resolution of {meta.mpp_x:g} × {meta.mpp_y:g} µm/px")
    return meta


def _values(parts: Iterable[Field[Any]], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes by field, without those that an older bag lacks."""
    values = {}
    for part in parts:
        if part.name in attributes:
            values[part.name] = value = attributes[part.name]
            if not isinstance(value, _TYPES.get(str(part.type), object)):
                raise TypeError(f"attribute {part.name!r} is {value!r:.60}")
        elif part.default is MISSING:
            raise ValueError(f"no attribute {part.name!r}")
    return values


def as_json(**values: Any) -> str:
    """Return settings as one line of JSON with sorted keys: equal settings give equal text."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
