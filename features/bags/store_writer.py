"""All bags of a folder into one packed store."""

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
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from features.bags.bag import (
    Bag,
    BagInfo,
    BagRef,
    Fingerprint,
    check_fingerprint,
    meta_attributes,
)
from features.bags.h5 import read_bag, read_bag_info
from features.bags.shard_reader import open_object_store, read_json
from features.bags.store import PACK_FORMAT, PACK_VERSION, TABLE, VIEWS, arrays_of, open_bags
from features.errors import BagError, MilError, OutputError
from features.utils.files import atomic_folder
from features.utils.paths import parse_url

__all__ = ["StoreSummary", "write_store"]

_SHARD_BYTES = 64 << 20
_CHUNK_BYTES = 256 << 10
_ARRAYS = ("features", "coords", "tissue_fraction", VIEWS)
_ROW_TYPES: dict[str, np.dtype[Any]] = {
    "coords": np.dtype(np.int64),
    "tissue_fraction": np.dtype(np.float32),
}


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What a packed store holds."""

    n_bags: int
    """Bags."""
    n_tiles: int
    """Embeddings of all of them."""
    n_bytes: int
    """Bytes of their arrays."""


def write_store(
    bags: Path,
    store: Path,
    *,
    overwrite: bool,
    on_bag: Callable[[int, int], None],
    copy_filter: Callable[[Path, Path, str], None] | None = None,
) -> StoreSummary:
    """Copy all bags into one sharded zarr store that is read as they are.

    Bags are looked through first, so that nothing is written where they do not belong together;
    then they are copied one at a time, and a shard is written when it is full: memory holds one
    bag and one shard. A folder is filled beside and takes its place when all is done. Behind a URL
    nothing can be renamed, so the store calls itself complete last of all.

    Parameters
    ----------
    bags
        Folder of bags, or another packed store.
    store
        Folder or URL of the new store.
    overwrite
        Replace a store that is there.
    on_bag
        Told after each bag how many are done, and of how many.
    copy_filter
        Called with the folder of bags, the new folder and the hash of the bags' tile filter where
        the store is a folder, see :func:`features.filters.classifier.copy_filter`.

    Raises
    ------
    BagError
        If there is no bag, one is damaged, two were made differently, or one changes meanwhile.
    OutputError
        If there is something at ``store`` that may not be replaced, or it cannot be written.
    """
    places = open_bags(bags)
    heads = _heads_of(places)
    _check_target(store, overwrite=overwrite)
    with _open_new_store(store) as filled:
        packer = _StoreWriter(filled, heads)
        for number, (slide_id, place) in enumerate(places.items(), start=1):
            packer.add(slide_id, _read_same(place, heads[slide_id]))
            on_bag(number, len(places))
        packer.finish()
        if copy_filter and isinstance(filled, LocalStore):
            copy_filter(bags, filled.root, packer.fingerprint.filter_sha256)
    return StoreSummary(n_bags=len(places), n_tiles=packer.n_tiles, n_bytes=packer.n_bytes)


def _heads_of(places: Mapping[str, BagRef]) -> dict[str, BagInfo]:
    """What each bag says about itself; all made alike and named after their slides."""
    heads: dict[str, BagInfo] = {}
    for slide_id, place in places.items():
        head = read_bag_info(place)
        if head.meta.slide_id != slide_id:
            raise BagError(
                place,
                actual=f"the bag of slide {head.meta.slide_id!r}",
                expected=f"that of {slide_id!r}",
                hint="Name the file after its slide.",
            )
        first = next(iter(heads.values()), head)
        check_fingerprint(
            first.meta.fingerprint,
            [(place, head.meta.fingerprint)],
            source=f"the bag of {first.meta.slide_id!r}",
        )
        heads[slide_id] = head
    return heads


def _read_same(place: BagRef, head: BagInfo) -> Bag:
    """The bag, which must be what its head was."""
    bag = read_bag(place)
    if bag.meta != head.meta or len(bag.features) != head.n_tiles:
        raise BagError(
            place,
            actual="another bag than a moment ago",
            expected="bags that stay as they are while they are packed",
            hint="Wait until whatever writes them has ended, and pack again.",
        )
    return bag


def _check_target(store: Path, *, overwrite: bool) -> None:
    """Refuse to write among other things, and over a pack without being asked to."""
    where = parse_url(store) or store
    root = read_json(open_object_store(store), "zarr.json")
    if root is None:
        if _holds_anything(store):
            raise OutputError(
                where, actual="there is something already", expected="a new or empty folder",
                hint="Name another place with --out.",
            )  # fmt: skip
        return
    attributes = root.get("attributes") if isinstance(root, dict) else None
    is_ours = isinstance(attributes, dict) and attributes.get("format") == PACK_FORMAT
    if not (is_ours and overwrite):
        raise OutputError(
            where,
            actual="there is a packed store already" if is_ours else "there is another zarr store",
            expected="nothing there",
            hint="Replace it with --overwrite." if is_ours else "Name another place with --out.",
        )


def _holds_anything(place: Path) -> bool:
    system, root = fsspec.core.url_to_fs(parse_url(place) or str(place))
    try:
        return bool(system.isfile(root) or system.ls(root, detail=False))
    except FileNotFoundError:
        return False


@contextmanager
def _open_new_store(place: Path) -> Iterator[Store]:
    """A zarr store to fill, whole at ``place`` only when the block has ended well."""
    url = parse_url(place)
    if url is None:
        with atomic_folder(place) as beside, _as_output_error(place):
            yield LocalStore(beside)
        return
    with _as_output_error(url):
        system, root = fsspec.core.url_to_fs(url)
        for name in ("zarr.json", *_ARRAYS, TABLE):  # the old store stops being one first of all
            if system.exists(f"{root}/{name}"):
                system.rm(f"{root}/{name}", recursive=True)
        yield FsspecStore.from_url(url)


@contextmanager
def _as_output_error(where: object) -> Iterator[None]:
    try:
        yield
    except MilError:
        raise
    except Exception as error:  # fsspec and zarr meet what is wrong in too many ways to list
        said = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise OutputError(
            where,
            actual=f"cannot be written ({' '.join(said.split())})",
            hint="Check free space and permissions there; then pack again.",
        ) from error


class _StoreWriter:
    """Fills the arrays of a store shard by shard, and then says that it is whole."""

    def __init__(self, store: Store, heads: Mapping[str, BagInfo]) -> None:
        self._store, self._heads = store, heads
        self._rest: dict[str, dict[str, Any]] = {}
        self.n_tiles = sum(head.n_tiles for head in heads.values())
        self.fingerprint: Fingerprint = next(iter(heads.values())).meta.fingerprint
        made = self.fingerprint
        self._fields = arrays_of(made)
        dim = made.dim
        shapes = {
            "features": (dim,),
            "coords": (2,),
            "tissue_fraction": (),
            VIEWS: (made.n_views, dim),
        }
        types: dict[str, np.dtype[Any]] = {
            "features": _widest(head.dtype for head in heads.values()),
            VIEWS: _widest(head.views_dtype for head in heads.values()),
            **_ROW_TYPES,
        }
        version = PACK_VERSION if made.n_views else 1
        attributes = {"format": PACK_FORMAT, "format_version": version, "complete": False}
        zarr.create_group(store, attributes=attributes)
        widest = max(math.prod(shapes[name]) * types[name].itemsize for name in self._fields)
        rows = _shard_rows(widest, n_rows=self.n_tiles)
        self._arrays = {
            name: _create(store, name, (self.n_tiles, *shapes[name]), types[name], rows=rows)
            for name in self._fields
        }
        self._shards = {
            name: np.empty((rows[0], *shapes[name]), types[name]) for name in self._fields
        }
        self._n_waiting = self._n_written = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows."""
        return sum(array.nbytes for array in self._arrays.values())

    def add(self, slide_id: str, bag: Bag) -> None:
        """Put the rows of a bag behind those of the bag before."""
        self._rest[slide_id] = {
            "features_sha256": bag.features_sha256,
            "order": None if bag.order is None else bag.order.tolist(),
            "source": bag.source,
        }
        if bag.views is not None:
            self._rest[slide_id] |= {
                "views_sha256": bag.views_sha256, "views_dtype": bag.views.dtype.name
            }  # fmt: skip
        rows = {name: getattr(bag, field) for name, field in self._fields.items()}
        first, n_rows = 0, len(bag.features)
        while first < n_rows:
            room = len(self._shards["features"]) - self._n_waiting
            count = min(room, n_rows - first)
            for name, shard in self._shards.items():
                shard[self._n_waiting : self._n_waiting + count] = rows[name][first : first + count]
            self._n_waiting, first = self._n_waiting + count, first + count
            if count == room:
                self._write()

    def finish(self) -> None:
        """Write what waits and the table; then the store is complete."""
        self._write()
        _write_table(self._store, self._table())
        zarr.open_group(self._store, mode="r+").update_attributes({
            "complete": True, "fingerprint": asdict(self.fingerprint),
            "n_bags": len(self._heads), "n_tiles": self.n_tiles,
        })  # fmt: skip

    def _write(self) -> None:
        first, last = self._n_written, self._n_written + self._n_waiting
        if last > first:
            for name, array in self._arrays.items():
                array[first:last] = self._shards[name][: self._n_waiting]
        self._n_written, self._n_waiting = last, 0

    def _table(self) -> dict[str, list[Any]]:
        """One row a bag: what it says about itself, and what it holds."""
        rows = []
        for slide_id, head in self._heads.items():
            own = meta_attributes(head.meta)
            for name in asdict(self.fingerprint):
                del own[name]
            held = {"n_tiles": head.n_tiles, "dtype": head.dtype.name, **self._rest[slide_id]}
            rows.append({**own, **held})
        return {name: [row[name] for row in rows] for name in rows[0]}


