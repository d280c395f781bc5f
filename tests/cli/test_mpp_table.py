"""Rows of a table of resolutions that are of no slide."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.shared.arguments import resolve_mpp_table


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
