"""``embed_slides`` on disks that are full or cannot be written to, and folders that vanish."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from features.bags.convert import export_bags
from features.bags.formats.registry import BAG_FORMATS
from features.bags.h5 import bag_path, find_bags, read_bag, write_bag
from features.embedding.results import SlideResult
from features.encoders.base import Encoder
from features.encoders.config import record_runtime
from features.errors import OutputError
from features.parallel.locks import FolderLocks
from tests.disks import few_handles, full_after, read_only, small_disk
from tests.fakes import make_bag
from tests.features.embedding.test_pipeline import NoProgress, run


def contents(bags: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in find_bags(bags, may_be_empty=True).items()}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("number", "text", "advice"),
    [
        (errno.ENOSPC, "No space left on device", "Free some space"),
        (errno.EROFS, "Read-only file system", "Make the folder writable"),
    ],
)
def test_a_disk_that_refuses_stops_the_run_and_loses_nothing_whole(
    slides: Path,
    tmp_path: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    text: str,
    advice: str,
) -> None:
    run(slides, tmp_path / "whole", encoder)
    bags = tmp_path / "bags"
    with monkeypatch.context() as patched:
        full_after(patched, 1, number=number, text=text)
        with pytest.raises(OutputError, match=rf"bags/.*: cannot be written \({text}\).*{advice}"):
            run(slides, bags, encoder)
    kept, whole = contents(bags), contents(tmp_path / "whole")
    assert len(kept) == 1
    assert kept.items() <= whole.items()
    assert not list(bags.glob(".*.part*"))
    run(slides, bags, encoder)
    assert contents(bags) == whole


@pytest.mark.ci
def test_a_full_disk_of_real_size_is_survived(
    slides: Path,
    tmp_path: Path,
    encoder: Encoder,
) -> None:
    run(slides, tmp_path / "whole", encoder)
    whole = contents(tmp_path / "whole")
    with small_disk(tmp_path / "disk", n_bytes=1 << 20) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes((1 << 20) - max(map(len, whole.values())) - (24 << 10)))
        with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
            run(slides, disk / "bags", encoder)
        kept = contents(disk / "bags")
        assert kept.items() < whole.items()
        ballast.unlink()
        run(slides, disk / "bags", encoder)
        assert contents(disk / "bags") == whole


@pytest.mark.parametrize("room", [0, 2000, 30_000, 60_000])
def test_a_bag_that_does_not_fit_is_one_clear_error_and_leaves_the_old_one(
    tmp_path: Path, room: int
) -> None:
    with small_disk(tmp_path / "disk", n_bytes=1 << 20) as disk:
        write_bag(disk / "a.h5", make_bag("a", n_tiles=2))
        before = (disk / "a.h5").read_bytes()
        free = (1 << 20) - (16 << 10) - room
        (disk / "ballast").write_bytes(bytes(free))
        with pytest.raises(OutputError, match=r"a\.h5: cannot be written \(No space left"):
            write_bag(disk / "a.h5", make_bag("a", n_tiles=3000, dim=64))
        assert (disk / "a.h5").read_bytes() == before
        assert sorted(path.name for path in disk.iterdir()) == ["a.h5", "ballast"]


@pytest.mark.parametrize("layout", [name for name, form in BAG_FORMATS.items() if form.write])
def test_an_export_that_does_not_fit_is_one_clear_error(tmp_path: Path, layout: str) -> None:
    write_bag(tmp_path / "a.h5", make_bag("a", n_tiles=3000, dim=64))
    with small_disk(tmp_path / "disk", n_bytes=1 << 20) as disk:
        (disk / "ballast").write_bytes(bytes((1 << 20) - (80 << 10)))
        with pytest.raises(OutputError, match=r"cannot be written \(No space left"):
            export_bags(tmp_path, disk / "out", layout=layout, on_slide=lambda n_done, n_all: None)
        assert not list(disk.rglob(".*"))


def test_a_folder_that_cannot_be_written_to_is_an_error_before_anything_is_embedded(
    slides: Path,
    tmp_path: Path,
    encoder: Encoder,
) -> None:
    bags = tmp_path / "bags"
    bags.mkdir()
    with read_only(bags):
        with pytest.raises(OutputError, match=r"bags: cannot be written \(Read-only file system\)"):
            record_runtime(bags, "eager float32 batch 8")
        with pytest.raises(OutputError, match=r"bags: cannot be written \(Read-only file.*another"):
            run(slides, bags, encoder)
    run(slides, bags, encoder)
    assert len(find_bags(bags)) == 3


def test_a_lock_file_that_does_not_fit_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FolderLocks(tmp_path / "locks") as locks, monkeypatch.context() as patched:

        def full(_: FolderLocks) -> str:
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(FolderLocks, "_owner_record", full)
        with pytest.raises(OutputError, match=r"locks: cannot be written \(No space.*Free some"):
            locks.acquire("s0")
        assert not list((tmp_path / "locks").glob("*.claim"))
    with FolderLocks(tmp_path / "locks") as locks:
        assert locks.acquire("s0")


def test_bags_that_are_whole_can_be_read_from_a_folder_that_is_read_only(tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    bags.mkdir()
    write_bag(bag_path(bags, "a"), make_bag("a"))
    with read_only(bags):
        assert len(read_bag(find_bags(bags)["a"]).features) == 4


class Remover(NoProgress):
    """Progress that removes a folder as soon as the first slide is done."""

    def __init__(self, folder: Path, aside: Path) -> None:
        self._folder, self._aside = folder, aside

    def slide_ended(self, result: SlideResult) -> None:
        if not self._aside.exists():
            self._folder.rename(self._aside)


def test_a_folder_of_bags_that_vanishes_stops_the_run_and_is_not_made_anew(
    slides: Path,
    tmp_path: Path,
    encoder: Encoder,
) -> None:
    run(slides, tmp_path / "whole", encoder)
    bags, aside = tmp_path / "bags", tmp_path / "unplugged"
    with pytest.raises(OutputError, match=r"No such file or directory.*Bring the folder back"):
        run(slides, bags, encoder, progress=Remover(bags, aside))
    assert not bags.exists()
    aside.rename(bags)
    shutil.rmtree(bags / ".claims")  # of this process, which is still running
    run(slides, bags, encoder)
    assert contents(bags) == contents(tmp_path / "whole")


@pytest.mark.ci
def test_slides_that_vanish_fail_one_by_one_and_embedded_next_time(
    slides: Path,
    tmp_path: Path,
    encoder: Encoder,
) -> None:
    run(slides, tmp_path / "whole", encoder)
    bags, aside = tmp_path / "bags", tmp_path / "unplugged"
    for number in range(8):  # enough that some are not open yet
        shutil.copy(slides / "s1.tif", slides / f"t{number}.tif")
    results = run(slides, bags, encoder, progress=Remover(slides, aside))
    lost = [o for o in results if o.status == "failed" and "broken" not in o.path]
    assert lost
    assert all("no such file" in result.message.lower() for result in lost)
    aside.rename(slides)
    again = {o.slide_id: o.status for o in run(slides, bags, encoder)}
    assert [name for name, status in again.items() if status == "failed"] == ["broken"]
    assert contents(tmp_path / "whole").items() <= contents(bags).items()


@pytest.mark.ci
def test_too_many_open_files_give_advice_and_lose_nothing(
    slides: Path,
    tmp_path: Path,
    encoder: Encoder,
) -> None:
    run(slides, tmp_path / "whole", encoder)
    bags = tmp_path / "bags"
    with few_handles(n_left=1):
        try:
            text = " ".join(result.message for result in run(slides, bags, encoder))
        except OutputError as error:
            text = str(error)
    assert os.strerror(errno.EMFILE) in text
    assert "ulimit -n 4096" in text
    run(slides, bags, encoder)
    assert contents(bags) == contents(tmp_path / "whole")
