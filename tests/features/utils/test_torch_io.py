"""Files of tensors that would fill the memory are refused before PyTorch reads them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from features.utils.torch_io import safe_torch_load

BYTEARRAY_OF_A_TERABYTE = (
    b"\x80\x02c__builtin__\nbytearray\nq\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."
)


def archive(path: Path, content: bytes, *, name: str = "data.pkl") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"a/{name}", content)
        file.writestr("a/version", "3\n")
        file.writestr("a/byteorder", "little")
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_come_back_as_they_were_saved(tmp_path: Path, *, legacy: bool) -> None:
    saved = {"state_dict": {"weight": torch.arange(12.0).reshape(3, 4)}, "epoch": 3}
    path = tmp_path / "a.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    found = safe_torch_load(path)
    assert isinstance(found, dict)
    assert found["epoch"] == 3
    torch.testing.assert_close(found["state_dict"]["weight"], saved["state_dict"]["weight"])


def test_a_few_bytes_that_ask_for_a_terabyte_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bytearray', which no tensor needs"):
        safe_torch_load(archive(tmp_path / "a.pth", BYTEARRAY_OF_A_TERABYTE))
    (tmp_path / "legacy.pth").write_bytes(BYTEARRAY_OF_A_TERABYTE)
    with pytest.raises(ValueError, match="'bytearray', which no tensor needs"):
        safe_torch_load(tmp_path / "legacy.pth")


def test_neither_another_spelling_nor_an_archive_behind_it_hides_a_pickle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bytearray', which no tensor needs"):
        safe_torch_load(archive(tmp_path / "a.pth", BYTEARRAY_OF_A_TERABYTE, name="DATA.PKL"))
    harmless = archive(tmp_path / "b.pth", b"\x80\x02}.").read_bytes()
    (tmp_path / "c.pth").write_bytes(BYTEARRAY_OF_A_TERABYTE + harmless)
    with pytest.raises(ValueError, match="'bytearray', which no tensor needs"):
        safe_torch_load(tmp_path / "c.pth")


def test_texts_that_double_again_and_again_are_refused(tmp_path: Path) -> None:
    content = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8\x86R."
    with pytest.raises(ValueError, match="'_codecs', which no tensor needs"):
        safe_torch_load(archive(tmp_path / "a.pth", content))


def test_a_key_that_would_take_years_to_hash_is_refused(tmp_path: Path) -> None:
    pairs = b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 60 + b"Ns."
    with pytest.raises(ValueError, match="again and again, which no tensor needs"):
        safe_torch_load(archive(tmp_path / "a.pth", pairs))
    saved = io.BytesIO()
    torch.save([], saved, _use_new_zipfile_serialization=False)
    (tmp_path / "old.pth").write_bytes(saved.getvalue().replace(b"\x80\x02]q\x00.", pairs, 1))
    with pytest.raises(ValueError, match="again and again, which no tensor needs"):
        safe_torch_load(tmp_path / "old.pth")


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(100_000), tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    with pytest.raises(ValueError, match=r"unpacks to 4\d\d,\d\d\d bytes, more than its own size"):
        safe_torch_load(tmp_path / "a.pth")


def test_an_empty_file_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        safe_torch_load(tmp_path / "a.pth")
