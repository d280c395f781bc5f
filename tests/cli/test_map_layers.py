"""Layers over the slide on an explanation page: what is outlined, coloured and left clear."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cli.shared.map_layers import draw_base, draw_layers, draw_thumbnail, draw_unlike, measure_bar
from features.visualization.heatmap import TileLayout, tile_layout
from mil.inference.attention import Explanation, SlideAttention, percentiles
from mil.reporting.figures import EmbeddedImage
from tests.fakes import make_bag
from tests.mil.inference.test_attention_agreement import NOBODY


def explained(
    attention: list[float], *, unlike: tuple[int, ...] = ()
) -> tuple[Explanation, SlideAttention, TileLayout]:
    """One slide of tiles of 448 px in rows of four."""
    bag = make_bag("s", n_tiles=len(attention))
    values = np.array(attention) / sum(attention)
    slide = SlideAttention(
        meta=bag.meta, coords_px0=bag.coords_px0, attention=values, percentile=percentiles(values),
        contributions=np.stack([-values, values], axis=1),
        is_unlike=np.isin(np.arange(len(values)), unlike),
    )  # fmt: skip
    layout = tile_layout(bag.meta, bag.coords_px0)
    assert layout is not None
    return Explanation(prediction=NOBODY, slides=(slide,)), slide, layout


def pixels(image: EmbeddedImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.uri.partition(",")[2]))))


def middle_of(image: EmbeddedImage, layout: TileLayout, index: int) -> np.ndarray:
    shown = pixels(image)
    scale = shown.shape[1] / layout.slide_size_px0[0]
    x_px, y_px = ((layout.coords_px0[index] + 224) * scale).astype(int).tolist()
    return shown[y_px, x_px]


def test_the_first_layer_outlines_the_most_attended_tenth_and_leaves_it_clear() -> None:
    explanation, slide, layout = explained([1] * 14 + [5, 9])
    first = draw_layers(explanation, slide, layout, classes=["a", "b"])[0]
    assert (first.key, first.legend[0].words) == (
        "top", "the 2 most attended of 16 tiles: 50 % of the patient's attention",
    )  # fmt: skip
    outlines = pixels(first.image)
    assert not any(middle_of(first.image, layout, index)[3] for index in range(16))
    lines = (outlines == (213, 94, 0, 255)).all(axis=2)
    assert lines.any()
    rows, columns = np.nonzero(lines)
    assert rows.min() > 0.7 * len(outlines)  # the two are in the last row, on the right
    assert columns.min() > 0.45 * outlines.shape[1]


def test_equal_attention_outlines_nothing() -> None:
    explanation, slide, layout = explained([1] * 16)
    first, share, *_ = draw_layers(explanation, slide, layout, classes=["a", "b"])
    assert not pixels(first.image)[..., 3].any()
    assert "all have an equal share" in first.legend[0].words
    assert not pixels(share.image)[..., 3].any()


def test_colour_begins_above_an_equal_share_and_contributions_have_two_sides() -> None:
    explanation, slide, layout = explained([1, 1, 1, 2, 4, 8, 40, 1])
    layers = {one.key: one for one in draw_layers(explanation, slide, layout, classes=["a", "b"])}
    assert list(layers) == ["top", "share", "percentile", "contribution"]
    alphas = [int(middle_of(layers["share"].image, layout, index)[3]) for index in range(8)]
    assert alphas == [0, 0, 0, 0, 0, 255, 255, 0]  # an equal share is 58 / 8
    assert all(middle_of(layers["percentile"].image, layout, index)[3] for index in range(8))
    assert layers["contribution"].label == "contribution to a"
    assert "against a" in layers["contribution"].legend[0].words


def test_tiles_unlike_the_training_are_outlined_in_another_colour() -> None:
    _, slide, layout = explained([1] * 16, unlike=(5,))
    view = draw_unlike(slide, layout)
    assert view is not None
    assert view.legend[0].words == "1 tile unlike the training tiles"
    assert (pixels(view.image) == (0, 90, 160, 255)).all(axis=2).any()
    assert middle_of(view.image, layout, 5)[3] == 0
    _, slide, layout = explained([1] * 16)
    assert draw_unlike(slide, layout) is None


def test_base_bar_and_thumbnail() -> None:
    explanation, slide, layout = explained([1] * 15 + [9])
    bar = measure_bar(layout)
    assert bar is not None
    assert bar.words == "50 µm (assumed)"
    assert bar.share == pytest.approx(50 / (4 * 448 * 0.25))
    grid = draw_base(layout, None, name="s")
    assert grid.alt == "Grid of the tiles of slide s"
    overview = np.full((224, 224, 3), 200, np.uint8)
    assert draw_base(layout, overview, name="s").alt == "Slide s"
    small = draw_thumbnail(explanation, slide, layout, np.full((896, 896, 3), 200, np.uint8))
    assert max(small.width_px, small.height_px) == 160
