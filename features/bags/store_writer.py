"""Writing all bags of a folder into one packed store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from features.bags.bag import (
    Bag,
    BagInfo,
    BagRef,
    check_same_fingerprint,
    check_slide_id,
    meta_attributes,
)
from features.bags.h5 import read_bag, read_bag_info
from features.bags.shard_reader import ObjectStore, read_json
from features.bags.store import PACK_FORMAT, PACK_VERSION, TABLE, VIEWS, arrays_of, open_bags
from features.errors import BagError, MilError, OutputError
from features.utils.files import atomic_folder, why_no_folder
from features.utils.paths import parse_url

__all__ = ["StoreSummary", "write_store"]

_SHARD_BYTES = 64 << 20
_CHUNK_BYTES = 256 << 10
_ARRAYS = ("features", "coords", "tissue_fraction", VIEWS)


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """Size of a packed store: bags, tiles, and bytes of the arrays of shape (n_tiles, ...)."""

    n_bags: int
    n_tiles: int
    n_bytes: int


def write_store(
    bags: Path,
    store: Path,
    *,
    overwrite: bool,
    on_bag: Callable[[int, int], None],
    copy_filter: Callable[[Path, Path, str], None] | None = None,
) -> StoreSummary:
    """Copy all bags of a folder or store into one sharded zarr store, a folder or URL.

    The headers of all bags are compared first, so that nothing is written where bags do not belong
    together; then the bags are copied one at a time, and a shard of 64 MiB is written when it is
    full: memory holds one bag and one shard of rows, shape (n_rows, dim). A folder is written under
    a temporary name and renamed at the end. Objects behind a URL cannot be renamed, so there the
    attribute ``complete`` is written last.

    ``on_bag`` is called after each bag with the number of finished bags and of all bags;
    ``copy_filter``, where the store is a folder, with the folder of bags, the new folder and the
    hash of the bags' tile filter, see :func:`features.filters.classifier.copy_filter`. Raises
    BagError if there is no bag, one is damaged or changes meanwhile, or two fingerprints differ,
    OutputError if ``store`` exists and may not be replaced, or cannot be written.
    """
    bag_refs = open_bags(bags)
    infos = _read_infos(bag_refs)
    _check_target(store, overwrite=overwrite)
    with _open_new_store(store) as new_store:
        writer = _StoreWriter(new_store, infos)
        for number, (slide_id, bag_ref) in enumerate(bag_refs.items(), start=1):
            writer.add(slide_id, _read_unchanged(bag_ref, infos[slide_id]))
            on_bag(number, len(bag_refs))
        summary = writer.finish()
        if copy_filter and isinstance(new_store, LocalStore):
            copy_filter(bags, new_store.root, writer.fingerprint.filter_sha256)
    return summary


def _read_infos(bag_refs: Mapping[str, BagRef]) -> dict[str, BagInfo]:
    """Read the headers of bags, which must share a fingerprint and be named after their slides."""
    infos: dict[str, BagInfo] = {}
    for slide_id, bag_ref in bag_refs.items():
        infos[slide_id] = read_bag_info(bag_ref)
        check_slide_id(bag_ref, infos[slide_id].meta, slide_id)
    check_same_fingerprint(
        [(bag_ref, infos[slide_id].meta.fingerprint) for slide_id, bag_ref in bag_refs.items()]
    )
    return infos


def _read_unchanged(bag_ref: BagRef, info: BagInfo) -> Bag:
    """Read a bag, which must still be the one whose header was read."""
    bag = read_bag(bag_ref)
    if bag.meta != info.meta or len(bag.features) != info.n_tiles:
        raise BagError(
            bag_ref,
            actual="another bag than when packing began",
            expected="bags that do not change while they are packed",
            hint="Wait until no program writes them any more, and pack again.",
        )
    return bag


def _check_target(store: Path, *, overwrite: bool) -> None:
    """Raise if the target holds anything, except a packed store that may be replaced."""
    url = parse_url(store)
    name = url or store
    why = why_no_folder(store) if url is None else ""
    root = None if why else read_json(ObjectStore(store), "zarr.json")
    if root is None:
        if why or _holds_anything(store):
            raise OutputError(
                name, actual=why or "there is something already", expected="a new or empty folder",
                hint="Choose another target with --out.",
            )  # fmt: skip
        return
    attributes = root.get("attributes") if isinstance(root, dict) else None
    is_ours = isinstance(attributes, dict) and attributes.get("format") == PACK_FORMAT
    if not (is_ours and overwrite):
        raise OutputError(
            name,
            actual="there is a packed store already" if is_ours else "there is another zarr store",
            expected="nothing there",
            hint="Replace it with --overwrite." if is_ours else "Choose another target with --out.",
        )


def _holds_anything(path: Path) -> bool:
    filesystem, root = fsspec.core.url_to_fs(parse_url(path) or str(path))
    try:
        return bool(filesystem.isfile(root) or filesystem.ls(root, detail=False))
    except FileNotFoundError:
        return False


@contextmanager
def _open_new_store(path: Path) -> Iterator[Store]:
    """Yield a zarr store to write; a folder appears at ``path`` only when the block succeeds."""
    url = parse_url(path)
    if url is None:
        with atomic_folder(path) as temporary, _as_output_error(path):
            yield LocalStore(temporary)
        return
    with _as_output_error(url):
        filesystem, root = fsspec.core.url_to_fs(url)
        # The header goes first, so that the old store is never taken for a complete one.
        for name in ("zarr.json", *_ARRAYS, TABLE):
            if filesystem.exists(f"{root}/{name}"):
                filesystem.rm(f"{root}/{name}", recursive=True)
        yield FsspecStore.from_url(url)


@contextmanager
def _as_output_error(name: object) -> Iterator[None]:
    try:
        yield
    except MilError:
        raise
    except Exception as error:  # fsspec and zarr raise errors of many kinds.
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise OutputError(
            name,
            actual=f"cannot be written ({reason})",
            hint="Check free space and permissions there; then pack again.",
        ) from error


class _StoreWriter:
    """Writes the arrays of a store shard by shard, then its table and the mark of completeness."""

    def __init__(self, store: Store, infos: Mapping[str, BagInfo]) -> None:
        self._store, self._infos = store, infos
        self._contents: dict[str, dict[str, Any]] = {}
        self._n_tiles = sum(info.n_tiles for info in infos.values())
        self.fingerprint = next(iter(infos.values())).meta.fingerprint
        dim, n_views = self.fingerprint.dim, self.fingerprint.n_views
        self._fields = arrays_of(self.fingerprint)
        layouts: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "features": ((dim,), _widest(info.dtype for info in infos.values())),
            "coords": ((2,), np.dtype(np.int64)),
            "tissue_fraction": ((), np.dtype(np.float32)),
            VIEWS: ((n_views, dim), _widest(info.views_dtype for info in infos.values())),
        }
        layouts = {name: layouts[name] for name in self._fields}
        version = PACK_VERSION if n_views else 1
        attributes = {"format": PACK_FORMAT, "format_version": version, "complete": False}
        zarr.create_group(store, attributes=attributes)
        row_bytes = max(math.prod(shape) * dtype.itemsize for shape, dtype in layouts.values())
        rows = _shard_rows(row_bytes, n_rows=self._n_tiles)
        self._arrays = {
            name: _create(store, name, (self._n_tiles, *shape), dtype, rows=rows)
            for name, (shape, dtype) in layouts.items()
        }
        self._shard = {
            name: np.empty((rows[0], *shape), dtype) for name, (shape, dtype) in layouts.items()
        }
        self._n_buffered = self._n_written = 0

    def add(self, slide_id: str, bag: Bag) -> None:
        """Append the rows of a bag."""
        self._contents[slide_id] = {
            "features_sha256": bag.features_sha256,
            "order": None if bag.order is None else bag.order.tolist(),
            "source": bag.source,
        }
        if bag.views is not None:
            self._contents[slide_id] |= {
                "views_sha256": bag.views_sha256, "views_dtype": bag.views.dtype.name
            }  # fmt: skip
        rows = {name: getattr(bag, field) for name, field in self._fields.items()}
        first, n_rows = 0, len(bag.features)
        while first < n_rows:
            n_free = len(self._shard["features"]) - self._n_buffered
            count = min(n_free, n_rows - first)
            target = slice(self._n_buffered, self._n_buffered + count)
            for name, shard in self._shard.items():
                shard[target] = rows[name][first : first + count]
            self._n_buffered, first = self._n_buffered + count, first + count
            if count == n_free:
                self._write_shard()

    def finish(self) -> StoreSummary:
        """Write the last rows, the table, and that the store is complete."""
        self._write_shard()
        self._write_table()
        zarr.open_group(self._store, mode="r+").update_attributes({
            "complete": True, "fingerprint": asdict(self.fingerprint),
            "n_bags": len(self._infos), "n_tiles": self._n_tiles,
        })  # fmt: skip
        n_bytes = sum(array.nbytes for array in self._arrays.values())
        return StoreSummary(n_bags=len(self._infos), n_tiles=self._n_tiles, n_bytes=n_bytes)

    def _write_shard(self) -> None:
        first, last = self._n_written, self._n_written + self._n_buffered
        if last > first:
            for name, array in self._arrays.items():
                array[first:last] = self._shard[name][: self._n_buffered]
        self._n_written, self._n_buffered = last, 0

    def _write_table(self) -> None:
        """Write the table: columns with one entry per bag, without the shared fingerprint."""
        shared = asdict(self.fingerprint)
        bags = [
            {name: v for name, v in meta_attributes(info.meta).items() if name not in shared}
            | {"n_tiles": info.n_tiles, "dtype": info.dtype.name, **self._contents[slide_id]}
            for slide_id, info in self._infos.items()
        ]
        columns = {name: [bag[name] for bag in bags] for name in bags[0]}
        content = np.frombuffer(json.dumps(columns, separators=(",", ":")).encode(), np.uint8)
        rows = _shard_rows(1, n_rows=len(content))
        _create(self._store, TABLE, content.shape, content.dtype, rows=rows)[:] = content


def _widest(dtypes: Iterable[np.dtype[Any] | None]) -> np.dtype[Any]:
    known = [dtype for dtype in dtypes if dtype is not None]
    return max(known, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float16))


def _shard_rows(row_bytes: int, *, n_rows: int) -> tuple[int, int]:
    """Return the rows per shard and per chunk: shards of equal size with little unused space."""
    chunk = max(1, _CHUNK_BYTES // max(row_bytes, 1))
    largest = max(chunk, _SHARD_BYTES // max(row_bytes, 1) // chunk * chunk)
    n_shards = max(1, -(-n_rows // largest))
    return max(1, -(-n_rows // n_shards // chunk)) * chunk, chunk


def _create(
    store: Store, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, rows: tuple[int, int]
) -> zarr.Array[Any]:
    """Create an array in uncompressed shards; chunks of zeros are written like any other."""
    return zarr.create_array(
        store, name=name, shape=shape, dtype=dtype.newbyteorder("<"), chunks=(rows[1], *shape[1:]),
        shards=(rows[0], *shape[1:]), filters=None, compressors=None, fill_value=0,
        config={"write_empty_chunks": True},
    )  # fmt: skip
