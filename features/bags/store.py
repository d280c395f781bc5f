"""The pack: all bags of a cohort in one zarr store, and how bags are found wherever they lie.

The layout is documented in ``docs/reference/pack.md``. Every bag is a stretch of rows of the same
few arrays, and one table says which stretch, and all that the bag says about itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import (
    Bag,
    BagInfo,
    BagMeta,
    BagRef,
    Fingerprint,
    is_plain_id,
    meta_from_attrs,
)
from features.bags.h5 import find_bags
from features.bags.shard_reader import ObjectStore, ShardedArray, open_object_store, read_json
from features.errors import BagError
from features.utils.paths import parse_url

__all__ = [
    "PACK_FORMAT",
    "PACK_VERSION",
    "TABLE",
    "VIEWS",
    "BagStore",
    "StoredBag",
    "arrays_of",
    "is_bag_store",
    "open_bags",
]

PACK_FORMAT = "mil-pack"
"""Value of the root attribute ``format``."""

PACK_VERSION = 2
"""Newest version that is read; stores with views are of it, all others still of version 1."""

VIEWS = "views"
"""Array of the embeddings of views, in stores of bags that have them."""

_PLAIN_ARRAYS = {
    "features": "features",
    "coords": "coords_px0",
    "tissue_fraction": "tissue_fraction",
}

TABLE = "bags"
"""Array of bytes: the table of bags, as JSON of columns."""

_MOST_TABLE_BYTES = 1 << 30
_FLOATS: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
_ADVICE = "Pack the bags again with 'mil bags pack'."


def open_bags(place: Path, *, may_be_empty: bool = False) -> Mapping[str, BagRef]:
    """All bags of a folder or of a packed store by slide id, sorted.

    Parameters
    ----------
    place
        A folder of HDF5 files, a packed store, or the URL of one.
    may_be_empty
        Find nothing where there is no folder, or none with bags, instead of complaining.

    Raises
    ------
    BagError
        If there is nothing, or no bag in it, or the store is not to be trusted.
    """
    return BagStore(place) if is_bag_store(place) else find_bags(place, may_be_empty=may_be_empty)


def arrays_of(fingerprint: Fingerprint) -> Mapping[str, str]:
    """Arrays with one row a tile, and the fields of a bag that they hold."""
    return {**_PLAIN_ARRAYS, VIEWS: VIEWS} if fingerprint.n_views else _PLAIN_ARRAYS


def is_bag_store(place: Path) -> bool:
    """Whether a place is a zarr store; what lies behind a URL can be nothing else."""
    return parse_url(place) is not None or (place / "zarr.json").is_file()


class BagStore(Mapping[str, BagRef]):
    """Bags of a packed store by slide id, sorted; no bag is read before it is asked for.

    Parameters
    ----------
    place
        Folder or URL of the store.

    Raises
    ------
    BagError
        If it is no whole pack, of a newer version, or contradicts itself.
    """

    def __init__(self, place: Path) -> None:
        files = open_object_store(place)
        self.where = files.where
        attributes = _attributes_of(files)
        self._columns = _table_of(files)
        try:
            self.fingerprint = Fingerprint(**attributes["fingerprint"])
            names = arrays_of(self.fingerprint)
            self._rows = {_id(name): row for row, name in enumerate(self._columns["slide_id"])}
            self._starts = [0, *accumulate(map(_count, self._columns["n_tiles"]))]
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"its table of bags is damaged ({error!r:.100})") from error
        self._arrays = {name: ShardedArray(files, name) for name in names}
        self._check_sizes()

    def __getitem__(self, slide_id: str) -> StoredBag:
        """The bag of a slide, not read yet."""
        row = self._rows[slide_id]
        values = {name: column[row] for name, column in self._columns.items()}
        try:
            return StoredBag(
                where=f"{self.where}, bag {slide_id!r}",
                meta=_meta_of(values, self.fingerprint),
                first_row=self._starts[row],
                n_tiles=values["n_tiles"],
                dtype=_FLOATS[values["dtype"]],
                hashes=(str(values["features_sha256"]), str(values.get("views_sha256", ""))),
                views_dtype=_FLOATS[values["views_dtype"]] if VIEWS in self._arrays else None,
                series=_series_of(values),
                arrays=self._arrays,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"the row of bag {slide_id!r} is damaged ({error})") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _check_sizes(self) -> None:
        """The table must speak of each bag once, and of all rows there are and no others."""
        n_rows = {name: array.shape[0] for name, array in self._arrays.items()}
        if set(n_rows.values()) != {self._starts[-1]}:
            raise self._damaged(f"{self._starts[-1]:,} tiles in its table, rows {n_rows}")
        lengths = {len(column) for column in self._columns.values()}
        if lengths != {len(self._rows)}:
            raise self._damaged(f"columns of {lengths} rows for {len(self._rows)} slide ids")
        kinds = {name: (array.dtype.kind, *array.shape[1:]) for name, array in self._arrays.items()}
        made = self.fingerprint
        expected = {"features": ("f", made.dim), "coords": ("i", 2), "tissue_fraction": ("f",)}
        if kinds != expected | ({VIEWS: ("f", made.n_views, made.dim)} if made.n_views else {}):
            raise self._damaged(f"arrays of rows {kinds}")

    def _damaged(self, found: str) -> BagError:
        return BagError(
            self.where, actual=found, expected=f"a whole {PACK_FORMAT} store", hint=_ADVICE
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredBag:
    """One bag of a pack; knows its own rows and no other bag."""

    where: str
    """The store and the slide, for messages."""
    meta: BagMeta
    """What it says about itself."""
    first_row: int
    """Where its rows begin."""
    n_tiles: int
    """How many they are."""
    dtype: np.dtype[Any]
    """Type of its embeddings, which may be narrower than the store's."""
    hashes: tuple[str, str]
    """Hashes of its embeddings, and of those of its views, when it was packed."""
    views_dtype: np.dtype[Any] | None
    """Type of the embeddings of views; None without views."""
    series: Mapping[str, Any]
    """Order and source of images; empty in a bag of tiles."""
    arrays: Mapping[str, ShardedArray]
    """The store's arrays."""

    def __str__(self) -> str:
        """Where it lies."""
        return self.where

    def read(self) -> Bag:
        """The whole bag; see :func:`features.bags.h5.read_bag`.

        Raises
        ------
        BagError
            If its rows cannot be read, or are not those that were packed.
        """
        bag = Bag(
            features=self.read_features(),
            coords_px0=self._read("coords"),
            tissue_fraction=self._read("tissue_fraction"),
            meta=self.meta,
            views=None if self.views_dtype is None else self.read_views(),
            **self.series,
        )
        for now, then in zip((bag.features_sha256, bag.views_sha256), self.hashes, strict=True):
            if now != then:
                raise BagError(
                    self.where,
                    actual=f"embeddings with hash {now[:12]}…",
                    expected=f"{then[:12]}…, as when they were packed",
                    hint=_ADVICE,
                )
        return bag

    def read_features(self) -> npt.NDArray[np.floating[Any]]:
        """The embeddings alone, shape (n_tiles, dim).

        Raises
        ------
        BagError
            If its rows cannot be read.
        """
        return self._read("features").astype(self.dtype, copy=False)

    def read_views(self) -> npt.NDArray[np.floating[Any]]:
        """The embeddings of views alone, shape (n_tiles, n_views, dim).

        Raises
        ------
        BagError
            If it has no views, or its rows cannot be read.
        """
        if self.views_dtype is None:
            raise BagError(self.where, actual="no views", expected="a bag with views of its tiles")
        return self._read(VIEWS).astype(self.views_dtype, copy=False)

    def read_bag_info(self) -> BagInfo:
        """The bag without its arrays; nothing is read for it."""
        return BagInfo(
            meta=self.meta, n_tiles=self.n_tiles, dtype=self.dtype, views_dtype=self.views_dtype
        )

    def _read(self, name: str) -> npt.NDArray[Any]:
        return self.arrays[name].read(self.first_row, self.n_tiles)


