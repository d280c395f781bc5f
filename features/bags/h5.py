"""Bags as HDF5 files, one per slide or series; the readers take any :data:`BagRef`.

The layout is documented in ``docs/reference/bag.md``. Tools that read ``features`` and ``coords``
(CLAM, TRIDENT, torchmil and others) read these files as they are.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from features.bags.bag import (
    IMAGE,
    LARGEST_COORD_PX0,
    UNKNOWN_RGB,
    UNKNOWN_SHARE,
    Bag,
    BagInfo,
    BagMeta,
    BagRef,
    Fingerprint,
    bag_id,
    check_complete,
    check_format,
    check_slide_id,
    is_plain_id,
    meta_attributes,
    meta_from_attrs,
)
from features.bags.embeddings import (
    as_embeddings,
    check_embeddings,
    embedding_dtype,
    fits_float16,
    largest_absolute,
)
from features.bags.safe_hdf5 import create_h5, find_item, open_h5, read_array, read_attributes
from features.errors import BagError
from features.utils.files import missing_folder

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "bag_path",
    "find_bags",
    "read_bag",
    "read_bag_info",
    "read_features",
    "read_meta",
    "read_slide_bag",
    "read_views",
    "to_storage_dtype",
    "trident_attributes",
    "write_bag",
]

FORMAT = "mil-bag"
"""Value of the root attribute ``format``."""

FORMAT_VERSION = 2
"""Newest version that is read; newer ones are refused.

Bags of images, with views or with stain normalisation have version 2, which older readers refuse;
all others still have version 1, to the byte.
"""

_CHUNK_ROWS = 1024
_HINT = "Delete it and run 'mil embed' again."


def bag_path(bags_dir: Path, slide_id: str) -> Path:
    """Return the path of a slide's bag; raises BagError if the id leads to another folder."""
    if not is_plain_id(slide_id):
        raise BagError(
            repr(slide_id), actual="not usable as a file name", expected="a plain slide id"
        )
    return bags_dir / f"{slide_id}.h5"


def find_bags(bags_dir: Path, *, may_be_empty: bool = False) -> dict[str, Path]:
    """Return the paths of all bags of a folder by slide id, sorted.

    Files named after the slide with its suffix, such as ``006388_0.svs.h5``, or with the suffix
    ``.H5``, and names in decomposed Unicode count as well, see :func:`features.bags.bag.bag_id`.
    Raises BagError if the folder is missing or holds no bag, unless it may be empty, or if two
    files are of one slide.
    """
    paths: dict[str, Path] = {}
    for path in sorted(bags_dir.glob("*.[hH]5")):
        if path.name.startswith("."):
            continue
        if (first := paths.setdefault(bag_id(path.stem), path)) != path:
            raise BagError(
                bags_dir,
                actual=f"{first.name!r} and {path.name!r} are bags of one slide",
                expected="one bag per slide",
                hint="Delete one of them.",
            )
    if paths or may_be_empty:
        return paths
    inner = next((path.parent for path in sorted(bags_dir.glob("*/*.[hH]5"))), None)
    if inner is not None:
        raise BagError(
            bags_dir,
            actual=f"no bag (*.h5) in it, but in {inner}",
            expected="a folder of bags, one per slide",
            hint=f"Name one folder of bags, such as {shlex.quote(str(inner))}.",
        )
    raise BagError(
        bags_dir,
        actual="no bag (*.h5) in it" if bags_dir.is_dir() else missing_folder(bags_dir),
        expected="a folder of bags, one per slide",
        hint="Make them with 'mil embed PATHS --bags DIR', or name another folder of bags.",
    )


