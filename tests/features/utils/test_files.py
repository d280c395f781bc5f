from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from features.bags.h5 import read_bag
from features.errors import BagError, OutputError, SlideError
from features.slides.search import find_slides
from features.utils.files import (
    atomic_folder,
    atomic_write,
    find_temporary_files,
    make_folder,
    path_exists,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_there_when_it_is_whole(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "table.csv"
    if before:
        path.write_text(before)
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".csv"
        assert temporary.name.startswith(".")
        temporary.write_text("new")
        assert path.exists() == bool(before)
        assert not before or path.read_text() == before
    assert path.read_text() == "new"
    assert names(tmp_path) == {"table.csv"}


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "gone", "gone/x", "\ud800"])
def test_what_no_file_system_could_hold_is_not_there(tmp_path: Path, name: str) -> None:
    assert not path_exists(tmp_path / name)
    assert path_exists(tmp_path)
    with pytest.raises(SlideError, match="no such file"):
        find_slides([tmp_path / name])
    with pytest.raises(BagError, match="no such bag"):
        read_bag(tmp_path / name)


def test_a_link_in_the_place_of_a_file_is_replaced_and_never_written_through(
    tmp_path: Path,
) -> None:
    (tmp_path / "precious").write_text("old")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "table.csv"
    path.symlink_to(tmp_path / "precious")
    with atomic_write(path) as temporary:
        pass_through = temporary.name
        temporary.write_text("new")
    (tmp_path / "out" / pass_through).symlink_to(tmp_path / "precious")
    with atomic_write(path) as temporary:
        temporary.write_text("newer")
    assert (tmp_path / "precious").read_text() == "old"
    assert path.read_text() == "newer"
    assert not path.is_symlink()
    assert names(tmp_path / "out") == {"table.csv"}


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_what_ends_early_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("ne")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == {"table.csv"}


def test_a_full_disk_is_one_clear_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "table.csv"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OutputError, match=r"table\.csv: cannot be written \(No space left"),
        atomic_write(path) as temporary,
    ):
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"table.csv"}


def test_a_missing_folder_and_a_folder_in_the_way_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "in the way").mkdir()
    for name in ("gone/table.csv", "in the way"):
        with (
            pytest.raises(OutputError, match="cannot be written"),
            atomic_write(tmp_path / name) as temporary,
        ):
            temporary.write_text("new")
    assert names(tmp_path) == {"in the way"}


def test_a_long_name_does_not_grow_past_what_a_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 240}.h5"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_folder_is_made_with_those_above_it_or_found(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert make_folder(folder) == folder
    assert make_folder(folder).is_dir()


def test_a_file_where_a_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    for name in ("a", "a/b"):
        with pytest.raises(OutputError, match=r"cannot be used as a folder.*Name another"):
            make_folder(tmp_path / name)


def test_neither_a_file_nor_a_link_to_nowhere_becomes_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, why in (("file", "a file"), ("link", "a link that leads nowhere")):
        refused = pytest.raises(OutputError, match=rf"cannot be used as a folder \({why}\)")
        with refused, atomic_folder(tmp_path / name):
            pytest.fail("nothing is made for it")
    with pytest.raises(OutputError, match="a link that leads nowhere"):
        make_folder(tmp_path / "link")
    assert (tmp_path / "file").read_text() == "x"


def test_what_killed_processes_left_is_told_by_the_file_it_lies_beside(tmp_path: Path) -> None:
    for name in (".s1.123.part.h5", ".s1.x.45.part.h5", ".s1.part.h5", "s1.h5", ".hidden"):
        (tmp_path / name).touch()
    with atomic_write(tmp_path / f"{'a' * 100}.h5") as temporary:  # a name that is cut short
        temporary.touch()
        assert find_temporary_files(tmp_path) == {
            "s1.h5": [tmp_path / ".s1.123.part.h5"],
            "s1.x.h5": [tmp_path / ".s1.x.45.part.h5"],
        }


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is a device or pipe"), atomic_write(tmp_path / "pipe"):
        raise AssertionError
    assert (tmp_path / "pipe").is_fifo()


def test_what_stands_for_standard_output_is_a_device_though_it_is_sent_to_a_file(
    tmp_path: Path,
) -> None:
    script = (
        "from pathlib import Path; from features.utils.files import is_device\n"
        "print(*map(is_device, map(Path, ('/dev/stdout', '/dev/fd/1', 'out.txt'))))"
    )
    with (tmp_path / "out.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True)
    assert (tmp_path / "out.txt").read_text() == "True True False\n"
