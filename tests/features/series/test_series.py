from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from features.errors import SlideError, TileError
from features.series.manifest import SeriesEntry, SeriesSpec
from features.series.series import ImageSeries, open_series
from features.series.windowing import DEFAULT_WINDOWS, parse_windows
from tests.scans import paint_slice, write_frames, write_scan, z_position_mm

WINDOWS = parse_windows(DEFAULT_WINDOWS)


def of_folder(folder: Path) -> ImageSeries:
    spec = SeriesSpec(bag_id="s", entries=(SeriesEntry(path=folder, source=folder.name),))
    return open_series(spec, windows=WINDOWS, side_px=48)


def of_files(*paths: Path, orders: tuple[float, ...] = ()) -> ImageSeries:
    entries = tuple(
        SeriesEntry(path=path, source=path.name, order=orders[i] if orders else None)
        for i, path in enumerate(paths)
    )
    return open_series(SeriesSpec(bag_id="s", entries=entries), windows=WINDOWS, side_px=48)


def numbers(series: ImageSeries) -> list[int | None]:
    return [image.header.instance_number if image.header else None for image in series.images]


def rejections(series: ImageSeries) -> list[str | TileError]:
    return [image.rejection for image in series.images if image.rejection is not None]


def test_slices_are_sorted_by_position_and_not_by_name_or_number(tmp_path: Path) -> None:
    series = of_folder(write_scan(tmp_path / "scan", n_slices=9))
    assert [z_position_mm(image.path) for image in series.images] == [5.0 * i for i in range(9)]
    assert numbers(series) == list(range(9, 0, -1))


def test_positions_count_along_the_normal_of_the_slices(tmp_path: Path) -> None:
    def tilt(index: int, header: Dataset) -> None:  # sagittal slices: the normal is along x
        header.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        header.ImagePositionPatient = [5 * index, 100 - index, 40]

    series = of_folder(write_scan(tmp_path / "scan", n_slices=5, alter=tilt))
    assert numbers(series) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_without_positions_the_scanners_numbers_decide(tmp_path: Path, tag: str) -> None:
    def forget(index: int, header: Dataset) -> None:
        if index == 0 or tag == "ImageOrientationPatient":
            delattr(header, tag)

    series = of_folder(write_scan(tmp_path / "scan", n_slices=6, alter=forget))
    assert numbers(series) == [1, 2, 3, 4, 5, 6]


def test_without_either_names_decide(tmp_path: Path) -> None:
    def forget(index: int, header: Dataset) -> None:
        del header.ImagePositionPatient, header.InstanceNumber

    series = of_folder(write_scan(tmp_path / "scan", n_slices=11, alter=forget))
    names = [image.source for image in series.images]
    assert names == sorted(names)


def test_the_tables_order_comes_before_everything(tmp_path: Path) -> None:
    files = sorted(write_scan(tmp_path / "scan", n_slices=4).iterdir())
    series = of_files(*files, orders=(3, 1, 4, 2))
    assert [image.path for image in series.images] == [files[1], files[3], files[0], files[2]]


def test_of_several_series_the_largest_is_taken_and_scout_views_are_left_out(
    tmp_path: Path,
) -> None:
    def mix(index: int, header: Dataset) -> None:
        if index in (0, 1):
            header.SeriesInstanceUID = "9.9"
        if index == 2:
            header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    series = of_folder(write_scan(tmp_path / "scan", n_slices=7, alter=mix))
    assert sorted(map(str, rejections(series))) == ["another series"] * 2 + ["scout view"]
    assert [z_position_mm(image.path) for image in series.images[:4]] == [15, 20, 25, 30]
    assert series.read(6) in ("another series", "scout view")


