"""Rows of a table of resolutions that are of no slide."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from cli.shared.arguments import resolve_mpp_table, resolve_slides
from features.errors import TableError
from features.slides.manifest import read_mpp_table, read_slide_table


def test_another_spelling_of_a_slide_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text("slide_id,mpp\nslide_1.svs,0.5\nSlide 2,0.25\nfurther,0.25\n")
    slides = [Path("slide_1.svs"), Path("slide_2.svs")]
    assert resolve_mpp_table(slides, slide_mpp=None, mpp_table=table)["slide_1"] == 0.5
    assert "'Slide 2' looks like 'slide_2': write it the same" in capsys.readouterr().err
    table.write_text("slide_id,mpp\nslide_1,0.5\nslide_2,0.5\nfurther,0.25\n")
    resolve_mpp_table(slides, slide_mpp=None, mpp_table=table)
    assert "1 row of no slide given: further" in capsys.readouterr().err
    table.write_text("slide_id,mpp\nslide_1,0.5\nslide_2,0.5\n")
    resolve_mpp_table(slides, slide_mpp=None, mpp_table=table)
    assert not capsys.readouterr().err
    table.write_text("slide_id,mpp\nfurther,0.25\n")
    resolve_mpp_table(slides, slide_mpp=None, mpp_table=table)
    assert "no row is of a slide given" in capsys.readouterr().err


def test_a_row_without_a_slide_is_told(tmp_path: Path) -> None:
    table = tmp_path / "t.CSV"
    table.write_text("slide_id,mpp\na,0.5\n,0.25\n")
    with pytest.raises(TableError, match=r"row 3: no slide_id; .* Fill it in or delete"):
        resolve_mpp_table([Path("a.svs")], slide_mpp=None, mpp_table=table)
    (tmp_path / "a.svs").touch()
    table.write_text("path,n\na.svs,1\n,2\n")
    with pytest.raises(TableError, match=r"row 3: no path; .* Fill it in or delete"):
        resolve_slides([table])
    table.write_text("path\na.svs\n")
    assert resolve_slides([table]).slides == [tmp_path / "a.svs"]


@pytest.mark.parametrize("header", ["mpp_x,mpp_y", "MPP X,mpp-y", "mppX,mppY"])
def test_resolutions_along_both_axes_are_one_where_they_agree(tmp_path: Path, header: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"path,{header}\nsub/a.svs,0.25,0.25\nb,0.5,0.505\n")
    assert read_mpp_table(table) == {"a": 0.25, "b": pytest.approx(0.5025, abs=1e-5)}
    table.write_text(f"path,{header},mpp\na.svs,9,9,0.25\n")
    assert read_mpp_table(table) == {"a": 0.25}
    table.write_text(f"slide_id,{header}\na,0.25,0.5\n")
    with pytest.raises(TableError, match=r"row 2: 0.25 x 0.5 .*squares.* Write one column 'mpp'"):
        read_mpp_table(table)
    table.write_text(f"slide_id,{header}\na,0.25,\n")
    with pytest.raises(TableError, match=r"row 2: .* ''; expected a number of"):
        read_mpp_table(table)


def test_resolutions_in_a_table_of_slides_are_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.svs").touch()
    table = tmp_path / "t.csv"
    for names, cells in (("mpp", "0.5"), ("mpp_x,mpp_y", "0.5,0.5")):
        table.write_text(f"path,{names}\na.svs,{cells}\n")
        slides = resolve_slides([table]).slides
        assert f"its resolutions are read with --mpp-table {table}" in capsys.readouterr().err
        assert resolve_slides([table], has_mpp=True).slides == slides
        assert resolve_mpp_table(slides, slide_mpp=None, mpp_table=table) == {"a": 0.5}
        assert not capsys.readouterr().err


def test_rows_of_a_table_of_slides_are_found_as_paths_are(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    names = ("a01.svs", unicodedata.normalize("NFD", "Mül.svs"), "m.mrxs", "m/Slidedat.ini",
             "b.zarr/.zgroup", "c/d.svs")  # fmt: skip
    for name in names:
        (slides / name).parent.mkdir(parents=True, exist_ok=True)
        (slides / name).touch()
    table = tmp_path / "t.csv"
    table.write_text("path\nslides\\a01.svs\nslides/Mül.svs\nslides/m\nslides/b.zarr\nslides/c\n")
    found = [str(path.relative_to(slides)) for path in resolve_slides([table]).slides]
    assert found == sorted(["a01.svs", names[1], "m.mrxs", "b.zarr", "c/d.svs"])
    table.write_text("path,mpp\nslides\\a01.svs,0.5\nfurther\\a02.ome.tif,0.25\n")
    assert read_mpp_table(table) == {"a01": 0.5, "a02": 0.25}
    (tmp_path / "slides\\a01.svs").touch()  # as some programs unpack an archive of Windows
    assert read_mpp_table(table) == {"slides\\a01": 0.5, "a02": 0.25}
    table.write_text("path\nslides/a01\n")
    with pytest.raises(
        TableError, match=r"row 2: no file .*/slides/a01; .* Did you mean 'a01.svs'"
    ):
        resolve_slides([table])
    table.write_text("path\nelsewhere/a.svs\n")
    with pytest.raises(TableError, match="Paths are relative to the folder of the table"):
        resolve_slides([table])


def test_names_in_either_form_of_unicode_are_found_without_listing_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed, apart = "Mül", unicodedata.normalize("NFD", "Mül")
    slide = tmp_path / apart / composed / f"{apart}.svs"
    slide.parent.mkdir(parents=True)
    slide.touch()
    table = tmp_path / "t.csv"
    table.write_text(f"path\n{composed}/{apart}/{composed}.svs\n{apart}\\{apart}\\{apart}.svs\n")
    mixed = slide.with_name(f"{composed}{apart}.svs")
    mixed.touch()
    monkeypatch.setattr(Path, "iterdir", lambda folder: pytest.fail(f"{folder} is listed"))
    assert read_slide_table(table) == [slide, slide]
    monkeypatch.undo()
    table.write_text(f"path\n{composed}/{composed}/{composed}{composed}.svs\n")
    assert read_slide_table(table) == [mixed]
