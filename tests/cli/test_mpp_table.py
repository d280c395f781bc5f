"""Rows of a table of resolutions that are of no slide."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.shared.arguments import resolve_mpp_table, resolve_slides
from features.errors import TableError


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