def to_storage_dtype(features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Return embeddings as float16, or as float32 if one does not fit; the shape stays.

    See :func:`features.bags.embeddings.fits_float16`.
    """
    if features.dtype == np.float16:
        return features
    fit = fits_float16(features.reshape(-1, features.shape[-1]))
    return features.astype(np.float16 if fit.all() else np.float32, copy=False)


def write_bag(path: Path, bag: Bag) -> None:
    """Write a bag whole or not at all; equal bags give equal bytes.

    Embeddings, shape (n_tiles, dim), are stored as float16, or as float32 if float16 cannot hold
    one, see :func:`to_storage_dtype`.

    Raises
    ------
    BagError
        If readers would refuse the embeddings: see
        :func:`features.bags.embeddings.check_embeddings`.
    OutputError
        If the file cannot be written.
    """
    fingerprint = bag.meta.fingerprint
    features = _to_storable(path, bag.features)
    views = None if bag.views is None else _to_storable(path, bag.views)
    with create_h5(path) as file:
        _write(file, "features", features, (_CHUNK_ROWS, fingerprint.dim))
        if bag.order is not None and bag.source is not None:
            _write(file, "order", bag.order.astype(np.int64, copy=False), (_CHUNK_ROWS,))
            _write(file, "source", _as_bytes(bag.source), (_CHUNK_ROWS,))
        else:
            _write(file, "coords", bag.coords_px0.astype(np.int64, copy=False), (_CHUNK_ROWS, 2))
            _write(file, "tissue_fraction", bag.tissue_fraction.astype(np.float32), (_CHUNK_ROWS,))
            file["coords"].attrs.update(trident_attributes(bag.meta))
        if views is not None:
            rows = max(1, _CHUNK_ROWS // fingerprint.n_views)
            _write(file, "views", views, (rows, fingerprint.n_views, fingerprint.dim))
        file["features"].attrs["encoder"] = fingerprint.encoder
        file.attrs["format"] = FORMAT
        is_new = bag.order is not None or fingerprint.stain_norm or fingerprint.views
        file.attrs["format_version"] = FORMAT_VERSION if is_new else 1
        # Defaults of later attributes are omitted, so that files of version 1 stay byte-identical.
        omitted = {p.name for p in fields(Fingerprint) if getattr(fingerprint, p.name) == p.default}
        if bag.meta.tissue_share == UNKNOWN_SHARE:
            omitted.add("tissue_share")
        if tuple(bag.meta.tissue_rgb) == UNKNOWN_RGB:
            omitted.add("tissue_rgb")
        optional = ("scene", "other_scenes", "settings", "reader", "warnings")
        omitted |= {name for name in optional if not getattr(bag.meta, name)}
        attributes = meta_attributes(bag.meta).items()
        file.attrs.update({name: value for name, value in attributes if name not in omitted})
        file.attrs["n_embedded"] = len(bag.features)
        file.attrs["complete"] = True


def read_bag(bag_ref: BagRef) -> Bag:
    """Read a bag: embeddings, shape (n_tiles, dim), corners of tiles, level-0 px, and the rest.

    Raises
    ------
    BagError
        If it is missing, damaged, incomplete, of another format or a newer version, or if its
        embeddings cannot be those of an encoder, see
        :func:`features.bags.embeddings.check_embeddings`.
    """
    if not isinstance(bag_ref, Path):
        return bag_ref.read()
    with _open(bag_ref) as file:
        meta = _parse_meta(bag_ref, attributes := read_attributes(file))
        features = _read_embeddings(bag_ref, file)
        if meta.kind == IMAGE:
            source = read_array(file, "source", ndim=(1,), kinds="S")
            bag = Bag.from_series(
                features,
                order=read_array(file, "order", ndim=(1,), kinds="iu"),
                source=tuple(text.decode("utf-8", "replace") for text in source.tolist()),
                meta=meta,
            )
        else:
            bag = Bag(
                features=features,
                coords_px0=_read_coords(bag_ref, file),
                tissue_fraction=read_array(file, "tissue_fraction", ndim=(1,), kinds="f"),
                meta=meta,
                views=_read_embeddings(bag_ref, file, "views")
                if meta.fingerprint.n_views
                else None,
            )
    n_embedded = attributes.get("n_embedded", len(bag.features))
    if n_embedded != len(bag.features):
        raise BagError(
            bag_ref,
            actual=f"{len(bag.features)} embeddings",
            expected=f"{n_embedded}, as its attribute n_embedded states",
            hint=_HINT,
        )
    return bag


def read_slide_bag(slide_id: str, bag_ref: BagRef) -> Bag:
    """Read the bag of a slide, embeddings of shape (n_tiles, dim), as :func:`read_bag`.

    Raises BagError also if its metadata name another slide, as the names of files written later
    come from the metadata.
    """
    bag = read_bag(bag_ref)
    check_slide_id(bag_ref, bag.meta, slide_id)
    return bag


def read_meta(bag_ref: BagRef) -> BagMeta:
    """Read the metadata of a bag, without its arrays; see :func:`read_bag_info`."""
    return read_bag_info(bag_ref).meta


def read_bag_info(bag_ref: BagRef) -> BagInfo:
    """Read the metadata of a bag, and shape and type of its arrays; raises as :func:`read_bag`."""
    if not isinstance(bag_ref, Path):
        return bag_ref.read_bag_info()
    with _open(bag_ref) as file:
        features, views = find_item(file, "features"), find_item(file, "views")
        if not isinstance(features, h5py.Dataset) or features.ndim != 2:
            raise BagError(bag_ref, actual="no 2-dimensional dataset 'features'")
        return BagInfo(
            meta=_parse_meta(bag_ref, read_attributes(file)),
            n_tiles=len(features),
            dtype=embedding_dtype(features.dtype),
            views_dtype=embedding_dtype(views.dtype) if isinstance(views, h5py.Dataset) else None,
        )


def read_features(bag_ref: BagRef) -> npt.NDArray[np.floating[Any]]:
    """Read only the embeddings of a bag, shape (n_tiles, dim); raises as :func:`read_bag`."""
    if not isinstance(bag_ref, Path):
        return bag_ref.read_features()
    with _open(bag_ref) as file:
        return _read_embeddings(bag_ref, file)


def read_views(bag_ref: BagRef) -> npt.NDArray[np.floating[Any]]:
    """Read only the embeddings of a bag's views, shape (n_tiles, n_views, dim).

    Raises BagError if it is missing or damaged, or holds no views.
    """
    if not isinstance(bag_ref, Path):
        return bag_ref.read_views()
    with _open(bag_ref) as file:
        return _read_embeddings(bag_ref, file, "views")


def _read_embeddings(path: Path, file: h5py.File, name: str = "features") -> npt.NDArray[Any]:
    """Read and check a dataset of embeddings, shape (n_tiles, dim) or (n_tiles, n_views, dim)."""
    array = read_array(file, name, ndim=(3,) if name == "views" else (2,), kinds="f")
    return as_embeddings(path, array, what="embeddings" if name == "features" else name)


def _read_coords(path: Path, file: h5py.File) -> npt.NDArray[np.int64]:
    """Read the corners of tiles, shape (n_tiles, 2), level-0 px."""
    coords = read_array(file, "coords", ndim=(2,), kinds="iu")
    largest = max(int(coords.max(initial=0)), -int(coords.min(initial=0)))
    if largest > LARGEST_COORD_PX0:
        raise BagError(
            path, actual=f"a tile at {largest:,} px", expected="level-0 px of a slide", hint=_HINT
        )
    return coords.astype(np.int64, copy=False)


def _open(path: Path) -> AbstractContextManager[h5py.File]:
    return open_h5(path, expected=f"a complete {FORMAT} file", hint=_HINT)


def _to_storable(path: Path, array: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Return embeddings in their stored type; raise unless readers will take them."""
    if not np.isfinite(largest_absolute(array)):
        n_bad = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).sum())
        raise BagError(
            path,
            actual=f"{n_bad} of {len(array)} embeddings hold NaN or infinity",
            expected="finite numbers",
            hint="Try --device cpu; if that changes nothing, the weights are damaged.",
        )
    stored = to_storage_dtype(array)
    hint = "Look at the slide with 'mil preview': if it shows one colour, leave it out; else the "
    check_embeddings(path, stored, hint=f"{hint}weights are damaged.")
    return stored


