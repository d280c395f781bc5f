"""What of a folder is a slide, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from features.errors import SlideError
from features.slides.dicom_series import group_dicom_files
from features.slides.reader import open_slide
from features.slides.search import describe_passed_over, find_slides, search_slides
from tests.fakes import real_data
from tests.features.slides.slide_files import write_zarr

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
REPORT = "1.2.840.10008.5.1.4.1.1.88.34"
ANNOTATIONS = "1.2.840.10008.5.1.4.1.1.91.1"


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write_dicom(
    path: Path, series: str, *, kind: str = "VOLUME", sop_class: str = WHOLE_SLIDE
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.{abs(hash(path.name))}"
    data.SeriesInstanceUID = series
    if sop_class == WHOLE_SLIDE:
        data.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def names(folder: Path, *more: Path) -> tuple[list[str], dict[str, str]]:
    search = search_slides([folder, *more])
    slides = [path.relative_to(folder).as_posix() for path in search.slides]
    passed = {p.relative_to(folder).as_posix(): why.reason for p, why in search.passed_over.items()}
    return slides, passed


def test_a_file_named_in_several_ways_is_one_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(touch(tmp_path, "slides/a.tif", "slides/b.tif", "other/a.tif"))
    write_dicom(tmp_path / "slides" / "c.dcm", "1.2.3")
    (tmp_path / "link").symlink_to("slides")
    (tmp_path / "slides" / "d.tif").symlink_to("a.tif")  # another name is another slide
    once = search_slides([Path("slides")]).slides
    assert [path.name for path in once] == ["a.tif", "b.tif", "c.dcm", "d.tif"]
    for again in (tmp_path / "slides", Path("other/../slides"), Path("link"), *once):
        assert len(search_slides([Path("slides"), again]).slides) == len(once)
    assert len(search_slides([Path("slides"), Path("other")]).slides) == len(once) + 1


READ = ["a.qptiff", "b.SVSLIDE", "c.btf", "d.tf8", "e.jp2", "f.bmp", "g.webp", "h.ome.btf", "i.czi",
        "j.ptif", "k l.svs"]  # fmt: skip


def test_every_suffix_that_a_reader_knows_is_found(tmp_path: Path) -> None:
    slides, passed = names(touch(tmp_path, *READ))
    assert (slides, passed) == (READ, {})


@pytest.mark.parametrize(
    ("name", "reason", "is_slide"),
    [
        ("s.vsi", "no reader for .vsi, convert to OME-TIFF with bfconvert", True),
        ("s.LIF", "no reader for .lif, convert to OME-TIFF with bfconvert", True),
        ("s.isyntax", "no reader for .isyntax, export as TIFF with the vendor's software", True),
        ("s.kfb", "no reader for .kfb, export as TIFF", True),
        ("s.heic", "no reader for .heic, convert to PNG or TIFF", True),
        ("slides.zip", "an archive (.zip), unpack it first", True),
        ("slides.tar.gz", "an archive (.gz), unpack it first", True),
        ("notes.txt", "no slide by its name (.txt), read only if it is named", False),
        ("s.geojson", "no slide by its name (.geojson)", False),
        ("slide", "no slide by its name (no suffix)", False),
    ],
)
def test_what_is_passed_over_is_said_with_the_reason(
    tmp_path: Path, name: str, reason: str, is_slide: bool
) -> None:
    search = search_slides([touch(tmp_path, "a.svs", name)])
    assert [path.name for path in search.slides] == ["a.svs"]
    (why,) = search.passed_over.values()
    assert why.reason.startswith(reason)
    assert why.is_slide is is_slide
    assert bool(search.unread) is is_slide


def test_the_original_of_a_converted_slide_is_not_missed(tmp_path: Path) -> None:
    search = search_slides([touch(tmp_path, "a.ome.tif", "a.vsi", "b.vsi")])
    assert len(search.passed_over) == 2
    assert [path.name for path in search.unread] == ["b.vsi"]


def test_hidden_and_system_files_are_nobody_s_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "._a.svs", ".hidden.tif", ".cache/b.svs", "Thumbs.db", "desktop.ini",
          ".DS_Store", "with blank/c d.svs")  # fmt: skip
    assert names(tmp_path) == (["a.svs", "with blank/c d.svs"], {})


def test_links_to_files_are_followed_and_links_to_folders_are_said(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.svs", "slides/b.svs")
    (tmp_path / "slides" / "c.svs").symlink_to(tmp_path / "store" / "a.svs")
    (tmp_path / "slides" / "gone.svs").symlink_to(tmp_path / "store" / "gone.svs")
    (tmp_path / "slides" / "more").symlink_to(tmp_path / "store")
    slides, passed = names(tmp_path / "slides")
    assert slides == ["b.svs", "c.svs", "gone.svs"]  # the broken one fails by name when opened
    assert list(passed) == ["more"]
    assert "a link to a folder" in passed["more"]
    assert [p.name for p in find_slides([tmp_path / "slides" / "more"])] == ["a.svs"]


def test_a_zarr_without_the_suffix_is_one_slide_and_not_thousands_of_files(tmp_path: Path) -> None:
    write_zarr(tmp_path / "slide one", [np.full((256, 256, 1), 7, np.uint8)], axes="yx")
    assert names(tmp_path) == (["slide one"], {})
    open_slide(tmp_path / "slide one").close()


def test_the_pictures_of_a_vms_slide_are_its_parts(tmp_path: Path) -> None:
    touch(tmp_path, "s-0.jpg", "s-1.jpg", "s_map.jpg", "s_macro.jpg", "other.jpg")
    (tmp_path / "s.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=s-0.jpg\r\nImageFile(1,0)=s-1.jpg\n"
        "MapFile=s_map.jpg\nMacroImage = s_macro.jpg\n"
    )
    slides, passed = names(tmp_path)
    assert slides == ["other.jpg", "s.vms"]
    assert passed == dict.fromkeys(
        ["s-0.jpg", "s-1.jpg", "s_macro.jpg", "s_map.jpg"], "a part of a Hamamatsu VMS slide"
    )


def test_a_named_folder_without_slides_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.svs", "b/.hidden", "c/m/Slidedat.ini", "c/m/Data0001.dat")
    search = search_slides([tmp_path / name for name in "abc"])
    assert search.slides == [tmp_path / "a" / "1.svs"]
    assert {path.name: why.reason for path, why in search.unread.items()} == {
        "b": "a folder without slides",
        "m": "the data folder of a MIRAX slide without its .mrxs file beside it",
    }


def test_the_data_folder_of_a_mirax_slide_stands_for_it(tmp_path: Path) -> None:
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0001.dat")
    for named in ([tmp_path / "m"], [tmp_path / "m", tmp_path / "m.mrxs"], [tmp_path]):
        search = search_slides(named)
        assert (search.slides, search.passed_over) == ([tmp_path / "m.mrxs"], {})


@pytest.mark.parametrize(
    ("part", "whole"),
    [("m/Data0001.dat", "m.mrxs"), ("m/Slidedat.ini", "m.mrxs"), ("a.zarr/0/0.0", "a.zarr"),
     ("b/0/c/0/0", "b"), ("a.zarr/.zattrs", "a.zarr")],
)  # fmt: skip
def test_a_file_in_a_slide_is_called_its_part(tmp_path: Path, part: str, whole: str) -> None:
    touch(tmp_path, "m.mrxs", part, "b/zarr.json")
    (tmp_path / part).write_text("a part")
    with pytest.raises(SlideError, match=f"It is a part of a slide: name .*/{whole}[.]$"):
        open_slide(tmp_path / part)


def test_a_folder_of_what_cannot_be_read_is_an_error_that_says_so(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.vsi" for number in range(7)))
    with pytest.raises(
        SlideError, match=r"no slide in it; passed over 7 files, no reader for .vsi"
    ):
        find_slides([tmp_path])


def test_twenty_thousand_files_take_a_line(tmp_path: Path) -> None:
    search = search_slides([touch(tmp_path, "a.svs", *(f"{n:03}.vsi" for n in range(200)))])
    (line,) = describe_passed_over(search.passed_over)
    assert line.startswith("200 files, no reader for .vsi")
    assert line.endswith(": 000.vsi, 001.vsi, 002.vsi, 003.vsi, 004.vsi and 195 more")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two slides in one flat folder as archives hand them out, with what accompanies them."""
    write_dicom(tmp_path / "0-report.dcm", "1.9", sop_class=REPORT)
    write_dicom(tmp_path / "1.dcm", "1.1", kind="LABEL")
    write_dicom(tmp_path / "2.dcm", "1.1")
    write_dicom(tmp_path / "3.dcm", "1.2")
    write_dicom(tmp_path / "4.dcm", "1.1")
    write_dicom(tmp_path / "5.dcm", "1.2", kind="THUMBNAIL")
    write_dicom(tmp_path / "6.dcm", "1.3", kind="OVERVIEW")
    write_dicom(tmp_path / "7.dcm", "1.4", sop_class=ANNOTATIONS)
    return tmp_path


