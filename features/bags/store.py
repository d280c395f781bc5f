"""Packed store: all bags of a cohort in one zarr store; and the opening of bags wherever they are.

The layout is documented in ``docs/reference/pack.md``. Every bag is a range of rows of the same few
arrays; one table states the range and all metadata of each bag.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import (
    Bag,
    BagInfo,
    BagRef,
    Fingerprint,
    bag_id,
    check_complete,
    check_format,
    is_plain_id,
    meta_from_attrs,
)
from features.bags.embeddings import check_embeddings
from features.bags.h5 import find_bags
from features.bags.shard_reader import ObjectStore, ShardedArray, read_json
from features.errors import CONTENT_ERRORS, BagError
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
"""Newest version that is read; stores with views have it, all others still have version 1."""

VIEWS = "views"
"""Array of the embeddings of views, in stores of bags that have them."""

TABLE = "bags"
"""Array of bytes: the table of bags, as JSON of columns."""

_PLAIN_ARRAYS = {
    "features": "features",
    "coords": "coords_px0",
    "tissue_fraction": "tissue_fraction",
}
_MAX_TABLE_BYTES = 1 << 30
_FLOATS = {name: np.dtype(name) for name in ("float16", "float32")}
_HINT = "Pack the bags again with 'mil bags pack'."


def open_bags(path: Path, *, may_be_empty: bool = False) -> Mapping[str, BagRef]:
    """Return all bags of a folder or of a packed store by slide id, sorted; none is read yet.

    Reading one returns embeddings of shape (n_tiles, dim).

    Parameters
    ----------
    path
        A folder of HDF5 files, a packed store, or the URL of one.
    may_be_empty
        Return nothing, instead of raising, where the folder is missing or holds no bag.

    Raises
    ------
    BagError
        If the folder is missing or holds no bag, or the store is damaged.
    """
    return BagStore(path) if is_bag_store(path) else find_bags(path, may_be_empty=may_be_empty)


def arrays_of(fingerprint: Fingerprint) -> Mapping[str, str]:
    """Return the arrays, shape (n_rows, ...), and the fields of a bag that they hold."""
    return {**_PLAIN_ARRAYS, VIEWS: VIEWS} if fingerprint.n_views else _PLAIN_ARRAYS


def is_bag_store(path: Path) -> bool:
    """Return whether a path is a zarr store; a URL cannot be anything else."""
    return parse_url(path) is not None or (path / "zarr.json").is_file()


class BagStore(Mapping[str, BagRef]):
    """Bags of a packed store, a folder or URL, by slide id, sorted; none is read before its use.

    Raises BagError if it is not a complete packed store, has a newer version, or is inconsistent:
    its arrays must have shape (tiles of all bags, ...).
    """

    def __init__(self, path: Path) -> None:
        store = ObjectStore(path)
        self._name = store.name
        attributes = _read_attributes(store)
        self._columns = _read_table(store)
        try:
            self.fingerprint = Fingerprint(**attributes["fingerprint"])
            names = arrays_of(self.fingerprint)
            self._rows = {_parse_id(name): i for i, name in enumerate(self._columns["slide_id"])}
            self._starts = [0, *accumulate(map(_parse_count, self._columns["n_tiles"]))]
        except CONTENT_ERRORS as error:
            raise self._damaged(f"its table of bags is damaged ({error!r:.100})") from error
        self._arrays = {name: ShardedArray(store, name) for name in names}
        self._check_sizes()

    def __getitem__(self, slide_id: str) -> StoredBag:
        """Return the bag of a slide without reading its arrays."""
        row = self._rows[slide_id]
        values = {name: column[row] for name, column in self._columns.items()}
        own = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        try:
            return StoredBag(
                name=f"{self._name}, bag {slide_id!r}",
                info=BagInfo(
                    meta=meta_from_attrs(own | vars(self.fingerprint)),
                    n_tiles=values["n_tiles"],
                    dtype=_FLOATS[values["dtype"]],
                    views_dtype=_FLOATS[values["views_dtype"]] if VIEWS in self._arrays else None,
                ),
                first_row=self._starts[row],
                hashes=(str(values["features_sha256"]), str(values.get("views_sha256", ""))),
                series=_parse_series(values),
                arrays=self._arrays,
            )
        except CONTENT_ERRORS as error:
            raise self._damaged(f"the row of bag {slide_id!r} is damaged ({error})") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _check_sizes(self) -> None:
        """Raise unless the table names each bag once and its tiles are all rows of the arrays."""
        n_rows = {name: array.shape[0] for name, array in self._arrays.items()}
        if set(n_rows.values()) != {self._starts[-1]}:
            raise self._damaged(f"{self._starts[-1]:,} tiles in its table, rows {n_rows}")
        lengths = {len(column) for column in self._columns.values()}
        if lengths != {len(self._rows)}:
            raise self._damaged(f"columns of {lengths} rows for {len(self._rows)} slide ids")
        kinds = {name: (array.dtype.kind, *array.shape[1:]) for name, array in self._arrays.items()}
        dim, n_views = self.fingerprint.dim, self.fingerprint.n_views
        expected = {"features": ("f", dim), "coords": ("i", 2), "tissue_fraction": ("f",)}
        if kinds != expected | ({VIEWS: ("f", n_views, dim)} if n_views else {}):
            raise self._damaged(f"arrays of rows {kinds}")

    def _damaged(self, actual: str) -> BagError:
        return BagError(
            self._name, actual=actual, expected=f"a complete {PACK_FORMAT} store", hint=_HINT
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredBag:
    """One bag of a packed store; a :class:`features.bags.bag.BagSource`.

    Its tiles are the rows from ``first_row`` on of the store's arrays, shape (n_rows, ...), which
    may have a wider type than ``info`` states. ``hashes`` are the SHA-256 of its embeddings and of
    those of its views when it was packed; ``series`` holds order and source of images, and nothing
    in a bag of tiles.
    """

    name: str
    info: BagInfo
    first_row: int
    hashes: tuple[str, str]
    series: Mapping[str, Any]
    arrays: Mapping[str, ShardedArray]

    def __str__(self) -> str:
        """Return store and slide, as messages name it."""
        return self.name

    def read(self) -> Bag:
        """Read all arrays of the bag, embeddings of shape (n_tiles, dim) among them.

        Raises BagError if its rows cannot be read, or differ from those that were packed.
        """
        bag = Bag(
            features=self.read_features(),
            coords_px0=self._read("coords"),
            tissue_fraction=self._read("tissue_fraction"),
            meta=self.info.meta,
            views=None if self.info.views_dtype is None else self.read_views(),
            **self.series,
        )
        hashes = (bag.features_sha256, bag.views_sha256)
        for actual, expected in zip(hashes, self.hashes, strict=True):
            if actual != expected:
                raise BagError(
                    self.name,
                    actual=f"embeddings with hash {actual[:12]}…",
                    expected=f"{expected[:12]}…, as when they were packed",
                    hint=_HINT,
                )
        return bag

    def read_features(self) -> npt.NDArray[np.floating[Any]]:
        """Read the embeddings only, shape (n_tiles, dim)."""
        features = self._read("features").astype(self.info.dtype, copy=False)
        check_embeddings(self.name, features, hint=_HINT)
        return features

    def read_views(self) -> npt.NDArray[np.floating[Any]]:
        """Read the embeddings of views only, shape (n_tiles, n_views, dim); BagError if none."""
        if self.info.views_dtype is None:
            raise BagError(self.name, actual="no views", expected="a bag with views of its tiles")
        views = self._read(VIEWS).astype(self.info.views_dtype, copy=False)
        check_embeddings(self.name, views, what=VIEWS, hint=_HINT)
        return views

    def read_bag_info(self) -> BagInfo:
        """Return metadata, and shape and types of the arrays, from the table alone."""
        return self.info

    def _read(self, name: str) -> npt.NDArray[Any]:
        return self.arrays[name].read(self.first_row, self.info.n_tiles)


def _read_attributes(store: ObjectStore) -> Mapping[str, Any]:
    """Return the attributes of a complete packed store."""
    root = read_json(store, "zarr.json")
    if root is None:
        raise BagError(
            store.name,
            actual="there is no zarr store",
            expected="one that 'mil bags pack' wrote",
            hint="Name a folder of bags, or a packed store.",
        )
    attributes = root.get("attributes") if isinstance(root, dict) else None
    if not isinstance(attributes, dict):
        raise BagError(store.name, actual="a zarr store of another kind", expected=PACK_FORMAT)
    check_format(store.name, attributes, name=PACK_FORMAT, newest=PACK_VERSION)
    check_complete(store.name, attributes, hint=_HINT)
    return attributes


def _read_table(store: ObjectStore) -> dict[str, list[Any]]:
    """Return the columns of the table of bags."""
    table = ShardedArray(store, TABLE)
    n_bytes = table.shape[0]
    if table.dtype != np.uint8 or len(table.shape) != 1 or n_bytes > _MAX_TABLE_BYTES:
        raise BagError(
            store.name,
            actual=f"a table of {n_bytes:,} bytes",
            expected=f"at most {_MAX_TABLE_BYTES:,}",
        )
    try:
        columns = json.loads(table.read(0, n_bytes).tobytes())
    except (ValueError, RecursionError) as error:
        raise BagError(
            store.name, actual="its table of bags is not JSON", expected="JSON", hint=_HINT
        ) from error
    if not isinstance(columns, dict) or not all(isinstance(c, list) for c in columns.values()):
        raise BagError(store.name, actual="its table of bags has no columns", hint=_HINT)
    return columns


def _parse_series(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that only a bag of images has."""
    if values["order"] is None:
        return {}
    return {
        "order": np.array([_parse_count(index) for index in values["order"]], np.int64),
        "source": tuple(map(str, values["source"])),
    }


def _parse_id(value: Any) -> str:
    if not isinstance(value, str) or not is_plain_id(value):
        raise ValueError(f"slide id {value!r:.40}")
    return bag_id(value)


def _parse_count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.40} tiles")
    return value
