"""Whatever a library says when it fails, a command says it in one printable line, and goes on."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import onnxruntime
import openslide
import pandas as pd
import PIL.Image
import pydicom
import pytest
import safetensors
import tifffile
import timm
import torch
import zarr
from PIL import Image
from safetensors.torch import save_file

from features.bags.isolated_reader import IsolatedReader
from features.encoders import checkpoints
from features.errors import BagError
from mil.training.config import TrainConfig
from tests.cli.running import mil, mil_ok
from tests.cli.test_filter import tissue
from tests.features.slides.test_absent_pixels import PIXELS
from tests.features.slides.test_ome_zarr import write as write_zarr
from tests.scans import write_scan
from tests.studies import train_on, write_encoded_cohort

pytestmark = pytest.mark.ci
ODD = {
    "lines": "first\nsecond\r\nthird\x0bfourth\u2028fifth\x85sixth",
    "colours": "\x1b[31mred\x1b[0m\x07\x08\x1b]0;title\x07",
    "kilobytes": "many words " * 5000,
    "empty": "",
    "not UTF-8": b"caf\xe9 \xff\xfe".decode("utf-8", "surrogateescape"),
    "marks": "\u202egnirts\u202c \x00 \ufffe \U000e0041",
}
QUICK = TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=2)
SERIES = "--backbone test_vit --device cpu --tile-px 64"
MODEL = f"{SERIES} --slide-mpp 0.5 --rules none"
EMBED = f"embed a.png {MODEL} --bags {{out}}/bags"
NEW = "--patients new.csv --bags bags/a"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, quick_runs: pytest.MonkeyPatch) -> Path:
    """A slide of each reader, a scan, weights, and a run with its bags and tables."""
    folder = tmp_path_factory.mktemp("study")
    table = write_encoded_cohort(folder, "train", n_patients=12, encoders={"a": 1.2})
    write_encoded_cohort(folder, "new", n_patients=4, encoders={"a": 1.2}, prefix="x")
    train_on(folder, table, "a", config=QUICK)
    shutil.copy(folder / "runs" / "a" / "out_of_fold.csv", folder / "a.csv")
    mil_ok("bags", "pack", folder / "bags" / "a", "--out", folder / "pack.zarr")
    Image.fromarray(tissue(0, 160)).save(folder / "a.png")
    text = "Aperio Image Library v11.2.1 \r\n768x768 (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"
    for name, description in (("a.svs", text), ("other.tif", None)):  # OpenSlide knows no JPEG XL
        tifffile.imwrite(folder / name, PIXELS, photometric="rgb", tile=(64, 64), metadata=None,
                         description=description, compression="jpegxl" if name == "other.tif"
                         else None)  # fmt: skip
    write_zarr(folder / "a.zarr")
    write_scan(folder / "scans" / "s0", n_slices=2)
    torch.manual_seed(0)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pt")
    return folder


@pytest.fixture(autouse=True)
def in_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)


Fault = tuple[Any, str, Callable[[str], BaseException], str]
FAULTS: dict[str, Fault] = {
    "h5py, import": (h5py, "File", RuntimeError, "bags import bags/a --from clam --bags {out}/b"),
    "h5py, pack": (h5py, "File", KeyError, "bags pack bags/a --out {out}/b.zarr"),
    "h5py, export": (h5py, "File", ValueError, "bags export bags/a --to clam --out {out}/b"),
    "h5py, train": (h5py, "File", OSError,
                    "train --cohort train.csv --bags bags/a --run {out}/r --head mean"),
    "h5py, infer": (h5py, "File", OSError, f"infer {NEW} --run runs/a --out {{out}}/p.csv"),
    "h5py, explain": (h5py, "File", OSError, f"explain {NEW} --run runs/a --out {{out}}/p"),
    "h5py, audit": (h5py, "File", OSError, "audit train.csv --bags bags/a"),
    "h5py, describe": (h5py, "File", OSError,
                       "describe train.csv --bags bags/a --out {out}/p.html"),
    "h5py, evaluate": (h5py, "File", OSError,
                       "evaluate runs/a --cohort new.csv --bags bags/a --out {out}/p.html"),
    "h5py, view": (h5py, "File", OSError,
                   f"view runs/a {NEW} --port 0 --no-browser"),
    "h5py, verify": (IsolatedReader, "read", lambda text: BagError("a.h5", actual=text),
                     "bags verify bags/a"),
    "json, verify": (json, "loads", ValueError, "bags verify pack.zarr"),
    "json, compare": (json, "loads", ValueError, "compare runs/a a.csv --out {out}/p.html"),
    "pandas, compare": (pd, "read_csv", pd.errors.ParserError,
                        "compare runs/a a.csv --out {out}/p.html"),
    "h5py, recalibrate": (h5py, "File", OSError,
                          "recalibrate runs/a --cohort new.csv --bags bags/a --run {out}/r"),
    "openslide": (openslide, "OpenSlide", openslide.OpenSlideError, "inspect a.svs"),
    "tifffile": (tifffile, "TiffFile", tifffile.TiffFileError, "inspect other.tif"),
    "tifffile, any": (tifffile, "TiffFile", IndexError, "inspect other.tif"),
    "PIL": (PIL.Image, "open", PIL.UnidentifiedImageError, "inspect a.png"),
    "PIL, any": (PIL.Image, "open", SyntaxError, "inspect a.png"),
    "PIL, preview": (PIL.Image, "open", OSError, "preview a.png --slide-mpp 1 --out {out}"),
    "PIL, embed": (PIL.Image, "open", ValueError, f"{EMBED} --weights w.safetensors"),
    "pydicom": (pydicom, "dcmread", ValueError,
                        f"embed --series scans {SERIES} --bags {{out}}/b --weights w.safetensors"),
    "zarr": (zarr, "open_group", ValueError, "inspect a.zarr"),
    "safetensors": (checkpoints, "load_file", safetensors.SafetensorError,
                    f"{EMBED} --weights w.safetensors --execution eager"),
    "torch.load": (torch, "load", RuntimeError, f"{EMBED} --weights w.pt"),
    "onnxruntime": (onnxruntime, "InferenceSession", RuntimeError,
                    f"{EMBED} --weights w.safetensors --execution onnx"),
    "torch": (torch.nn.Conv2d, "forward", RuntimeError,
              f"{EMBED} --weights w.safetensors --execution eager"),
    "timm": (timm, "create_model", RuntimeError,
             f"{EMBED} --weights w.safetensors --execution eager"),
    "pandas": (pd, "read_csv", pd.errors.ParserError, "audit train.csv"),
}  # fmt: skip


def said(fault: Fault, text: str, out: Path) -> tuple[int, list[str]]:
    """Return the exit code and the lines of a command while a library fails with a text."""
    owner, name, kind, command = fault
    out.mkdir()

    def fail(*_: object, **__: object) -> None:
        raise kind(text)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, fail)
        result = mil(*shlex.split(command.format(out=out)))
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.output.splitlines()


@pytest.mark.parametrize("library", FAULTS)
def test_an_error_of_a_library_is_one_printable_line(library: str, tmp_path: Path) -> None:
    code, plain = said(FAULTS[library], "plain words", tmp_path / "plain")
    assert code in {1, 3}, plain
    for number, (name, text) in enumerate(ODD.items()):
        odd_code, odd = said(FAULTS[library], text, tmp_path / str(number))
        assert odd_code == code, (name, odd)
        assert len(odd) == len(plain), (name, odd, plain)
        assert all(line.isprintable() for line in odd), (name, odd)
        assert max(map(len, odd)) < 3000, name