PASSED = {
    "0-report.dcm": "a DICOM object of another kind (Comprehensive 3D SR)",
    "6.dcm": "a DICOM overview without its slide",
    "7.dcm": "a DICOM object of another kind (Microscopy Bulk Simple Annotations)",
}


def test_dicom_files_are_grouped_by_series(archive: Path) -> None:
    slides, passed = names(archive)
    assert slides == ["1.dcm", "3.dcm"]
    assert passed["6.dcm"] == PASSED["6.dcm"]
    assert set(passed) == set(PASSED)
    assert all(reason.startswith("a DICOM") for reason in passed.values())


def test_dicom_files_given_by_name_are_grouped_too(archive: Path) -> None:
    search = search_slides(sorted(archive.glob("*.dcm")))
    assert [path.name for path in search.slides] == ["1.dcm", "3.dcm"]
    assert {path.name for path in search.passed_over} == set(PASSED)
    assert find_slides([archive / "4.dcm"]) == [archive / "4.dcm"]


def test_dicom_files_without_suffix_and_in_other_folders_are_found(archive: Path) -> None:
    for number, name in enumerate(("IM_0001", "IM_0002")):
        write_dicom(archive / "sub" / name, f"1.5.{number}")
    (archive / "sub" / "DICOMDIR").write_bytes(b"")
    slides, passed = names(archive)
    assert slides == ["1.dcm", "3.dcm", "sub/IM_0001", "sub/IM_0002"]
    assert "sub/DICOMDIR" in passed


