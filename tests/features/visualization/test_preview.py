from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from features.errors import OutputError
from features.slides.base import Level
from features.slides.resolution import mpp_outliers, resolve_mpp
from features.slides.synthetic import write_slide
from features.tiling.artifacts import RULES, artifact_detector
from features.tiling.grid import TileSettings, make_tile_grid
from features.tiling.slide_tiles import SlideTiles
from features.tiling.tissue import TissueSettings, segment_tissue
from features.visualization.caption import add_caption, round_length_um, scale_bar
from features.visualization.preview import PreviewWriter, preview_slide
from features.visualization.preview_page import PreviewRow, known_mpp, render_page
from features.visualization.thumbnail import draw_tiling, legend_patch
from tests.browser import needs_browser, open_tab
from tests.fakes import FakeSlide

VERMILLION, GREEN = (213, 94, 0), (0, 158, 115)


class Silent:
    """Progress without an output."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None: ...
    def tiles_done(self, n_tiles: int) -> None: ...


class Counted(Silent):
    """Progress that counts tiles."""

    n_done = 0

    def tiles_done(self, n_tiles: int) -> None:
        self.n_done += n_tiles


def paint(*, side_px: int = 900) -> np.ndarray:
    """White glass with one square of pink tissue, and detail on it."""
    pixels = np.full((side_px, side_px, 3), 250, np.uint8)
    noise = np.random.default_rng(0).integers(-40, 40, (side_px // 2, side_px // 2, 3))
    pixels[100 : 100 + side_px // 2, 100 : 100 + side_px // 2] = noise + np.array([200, 90, 140])
    return pixels


def slide_tiles_of(
    pixels: np.ndarray, *, name: str = "s.tif", mpp: float | None = 0.5, tile_px: int = 100
) -> SlideTiles:
    slide = FakeSlide(pixels, mpp_xy=None if mpp is None else (mpp, mpp))
    slide.path = Path(name)
    resolution = resolve_mpp(slide.stated_mpp, given_mpp=None, where=name)
    overview = slide.overview(downsample=10)
    tissue = segment_tissue(
        overview, downsample=10, mpp=resolution.mpp, settings=TissueSettings(least_speck_um2=0)
    )
    grid = make_tile_grid(
        tissue, width_px0=pixels.shape[1], height_px0=pixels.shape[0], resolution=resolution,
        settings=TileSettings(tile_px=tile_px, target_mpp=resolution.mpp),
    )  # fmt: skip
    return SlideTiles(
        slide=slide, resolution=resolution, overview=overview, tissue=tissue, grid=grid,
        n_tissue_tiles=len(grid.coords_px0),
        detect_artifact=artifact_detector((), glass_rgb=tissue.background_rgb),
    )  # fmt: skip


def share_of(image: np.ndarray, rgb: tuple[int, int, int]) -> float:
    return float((np.abs(image.astype(int) - rgb).max(axis=2) < 30).mean())


def preview(path: Path, folder: PreviewWriter, **options: object) -> PreviewRow:
    defaults = {
        "tiles": TileSettings(), "tissue": TissueSettings(), "given_mpp": None, "n_workers": 1,
        "progress": Silent(),
    }  # fmt: skip
    return preview_slide(path, folder, **{**defaults, **options})


def test_a_left_out_tile_has_the_colour_of_its_rule_where_it_lies_and_kept_ones_a_green_grid() -> (
    None
):
    slide_tiles = slide_tiles_of(paint())
    index = len(slide_tiles.grid.coords_px0) // 2
    image, (width, height) = draw_tiling(
        slide_tiles, rejected={index: "ink"}, failed=(), tiles_read=True
    )
    assert (width, height) == (900, 900)
    x, y = slide_tiles.grid.coords_px0[index]
    pixels = np.asarray(image)
    inside, outside = pixels[y : y + 100, x : x + 100], pixels[: height - 1, :80]
    assert share_of(inside, VERMILLION) > 0.2
    assert share_of(outside, VERMILLION) == 0
    assert 0.005 < share_of(pixels[:height], GREEN) < 0.2


def test_a_tile_that_could_not_be_decoded_is_crossed_out() -> None:
    slide_tiles = slide_tiles_of(paint())
    x, y = slide_tiles.grid.coords_px0[3]
    image, _ = draw_tiling(slide_tiles, rejected={}, failed={3}, tiles_read=True)
    pixels = np.asarray(image)
    for offset in (20, 50, 80):
        assert pixels[y + offset, x + offset].max() < 20
        assert pixels[y + offset, x + 100 - offset].max() < 20


def test_the_outline_follows_the_tissue() -> None:
    image, (width, height) = draw_tiling(
        slide_tiles_of(paint(), tile_px=800), rejected={}, failed=(), tiles_read=True
    )
    black = np.asarray(image)[:height, :width].max(axis=2) < 20
    rows, columns = np.nonzero(black)
    for positions in (rows, columns):
        assert abs(positions.min() - 100) <= 10
        assert abs(positions.max() - 550) <= 10
    assert black.mean() < 0.02


@pytest.mark.parametrize("side_px", [300, 900, 2500])
def test_a_picture_is_at_most_1600_px_of_slide_and_never_finer_than_level_0(side_px: int) -> None:
    _, size = draw_tiling(
        slide_tiles_of(paint(side_px=side_px)), rejected={}, failed=(), tiles_read=True
    )
    assert max(size) <= min(1600, side_px)
    assert max(size) >= min(800, side_px)


def test_every_rule_has_a_colour_and_a_hatch_of_its_own_that_also_tells_it_in_grey() -> None:
    swatches = {
        name: legend_patch(name) for name in (*RULES, "another", "tissue", "kept", "failed")
    }
    assert len({image.tobytes() for image in swatches.values()}) == len(swatches)
    # With all colours the same, the patterns still differ.
    patterns = set()
    for name in (*RULES, "another"):
        grey = np.asarray(swatches[name].convert("L")).astype(int)[2:-2, 2:-2]
        patterns.add((grey < grey.mean()).tobytes())
    assert len(patterns) == len(RULES) + 1


@pytest.mark.parametrize("um_per_px", [0.01, 0.25, 0.9, 7.3, 210.0])
def test_a_scale_bar_is_as_long_as_it_says(um_per_px: float) -> None:
    bar, text = scale_bar(um_per_px, max_px=400, assumed=False)
    result = re.fullmatch(r"([\d.]+) (µm|mm)", text)
    assert result is not None
    length_um = float(result[1]) * (1000 if result[2] == "mm" else 1)
    assert str(length_um).strip("0.")[0] in "125"
    assert bar is not None
    assert bar.width == pytest.approx(length_um / um_per_px, abs=0.6)
    assert 400 / 2.5 - 1 <= bar.width <= 401
    assert scale_bar(um_per_px, max_px=400, assumed=True)[1] == f"{text} (assumed)"


def test_lengths_are_round() -> None:
    assert [round_length_um(x) for x in (1, 1.9, 2, 4.9, 5, 9.99, 10, 0.07)] == [
        1, 1, 2, 2, 5, 5, 10, 0.05,
    ]  # fmt: skip


def test_a_caption_breaks_into_lines_and_shortens_names_that_do_not_fit() -> None:
    facts = ["a fact of some length"] * 12
    wide, narrow = (
        add_caption(Image.new("RGB", (w, 1)), "x" * 400, facts=facts, legend=[])
        for w in (3000, 400)
    )
    assert (wide.width, narrow.width) == (3000, 400)
    assert narrow.height > wide.height
    right = np.asarray(narrow)[2:, -8:]
    assert (right == 255).all()


def test_numbers_are_kept_beside_the_picture_and_add_up(tmp_path: Path) -> None:
    slide_tiles = slide_tiles_of(paint(), mpp=None)
    folder = PreviewWriter(tmp_path / "new" / "previews")
    row = folder.add(slide_tiles, rejected={0: "ink", 1: "blur", 2: "ink"}, failed={3})
    n_tiles = len(slide_tiles.grid.coords_px0)
    assert (row.status, row.n_found, row.n_read, row.n_kept) == (
        "done",
        n_tiles,
        n_tiles,
        n_tiles - 4,
    )
    assert (row.left_out, row.n_failed, row.mpp_source) == ({"ink": 2, "blur": 1}, 1, "assumed")
    assert folder.rows() == [row]
    with Image.open(folder.folder / "s.jpg") as image:
        assert image.format == "JPEG"
    assert {path.name for path in folder.folder.iterdir()} == {"s.jpg", "s.json"}
    not_read = folder.add(slide_tiles, rejected={}, failed=(), tiles_read=False)
    assert (not_read.n_read, not_read.n_kept) == (0, n_tiles)


def test_same_slide_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        folder = PreviewWriter(tmp_path / name)
        folder.add(slide_tiles_of(paint()), rejected={1: "fold"}, failed=())
        folder.write_index()
        made.append({path.name: path.read_bytes() for path in folder.folder.iterdir()})
    assert made[0] == made[1]


def test_a_later_run_keeps_earlier_slides_on_the_page(tmp_path: Path) -> None:
    for name in ("one.tif", "two.tif"):
        folder = PreviewWriter(tmp_path)
        folder.add(slide_tiles_of(paint(), name=name), rejected={}, failed=())
        folder.write_index()
    (tmp_path / "mine.json").write_text('{"kind": "else"}')
    (tmp_path / "torn.json").write_text("{")
    html = PreviewWriter(tmp_path).write_index().read_text()
    assert "Preview of 2 slides" in html
    assert "./one.jpg" in html
    assert "./two.jpg" in html


def test_a_failure_takes_the_picture_of_an_earlier_run_away_but_not_its_own(tmp_path: Path) -> None:
    slide_tiles = slide_tiles_of(paint())
    folder = PreviewWriter(tmp_path)
    folder.add(slide_tiles, rejected={}, failed={0})
    kept = folder.add_failure("s", "too many\ntiles failed")
    assert (kept.status, kept.n_failed, kept.message) == ("failed", 1, "too many tiles failed")
    assert (tmp_path / "s.jpg").is_file()
    later = PreviewWriter(tmp_path)
    row = later.add_failure("s", "gone")
    assert (row.picture_px, row.mpp) == (None, None)
    assert not (tmp_path / "s.jpg").exists()
    assert "gone" in later.write_index().read_text()


def test_a_picture_that_cannot_be_taken_away_is_said(tmp_path: Path) -> None:
    (tmp_path / "s.jpg").mkdir()
    with pytest.raises(OutputError, match=r"s\.jpg: cannot be written"):
        PreviewWriter(tmp_path).add_failure("s", "gone")


def test_a_finer_picture_is_read_where_the_level_behind_it_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slide_tiles = slide_tiles_of(paint(side_px=2000))
    asked: list[int] = []
    overview = slide_tiles.slide.overview

    def watched(*, downsample: int) -> np.ndarray:
        asked.append(downsample)
        return overview(downsample=downsample)

    monkeypatch.setattr(slide_tiles.slide, "overview", watched)
    sizes = ((2000, 1), (1000, 2), (500, 4))
    for max_px, expected in ((2000**2, [2]), (2000**2 - 1, [])):
        monkeypatch.setattr("features.visualization.thumbnail._CHEAP_PX", max_px)
        monkeypatch.setattr(
            slide_tiles.slide, "levels",
            tuple(Level(width_px=px, height_px=px, downsample=float(d)) for px, d in sizes),
        )  # fmt: skip
        asked.clear()
        draw_tiling(slide_tiles, rejected={}, failed=(), tiles_read=True)
        assert asked == expected


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be used as a folder"):
        PreviewWriter(tmp_path / "file")


def test_a_slide_is_read_and_judged_and_without_rules_only_laid_out(tmp_path: Path) -> None:
    pixels = paint(side_px=2000)
    pixels[100:600, 100:600] = (60, 150, 90)  # green ink
    write_slide(tmp_path / "pen.tif", pixels)
    progress = Counted()
    row = preview(tmp_path / "pen.tif", PreviewWriter(tmp_path), progress=progress)
    assert row.left_out["ink"] >= 1
    assert progress.n_done == row.n_read == row.n_found
    quick = preview(
        tmp_path / "pen.tif", PreviewWriter(tmp_path), tiles=TileSettings(rules=()),
        progress=(silent := Counted()),
    )  # fmt: skip
    assert (quick.n_read, silent.n_done, quick.left_out) == (0, 0, {})
    assert quick.n_kept == row.n_found


def test_blank_and_broken_slides_say_why_and_raise_nothing(tmp_path: Path) -> None:
    write_slide(tmp_path / "blank.tif", np.full((600, 600, 3), (196, 211, 192), np.uint8))
    (tmp_path / "bad.tif").write_bytes(b"bad")
    folder = PreviewWriter(tmp_path)
    blank, bad = (preview(tmp_path / f"{name}.tif", folder) for name in ("blank", "bad"))
    assert (blank.status, blank.message) == ("empty", "no tissue found")
    assert bad.status == "failed"
    assert "no reader can open it" in bad.message
    odd = preview(tmp_path / "blank.tif", folder, given_mpp=400.0)
    assert "400 µm/px" in odd.message


def test_an_unforeseen_failure_stays_with_its_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slide(tmp_path / "a.tif", paint())
    monkeypatch.setattr("features.visualization.preview.draw_tiling", lambda *a, **k: 1 / 0)
    row = preview(tmp_path / "a.tif", PreviewWriter(tmp_path))
    assert (row.status, "unforeseen ZeroDivisionError" in row.message) == ("failed", True)


HOSTILE = "\"><script>alert(1)<\\script>&\n'{{ 7*7 }}%3f#?"


def rows_for_the_page() -> list[PreviewRow]:
    row = PreviewRow(
        slide_id="b", status="done", width_px0=2000, height_px0=1000, mpp_x=0.25, mpp_y=0.25,
        mpp_source="file", reader="tiff", glass_rgb=(255, 250, 240), tissue_share=0.125,
        min_tissue_used=0.3, n_found=10, n_read=10, n_kept=8, left_out={"ink": 2}, n_failed=0,
    )  # fmt: skip
    return [
        row,
        replace(row, slide_id="a", n_kept=900, mpp_x=0.26, mpp_y=0.26),
        replace(row, slide_id="c", n_kept=30, mpp_x=1.0, mpp_y=1.0, mpp_source="given"),
        PreviewRow(slide_id="d", status="failed", message="a <b>bad</b> file"),
    ]


class Tags(HTMLParser):
    """Tags of a page, each with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags_of(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(html)
    return parser.tags


def test_a_hostile_name_is_only_text_and_its_link_leads_to_its_picture(tmp_path: Path) -> None:
    names = [HOSTILE, os.fsdecode(b"caf\xe9"), "javascript:alert(1)"]
    for name in names:
        PreviewWriter(tmp_path).add(slide_tiles_of(paint(), name=name), rejected={}, failed=())
    PreviewWriter(tmp_path).add_failure("x", "<img src=x onerror=alert(1)>")
    html = PreviewWriter(tmp_path).write_index().read_text(encoding="utf-8")
    tags = tags_of(html)
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not any("onerror" in attributes for _, attributes in tags)
    assert "{{ 7*7 }}" in html
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert len(links) == len(names)
    for link in links:
        assert link is not None
        assert link.startswith("./")
        assert (tmp_path / os.fsdecode(unquote_to_bytes(link))).is_file()


def test_the_page_needs_no_network_and_can_be_used_without_eyes_and_mouse(tmp_path: Path) -> None:
    folder = PreviewWriter(tmp_path)
    folder.add(slide_tiles_of(paint()), rejected={0: "ink"}, failed={1})
    html = folder.write_index().read_text()
    tags = tags_of(html)
    assert ("html", {"lang": "en"}) in tags
    assert not re.search(r"https?://", html)
    policy = next(a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert images
    assert all("alt" in a and (a["src"] or "").startswith("data:image/") for a in images)
    assert any(tag == "caption" for tag, _ in tags)
    headings = [attributes for tag, attributes in tags if tag == "th" and "aria-sort" in attributes]
    assert len(headings) == sum(tag == "button" for tag, _ in tags) > 10
    n_cells = sum(tag == "td" for tag, _ in tags)
    assert n_cells == len(headings) + 1


def test_resolutions_are_compared_among_slides_that_state_one() -> None:
    rows = [
        PreviewRow(slide_id=name, status="done", mpp_x=mpp, mpp_y=mpp, mpp_source=source)
        for name, mpp, source in (
            ("a", 0.25, "file"), ("b", 0.25, "derived"), ("c", 1.0, "given"), ("d", 0.5, "assumed"),
        )
    ]  # fmt: skip
    assert mpp_outliers(known_mpp(rows)) == ["c"]


def test_totals_and_resolutions_stand_on_top_with_outliers_named(tmp_path: Path) -> None:
    rows = rows_for_the_page()
    assert mpp_outliers(known_mpp(rows)) == ["c"]
    assert mpp_outliers({}) == mpp_outliers(known_mpp(rows[-1:])) == []
    top = re.sub(
        r"\s+", " ", re.sub(r"<[^>]*>", " ", render_page(rows, tmp_path).split("<table")[0])
    )
    for text in (
        "tiles found 30", "tiles kept 938", "left out: ink 6", "slides failed 1",
        "0.25 (file) 1", "0.26 (file) 1", "1 (given) 1", "factor of 1.5 or more: c.",
    ):  # fmt: skip
        assert text in top
    assert "Preview of 0 slides" in render_page([], tmp_path)


@needs_browser
def test_in_a_browser_headings_sort_both_ways_with_unknown_values_last(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_page(rows_for_the_page(), tmp_path), encoding="utf-8")
    click = """((text) => {
      const buttons = [...document.querySelectorAll("th button")];
      const button = buttons.find((b) => b.textContent === text);
      button.click();
      const names = [...document.querySelectorAll("td.name b")].map((b) => b.textContent);
      return names.join("") + " " + button.parentElement.getAttribute("aria-sort") + " "
        + document.querySelectorAll('th:not([aria-sort="none"])[aria-sort]').length;
    })"""
    headings = ("Kept", "Kept", "Slide", "µm/px", "Slide")
    with open_tab(tmp_path / "profile") as tab:
        tab.open(page.as_uri())
        orders = [tab.evaluate(f"{click}({json.dumps(heading)})") for heading in headings]
        assert tab.errors == []
    assert orders == [
        "bcad ascending 1", "acbd descending 1", "abcd ascending 1", "bacd ascending 1",
        "abcd ascending 1",
    ]  # fmt: skip