def _widest(types: Iterable[np.dtype[Any] | None]) -> np.dtype[Any]:
    known = [dtype for dtype in types if dtype is not None]
    return max(known, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float16))


def _shard_rows(row_bytes: int, *, n_rows: int) -> tuple[int, int]:
    """Rows of a shard and of a chunk in it: shards of one size, hardly longer than the rows."""
    chunk = max(1, _CHUNK_BYTES // max(row_bytes, 1))
    most = max(chunk, _SHARD_BYTES // max(row_bytes, 1) // chunk * chunk)
    n_shards = max(1, -(-n_rows // most))
    return max(1, -(-n_rows // n_shards // chunk)) * chunk, chunk


def _create(
    store: Store, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, rows: tuple[int, int]
) -> zarr.Array[Any]:
    """An array in plain shards; chunks that hold nothing but zeros are written, too."""
    return zarr.create_array(
        store, name=name, shape=shape, dtype=dtype.newbyteorder("<"), chunks=(rows[1], *shape[1:]),
        shards=(rows[0], *shape[1:]), filters=None, compressors=None, fill_value=0,
        config={"write_empty_chunks": True},
    )  # fmt: skip


def _write_table(store: Store, columns: Mapping[str, list[Any]]) -> None:
    text = json.dumps(columns, separators=(",", ":")).encode()
    content: npt.NDArray[np.uint8] = np.frombuffer(text, np.uint8)
    array = _create(
        store, TABLE, content.shape, content.dtype, rows=_shard_rows(1, n_rows=len(content))
    )
    array[:] = content