def _attributes_of(files: ObjectStore) -> Mapping[str, Any]:
    """Attributes of a store that says it is a whole pack."""
    root = read_json(files, "zarr.json")
    attributes = root.get("attributes") if isinstance(root, dict) else None
    if root is None:
        raise BagError(
            files.where,
            actual="there is no zarr store",
            expected="one that 'mil bags pack' wrote",
            hint="Name a folder of bags, or a packed store, with --bags.",
        )
    if not isinstance(attributes, dict) or attributes.get("format") != PACK_FORMAT:
        raise BagError(files.where, actual="a zarr store of another kind", expected=PACK_FORMAT)
    version = attributes.get("format_version")
    if not isinstance(version, int) or version > PACK_VERSION:
        raise BagError(
            files.where,
            actual=f"format version {version}",
            expected=f"at most {PACK_VERSION}",
            hint="Install the version of this program that wrote it, or a later one.",
        )
    if attributes.get("complete") is not True:
        raise BagError(
            files.where,
            actual="not complete: packing was stopped, or still goes on",
            expected="a finished store",
            hint=_ADVICE,
        )
    return attributes


def _table_of(files: ObjectStore) -> dict[str, list[Any]]:
    """Columns of the table of bags."""
    rows = ShardedArray(files, TABLE)
    n_bytes = rows.shape[0]
    if rows.dtype != np.uint8 or len(rows.shape) != 1 or n_bytes > _MOST_TABLE_BYTES:
        raise BagError(
            files.where, actual=f"a table of {n_bytes:,} bytes", expected="a smaller one"
        )
    try:
        columns = json.loads(rows.read(0, n_bytes).tobytes())
    except (ValueError, RecursionError) as error:
        raise BagError(files.where, actual="its table of bags is no JSON", hint=_ADVICE) from error
    if not isinstance(columns, dict) or not all(isinstance(c, list) for c in columns.values()):
        raise BagError(files.where, actual="its table of bags has no columns", hint=_ADVICE)
    return columns


def _meta_of(values: Mapping[str, Any], fingerprint: Fingerprint) -> BagMeta:
    plain = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    made = {part.name: getattr(fingerprint, part.name) for part in fields(Fingerprint)}
    return meta_from_attrs({**plain, **made})


def _series_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What only a bag of images has."""
    if values["order"] is None:
        return {}
    return {
        "order": np.array([_count(place) for place in values["order"]], np.int64),
        "source": tuple(map(str, values["source"])),
    }


def _id(value: Any) -> str:
    if not isinstance(value, str) or not is_plain_id(value):
        raise ValueError(f"slide id {value!r:.40}")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.40} tiles")
    return value
