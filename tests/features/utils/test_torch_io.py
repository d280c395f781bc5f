"""Torch files: tensors come back, implausible sizes are refused, damage is an ordinary error."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from features.utils.torch_io import safe_torch_load


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_come_back_as_they_were_saved(tmp_path: Path, *, legacy: bool) -> None:
    saved = {"state_dict": {"weight": torch.arange(12.0).reshape(3, 4)}, "epoch": 3}
    path = tmp_path / "a.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    loaded = safe_torch_load(path)
    assert isinstance(loaded, dict)
    assert loaded["epoch"] == 3
    torch.testing.assert_close(loaded["state_dict"]["weight"], saved["state_dict"]["weight"])


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(100_000), tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    with pytest.raises(ValueError, match=r"unpacks to 4\d\d,\d\d\d bytes, more than its own size"):
        safe_torch_load(tmp_path / "a.pth")


def test_a_file_larger_than_the_free_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(torch.zeros(1000), tmp_path / "a.pth")
    monkeypatch.setattr("features.utils.torch_io.available_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"[45],\d\d\d bytes, more than the 1,000 bytes of free"):
        safe_torch_load(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"noise"])
def test_damage_is_an_error_of_python(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(Exception, match=r"."):
        safe_torch_load(tmp_path / "a.pth")


def test_a_program_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(pickle.UnpicklingError):
        safe_torch_load(tmp_path / "a.pth")