def test_a_copy_of_a_slice_counts_once(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", n_slices=3)
    shutil.copy(folder / "IM0001.dcm", folder / "copy.dcm")
    series = of_folder(folder)
    assert rejections(series) == ["copy"]
    assert [image.rejection for image in series.images] == [None, None, None, "copy"]


def test_slices_of_two_studies_are_no_scan(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan" / "one", n_slices=2, seed=(1,))
    write_scan(tmp_path / "scan" / "two", n_slices=2, seed=(2,))
    with pytest.raises(SlideError, match="slices of 2 studies in one bag"):
        of_folder(tmp_path / "scan")


def test_a_broken_slice_is_an_error_of_its_own_at_the_end(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", n_slices=3)
    (folder / "IM0000.dcm").write_bytes((folder / "IM0000.dcm").read_bytes()[:400])
    (folder / "bad.dcm").write_text("no")
    series = of_folder(folder)
    assert series.n_tiles == 4
    read = [series.read(index) for index in range(4)]
    assert [isinstance(each, np.ndarray) for each in read[:2]] == [True, True]
    assert sum(isinstance(each, TileError) for each in read) == 2


def test_other_files_of_a_folder_are_ignored(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", n_slices=2)
    for name in ("README.txt", "DICOMDIR", ".hidden.dcm", "notes.xml"):
        (folder / name).write_text("something")
    assert of_folder(folder).n_tiles == 2


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.txt").touch()
    with pytest.raises(SlideError, match="no image in it"):
        of_folder(tmp_path)


def test_a_slice_has_one_channel_per_window(tmp_path: Path) -> None:
    series = of_folder(write_scan(tmp_path / "scan", n_slices=1))
    square = series.read(0)
    assert isinstance(square, np.ndarray)
    assert square.shape == (48, 48, 3)
    brain, subdural, soft = square[24, 24].tolist()
    assert brain == pytest.approx(255 * 34 / 80, abs=15)
    assert subdural == pytest.approx(255 * 54 / 200, abs=8)
    assert soft == pytest.approx(255 * 184 / 380, abs=5)
    assert square[0, 0].tolist() == [0, 0, 0]


def test_plain_images_keep_the_order_of_the_table_or_of_their_names(tmp_path: Path) -> None:
    for name in ("s10.jpg", "s9.jpg", "s1.png"):
        Image.new("L", (65, 65), 7).save(tmp_path / name)
    assert [i.source for i in of_files(tmp_path / "s10.jpg", tmp_path / "s9.jpg").images] == [
        "s10.jpg", "s9.jpg",
    ]  # fmt: skip
    names = [image.source.rpartition("/")[2] for image in of_folder(tmp_path).images]
    assert names == ["s1.png", "s9.jpg", "s10.jpg"]


def test_frames_of_one_file_are_sorted_by_position(tmp_path: Path) -> None:
    slices = [paint_slice(np.random.default_rng(n)) for n in range(5)]
    (tmp_path / "scan").mkdir()
    write_frames(tmp_path / "scan" / "a.dcm", slices, positions=[20, 0, 15, 5, 10])
    series = of_folder(tmp_path / "scan")
    assert [i.source for i in series.images] == [f"scan/a.dcm#{n}" for n in (2, 4, 5, 3, 1)]
    square = series.read(0)
    assert isinstance(square, np.ndarray)
    assert square.shape == (48, 48, 3)


def test_frames_without_positions_stay_in_their_order_file_by_file(tmp_path: Path) -> None:
    slices = [paint_slice(np.random.default_rng(n)) for n in range(3)]
    (tmp_path / "scan").mkdir()
    for number, name in ((2, "a.dcm"), (1, "b.dcm")):
        write_frames(
            tmp_path / "scan" / name, slices, positions=None, InstanceNumber=number,
            ImagePositionPatient=None,
        )  # fmt: skip
    names = [image.source.rpartition("/")[2] for image in of_folder(tmp_path / "scan").images]
    assert names == [f"{name}#{n}" for name in ("b.dcm", "a.dcm") for n in (1, 2, 3)]
    shutil.copy(tmp_path / "scan" / "a.dcm", tmp_path / "scan" / "copy.dcm")
    assert rejections(of_folder(tmp_path / "scan")) == ["copy"] * 3
