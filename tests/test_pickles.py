"""Nothing that is read is executed: no call that could, and a pickle in the place of every file."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from features.bags.h5 import read_bag
from features.bags.store import open_bags
from features.encoders.weights import read_checkpoint
from features.errors import MilError
from features.filters.classifier import read_filter
from mil.inference.bundle import load_bundle
from tests.fakes import Harm

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    p for package in ("features", "mil", "cli") for p in ROOT.glob(f"{package}/**/*.py")
)
FORBIDDEN = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "joblib",
    "cloudpickle",
    "marshal",
    "shelve",
    "yaml",
}
"""Modules whose readers obey what they read; ``UnpicklingError`` alone is harmless."""


def to_bag(folder: Path, content: bytes) -> object:
    (folder / "s.h5").write_bytes(content)
    return read_bag(folder / "s.h5")


def as_filter(folder: Path, content: bytes) -> object:
    (folder / "f.safetensors").write_bytes(content)
    return read_filter(folder / "f.safetensors")


def as_weights(folder: Path, content: bytes) -> object:
    (folder / "w.pth").write_bytes(content)
    return read_checkpoint(folder / "w.pth")


def as_tensors(folder: Path, content: bytes) -> object:
    (folder / "w.safetensors").write_bytes(content)
    return read_checkpoint(folder / "w.safetensors")


def as_pack(folder: Path, content: bytes) -> object:
    (folder / "zarr.json").write_bytes(content)
    return open_bags(folder)


def as_run(folder: Path, content: bytes) -> object:
    (folder / "model.json").write_bytes(content)
    return load_bundle(folder)


@pytest.mark.parametrize("read", [to_bag, as_filter, as_weights, as_tensors, as_pack, as_run])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_in_the_place_of_any_file_is_refused_and_not_run(
    tmp_path: Path, read: Callable[[Path, bytes], object], protocol: int
) -> None:
    content = pickle.dumps({"weight": Harm(tmp_path / "harmed")}, protocol=protocol)
    with pytest.raises(MilError) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("read", [to_bag, as_filter, as_weights, as_tensors, as_pack, as_run])
def test_a_torch_file_with_code_in_the_place_of_any_file_is_refused_and_not_run(
    tmp_path: Path, read: Callable[[Path, bytes], object]
) -> None:
    torch.save({"weight": Harm(tmp_path / "harmed")}, tmp_path / "evil")
    with pytest.raises(MilError):
        read(tmp_path, (tmp_path / "evil").read_bytes())
    assert not (tmp_path / "harmed").exists()


def test_no_source_can_unpickle_or_run_what_it_reads() -> None:
    result = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            result += [f"{path.name}: {what}" for what in _suspects(node)]
    assert result == []


def _suspects(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names if name.name.split(".")[0] in FORBIDDEN]
    if isinstance(node, ast.ImportFrom):
        names = {name.name for name in node.names} - {"UnpicklingError"}
        return sorted(names) if (node.module or "").split(".")[0] in FORBIDDEN else []
    if not isinstance(node, ast.Call):
        return []
    name = ast.unparse(node.func)
    given = {part.arg: ast.unparse(part.value) for part in node.keywords}
    is_bad = (
        (name == "torch.load" and given.get("weights_only") != "True")
        or (name in {"np.load", "numpy.load"} and given.get("allow_pickle") != "False")
        or name in {"eval", "exec", "pd.read_pickle", "os.system", "pd.eval"}
        or given.get("shell") == "True"
    )
    return [ast.unparse(node)] if is_bad else []