@pytest.mark.parametrize("names_", [("1.2.826.0.1", "1.2.826.0.2"), ("a.ima", "b.IMA"), ("a", "b")])
def test_dicom_is_known_by_its_content_under_any_name(
    tmp_path: Path, names_: tuple[str, str]
) -> None:
    files = [write_dicom(tmp_path / name, "1.1") for name in names_]
    (tmp_path / "notes.txt").write_text("x")
    assert names(tmp_path)[0] == [names_[0]]
    assert find_slides(files) == files[:1]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"sop_class": REPORT}, r"object of another kind \(Comprehensive 3D SR\)"),
        ({"sop_class": "1.2.3"}, r"object of another kind \(private\)"),
        ({"kind": "LABEL"}, "label without its slide"),
    ],
)
def test_a_dicom_object_given_by_name_is_called_what_it_is(
    tmp_path: Path, values: dict[str, str], kind: str
) -> None:
    path = write_dicom(tmp_path / "a.dcm", "1.1", **values)
    with pytest.raises(SlideError, match=f"a DICOM {kind}.*Name the file of its pixels"):
        open_slide(path)


def test_a_damaged_dicom_file_is_not_lost_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    write_dicom(tmp_path / "good.dcm", "1.1")
    assert group_dicom_files(tmp_path.glob("*.dcm"))[tmp_path / "bad.dcm"] is None


def test_a_dicom_file_cut_off_anywhere_in_its_header_is_taken_for_a_slide(tmp_path: Path) -> None:
    whole = write_dicom(tmp_path / "whole.dcm", "1.1").read_bytes()
    cut = tmp_path / "cut.dcm"
    for n_bytes in range(132, len(whole)):
        cut.write_bytes(whole[:n_bytes])
        assert group_dicom_files([cut])[cut] is None, n_bytes
    with pytest.raises(SlideError, match="no reader can open it"):
        open_slide(cut)


