"""Libraries that report their use to their makers do not while this program runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import features
from onnx import TensorProto, helper
from features.encoders.exports import start_session

ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
model.ir_version = 8
session = start_session(model.SerializeToString(), n_threads=1)
assert session.run(None, {"x": [1.0]})[0] == 1
"""


def test_onnx_runtime_keeps_no_record_of_its_use(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    unset = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    home = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", _CODE], env=home | {"HOME": str(tmp_path)}, capture_output=True,
        text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in str(path).lower()]
