from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

import cli
import features
import mil
from mil.reporting.figures import (
    MARK_COLOUR,
    class_styles,
    count_ticks,
    embed_image,
    plain,
    render_figure,
    share_ticks,
)

pytestmark = pytest.mark.usefixtures("drawn_figures")

HOSTILE = '<script>$\\frac$\n\x00漢字💥"'


def content(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def paint_named(figure: Figure) -> None:
    axes = figure.subplots()
    axes.bar([plain(HOSTILE), "b"], [1, 20_000], hatch="////")
    axes.set(xlabel=plain(HOSTILE), ylabel="slides")
    count_ticks(axes.yaxis)


def test_a_hostile_name_is_drawn_without_complaint_and_the_same_bytes_come_twice() -> None:
    picture = render_figure(paint_named, alt=HOSTILE, width_in=3, height_in=2)
    assert picture.uri.startswith("data:image/svg+xml;base64,")
    assert picture.alt == HOSTILE
    assert (picture.width_px, picture.height_px) == (288, 192)
    ET.fromstring(content(picture.uri))  # noqa: S314 - we have just drawn it
    assert render_figure(paint_named, alt=HOSTILE, width_in=3, height_in=2) == picture


def test_many_points_become_pixels() -> None:
    picture = render_figure(
        lambda figure: figure.subplots().scatter(*np.random.default_rng(0).normal(size=(2, 99))),
        alt="noise", kind="png",
    )  # fmt: skip
    assert content(picture.uri).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ticks", "value", "shown"),
    [
        (count_ticks, 20_000, "20,000"),
        (count_ticks, 1_234_567, "1,234,567"),
        (count_ticks, 0.2498, "0.2498"),
        (share_ticks, 0.125, "12.5 %"),
    ],
)
def test_ticks_are_set_as_people_read_them(ticks: object, value: float, shown: str) -> None:
    axes = Figure().subplots()
    ticks(axes.yaxis)  # type: ignore[operator]
    assert axes.yaxis.get_major_formatter()(value) == shown


def test_a_long_name_keeps_its_ends() -> None:
    assert plain("a" * 50 + "z", max_letters=9) == "aaaa…aaaz"
    assert plain("x") == "x"


def test_a_name_with_an_underscore_before_it_is_in_the_legend() -> None:
    axes = Figure().subplots()
    axes.plot([0, 1], label=plain("_x"))
    assert [label.strip() for label in axes.get_legend_handles_labels()[1]] == ["_x"]


def test_neighbouring_classes_differ_in_grey_as_well() -> None:
    styles = class_styles([str(i) for i in range(7)])
    assert styles[6] == styles[0]
    assert len({(s.hatch, s.marker, s.line) for s in styles}) == 6
    assert MARK_COLOUR not in {style.colour for style in styles}
    first, second = (np.dot(to_rgb(s.colour), (0.299, 0.587, 0.114)) for s in styles[:2])
    assert abs(first - second) > 0.2


@pytest.mark.parametrize("package", [features, mil, cli])
def test_one_module_draws_and_by_one_library(package: ModuleType) -> None:
    others = re.compile(
        r"(?m)^\s*(?:from|import) (?:matplotlib\.pyplot|seaborn|plotly|bokeh|altair)"
    )
    saving = set()
    for path in Path(str(package.__file__)).parent.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert not others.search(code), path
        if ".savefig(" in code:
            saving.add(path.name)
    assert saving == ({"figures.py"} if package is mil else set())


def test_a_photograph_is_scaled_down_but_never_up() -> None:
    assert embed_image(Image.new("RGBA", (400, 100)), alt="", max_px=200).width_px == 200
    small = embed_image(Image.new("RGB", (40, 10)), alt="slide", max_px=200)
    assert (small.width_px, small.height_px) == (40, 10)
    assert content(small.uri).startswith(b"\xff\xd8")