def _write(file: h5py.File, name: str, array: npt.NDArray[Any], chunks: tuple[int, ...]) -> None:
    """Write a resizable, chunked dataset without time stamps."""
    rows = (max(1, min(chunks[0], len(array))), *chunks[1:])
    file.create_dataset(
        name, data=array, maxshape=(None, *array.shape[1:]), chunks=rows, track_times=False
    )


def _as_bytes(texts: tuple[str, ...]) -> npt.NDArray[np.bytes_]:
    """Return texts as UTF-8 of a fixed length, which HDF5 stores without pointers."""
    return np.array([text.encode("utf-8", "replace") for text in texts] or [b""], "S")[: len(texts)]


def trident_attributes(meta: BagMeta) -> dict[str, Any]:
    """Return the attributes that TRIDENT writes on ``coords``.

    Sizes are in level-0 px; magnifications follow its convention, 10 / (µm per px).
    """
    mpp = (meta.mpp_x * meta.mpp_y) ** 0.5
    target_mpp = meta.fingerprint.target_mpp  # 0 in an imported bag that does not state it
    return {
        "patch_size": meta.fingerprint.tile_px,
        "patch_size_level0": round((meta.span_x_px0 * meta.span_y_px0) ** 0.5),
        "level0_magnification": 10.0 / mpp,
        "target_magnification": 10.0 / target_mpp if target_mpp else 0.0,
        "overlap": meta.fingerprint.overlap_px,
        "name": meta.slide_id,
        "savetodir": "bags",
        "level0_width": meta.width_px0,
        "level0_height": meta.height_px0,
    }


def _parse_meta(path: Path, attributes: Mapping[str, Any]) -> BagMeta:
    check_format(path, attributes, name=FORMAT, newest=FORMAT_VERSION)
    check_complete(path, attributes, hint=_HINT)
    return meta_from_attrs(attributes)