def test_a_dicom_directory_is_passed_over_as_what_it_is(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "DICOMDIR", "1.1", sop_class="1.2.840.10008.1.3.10")
    data = pydicom.dcmread(path)
    del data.SOPClassUID, data.SeriesInstanceUID
    pydicom.dcmwrite(path, data)
    assert "Media Storage Directory" in str(group_dicom_files([path])[path])


def test_an_apple_double_file_given_by_name_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "._a.svs"
    path.write_bytes(bytes.fromhex("0005160700020000") + b"Mac OS X        ")
    with pytest.raises(SlideError, match="an AppleDouble file of macOS, no slide"):
        open_slide(path)


def test_names_that_are_not_unicode_are_passed_over(tmp_path: Path) -> None:
    """Neither tables nor bags can hold them, and they must not cost another slide."""
    touch(tmp_path, "a.tif", "n\u0303.tif", "\U0001f600.svs")
    odd = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/\xfc.tif", b"/d\xff/x.tif")]
    try:
        touch(tmp_path, *odd)
    except OSError:
        pytest.skip("this file system has no such names")
    search = search_slides([tmp_path])
    assert [path.name for path in search.slides] == ["a.tif", "n\u0303.tif", "\U0001f600.svs"]
    assert set(map(str, search.unread)) == set(odd)
    assert describe_passed_over(search.passed_over)[0].startswith(
        "2 files, a name that is not UTF-8, rename it: "
    )
    with pytest.raises(SlideError, match="no slide in it; passed over 1 file, a name that"):
        search_slides([Path(odd[0])])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><title>404", "a web page.*Download it again"),
        (b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied', "a web page"),
        (b"\x1f\x8b\x08" + b"\0" * 99, "an archive.*Unpack it"),
        (b"7z\xbc\xaf\x27\x1c" + b"\0" * 99, "an archive.*Unpack it"),
        (b"%PDF-1.7\n", "a PDF.*Export the picture"),
        (b"\x89HDF\r\n\x1a\n\0\0", "such as a bag of embeddings.*Name the slides"),
        (b"\0" * 5000, "zeros where its header should be.*Copy it again"),
    ],
)
def test_what_goes_by_the_name_of_a_slide_is_called_what_it_is(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "s.svs").write_bytes(content)
    with pytest.raises(SlideError, match=message):
        open_slide(tmp_path / "s.svs")


def test_a_folder_is_no_slide(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="a folder, no slide"):
        open_slide(tmp_path)


def test_a_zip_of_slides_is_told_to_be_unpacked(tmp_path: Path) -> None:
    import zipfile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as file:
        file.write(tmp_path / "a.tif", "a.tif")
    with pytest.raises(SlideError, match=r"a zip archive \(first entry 'a.tif'\).*Unpack it"):
        open_slide(tmp_path / "s.zip")


@real_data
def test_several_real_dicom_slides_in_one_folder_are_all_found(
    mil_data: Path, tmp_path: Path
) -> None:
    for path in [*(mil_data / "slides" / "cmu-1-small-region.dicom").glob("*.dcm"),
                 *(mil_data / "slides" / "edge").glob("boxes_*.dcm")]:  # fmt: skip
        (tmp_path / path.name).symlink_to(path)
    write_dicom(tmp_path / "0-report.dcm", "1.9", sop_class=REPORT)
    search = search_slides([tmp_path])
    assert len(search.passed_over) == 1
    sizes = []
    for path in search.slides:
        slide = open_slide(path)
        sizes.append((slide.levels[0].width_px, slide.levels[0].height_px))
        slide.close()
    assert sorted(sizes) == [(16, 16), (2220, 2967)]


def test_what_is_no_file_is_called_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "link.tif").symlink_to("nowhere.tif")
    kinds = {
        "pipe": "a pipe or a device", "link": "leads to no file", "other": "there is no such file"
    }  # fmt: skip
    for name, kind in kinds.items():
        with pytest.raises(SlideError, match=kind):
            open_slide(tmp_path / f"{name}.tif")
