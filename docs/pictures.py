"""Draw the pictures of the documentation: ``python docs/pictures.py --demo demo --slide FILE``.

Pictures of a run come from the folder of ``mil demo``, those of the README also from a slide (the
region of CMU-1 that OpenSlide publishes, CC0) and from Chromium; the others need no input.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from cli.shared.map_layers import draw_layers
from cli.viewer.content import ViewerState
from cli.viewer.server import ViewServer
from features.bags.h5 import find_bags
from features.slides.reader import open_slide
from features.visualization.heatmap import (
    ColorScale,
    draw_heatmap,
    draw_slide,
    heatmap_downsample,
    tile_layout,
)
from mil.calibration import PlattScaling
from mil.calibration.priors import balanced, shift_prior
from mil.data.cohort import read_cohort
from mil.evaluation.reliability import reliability_table
from mil.inference.attention import Explanation, explain_patients
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.reporting.figures import CHANCE_COLOUR, MARK_COLOUR, EmbeddedImage, class_styles
from tests.browser import open_tab

__all__ = [
    "draw_attention", "draw_calibration", "draw_demo", "draw_map", "draw_readme",
    "draw_typicality", "draw_weights", "main",
]  # fmt: skip

Floats = npt.NDArray[np.float64]

_IMAGES = Path(__file__).parent / "images"
_LEARNER_COLOURS = ("#e69f00", "#3182bd", "#74c476", "#31a354", "#bcbddc", "#9e9ac8")
# Of the attention, the mean, two of the distribution of the tiles, and the two kernels.
_LEAST_NAMED_WEIGHT = 0.06
_BLUE, _ORANGE = (style.colour for style in class_styles(["", ""]))


def draw_demo(demo: Path, path: Path) -> None:
    """Draw the held-out slide with the most concentrated attention, its map, and reliability."""
    run = load_bundle(demo / "runs" / "demo")
    cohort = read_cohort(demo / "test.csv", labelled=False)
    explanations = explain_patients(
        run, cohort, find_bags(demo / "bags"), prior=balanced(run.classes)
    )
    chosen = max(
        explanations,
        key=lambda each: each.slides[0].attention.max() * len(each.slides[0].attention),
    )
    slide, heatmap = _pictures(chosen, demo)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 1])
    probability = chosen.prediction.probabilities[chosen.leading_class]
    titles = (
        "A painted slide",
        f"Attention: {run.classes[chosen.leading_class]}, probability {probability:.2f}",
    )
    for axes, picture, title in zip(panels, (slide, heatmap), titles, strict=False):
        axes.imshow(picture)
        axes.set_axis_off()
        _title(axes, title)
    _draw_reliability(panels[2], demo / "runs" / "demo" / "judged.csv", run.classes)
    figure.savefig(path, dpi=96)
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE).save(path, optimize=True)


def _pictures(explanation: Explanation, demo: Path) -> tuple[Image.Image, Image.Image]:
    """Return the first slide of a patient, plain and under its attention map."""
    slide_attention = explanation.slides[0]
    layout = tile_layout(slide_attention.meta, slide_attention.coords_px0)
    assert layout is not None  # noqa: S101 - painted tiles have coordinates
    slide = open_slide(demo / "slides" / f"{slide_attention.meta.slide_id}.tif")
    overview = slide.overview(downsample=heatmap_downsample(layout))
    slide.close()
    scale = ColorScale(palette="viridis", low=0.0, high=100.0, words="attention, percentile")
    facts = [f"{len(slide_attention.attention)} tiles"]
    name = slide_attention.meta.slide_id
    return draw_slide(layout, overview, title=name, facts=facts), draw_heatmap(
        layout, slide_attention.percentile, scale=scale, overview=overview, title=name, facts=facts
    )


def _draw_reliability(axes: Axes, held_out: Path, classes: Sequence[str]) -> None:
    """Draw predicted against observed shares of the last class, before and after calibration."""
    table = pd.read_csv(held_out, dtype={"patient_id": str})
    labels = np.array([classes.index(label) for label in table["label"]], np.int64)
    axes.plot([0, 1], [0, 1], color=CHANCE_COLOUR, linestyle="dashed", linewidth=1)
    for kind, colour, marker, words in (
        ("raw", CHANCE_COLOUR, "x", "raw"),
        ("calibrated", _ORANGE, "^", "calibrated, cross-fitted"),
    ):
        proba = table[[f"{kind}_{name}" for name in classes]].to_numpy(np.float64)
        last = len(classes) - 1
        bins = reliability_table(proba, labels, last, prior=balanced(classes), n_bins=5)
        observed = np.array([each.observed for each in bins])
        ends = np.array([[b.observed_low for b in bins], [b.observed_high for b in bins]])
        axes.errorbar(
            [each.promised for each in bins], observed, np.abs(ends - observed), color=colour,
            marker=marker, linestyle="-" if kind == "calibrated" else ":", capsize=3, label=words,
        )  # fmt: skip
    axes.set(xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1))
    axes.set_box_aspect(1)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    _title(axes, f"Reliability of {classes[-1]}, {len(labels)} patients")


def draw_readme(demo: Path, slide: Path, folder: Path) -> None:
    """Draw a slide under the attention of the demo's run, its report, and the viewer."""
    with tempfile.TemporaryDirectory() as temporary:
        bags, table = Path(temporary) / "bags", Path(temporary) / "slide.csv"
        settings = next((demo / "bags").glob("*.h5"))
        command = ["embed", slide, "--bags", bags, "--config", settings]
        subprocess.run(  # noqa: S603 - the program itself
            [sys.executable, "-m", "cli", *map(str, command)], check=True
        )
        table.write_text(f"image_id,patient_id\n{slide.name},CMU-1\n", encoding="utf-8")
        run, cohort = load_bundle(demo / "runs" / "demo"), read_cohort(table, labelled=False)
        prior = balanced(run.classes)
        (explanation,) = explain_patients(run, cohort, find_bags(bags), prior=prior)
        _draw_slide_and_map(explanation, slide, run.classes, folder / "attention.jpg")
        viewed = ViewerState(
            run, cohort, predict(run, cohort, bags, prior=prior), bags=find_bags(bags),
            prior=prior, paths={slide.stem: slide},
        )  # fmt: skip
        server = ViewServer(viewed)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with open_tab(Path(temporary) / "profile") as tab:
            tab.resize(1200, 900)
            tab.open((demo / "runs" / "demo" / "report.html").absolute().as_uri())
            _save_small(tab.screenshot(), 800, folder / "report.png")
            tab.resize(1280, 900)
            tab.open(server.url)
            tab.wait_for(
                "panes.length > 0 && panes[0].busy.hidden && [0, 1].every((i) => {"
                " const item = panes[0].viewer.world.getItemAt(i);"
                " return item && item.getFullyLoaded(); })"
            )
            _save_small(tab.screenshot(), 900, folder / "viewer.jpg")
        server.shutdown()
        server.server_close()
        viewed.close()


def _draw_slide_and_map(
    explanation: Explanation, path: Path, classes: Sequence[str], out: Path
) -> None:
    """Draw a slide next to its attention: colours above an equal share, the most outlined."""
    (attention,) = explanation.slides
    layout = tile_layout(attention.meta, attention.coords_px0)
    assert layout is not None  # noqa: S101 - tiles of slides have coordinates
    slide = open_slide(path)
    left = Image.fromarray(slide.overview(downsample=heatmap_downsample(layout)))
    slide.close()
    left.thumbnail((475, 635))
    right = left.convert("L").point(lambda grey: 70 + grey * 185 // 255).convert("RGBA")
    layers = {
        each.key: each for each in draw_layers(explanation, attention, layout, classes=classes)
    }
    for key, opacity in (("share", 0.6), ("top", 1.0)):
        picture = _decode(layers[key].image).resize(left.size, Image.Resampling.LANCZOS)
        picture.putalpha(picture.getchannel("A").point(lambda a, by=opacity: int(a * by)))
        right.alpha_composite(picture)
    both = Image.new("RGB", (2 * left.width + 10, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right.convert("RGB"), (left.width + 10, 0))
    both.save(out, quality=88)


def _decode(image: EmbeddedImage) -> Image.Image:
    """Return the picture in a ``data:`` URI."""
    content = base64.b64decode(image.uri.partition(",")[2])
    return Image.open(io.BytesIO(content)).convert("RGBA")


def _save_small(png: bytes, width_px: int, path: Path) -> None:
    """Save a screenshot with fewer px, and fewer colours as PNG."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    size = (width_px, round(picture.height * width_px / picture.width))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    if path.suffix == ".png":
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    else:
        picture.save(path, quality=88)


def draw_attention(path: Path) -> None:
    """Draw the path from tiles to probabilities as boxes."""
    figure = Figure(figsize=(8.6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 10.6), ylim=(0.2, 3.7))
    axes.set_axis_off()
    shares = (0.08, 0.62, 0.30)
    for row, share in enumerate(shares):
        y = 2.35 - row
        name = f"$_{row + 1}$"
        _box(axes, 0.1, y, "tile" + name, fill="#eeeeee")
        _box(axes, 1.9, y, "$x$" + name, fill="#dbe9f4")
        _box(axes, 3.7, y, "$h$" + name, fill="#dbe9f4")
        axes.annotate("", (6.75, 1.7), (4.95, y + 0.35), arrowprops=_arrow(0.6 + 7 * share))
        axes.text(5.2, y + (0.66, 0.56, -0.02)[row], f"$a_{row + 1} = {share:.2f}$", fontsize=9)
        for start in (1.3, 3.1):
            axes.annotate("", (start + 0.6, y + 0.35), (start, y + 0.35), arrowprops=_arrow(1))
    _box(axes, 6.75, 1.35, "$z$", fill="#fbe3c0")
    _box(axes, 8.35, 1.35, "logits", fill="#fbe3c0", width=1.9)
    axes.annotate("", (8.35, 1.7), (7.95, 1.7), arrowprops=_arrow(1))
    for x, words in ((1.6, "frozen\nbackbone"), (3.4, "whitening,\nhead")):
        axes.text(x, 3.38, words, ha="center", va="center", fontsize=8.5, color="#444444")
    figure.savefig(path, metadata={"Date": None})


def draw_calibration(path: Path) -> None:
    """Draw simulated logits that are too large and biased, and their calibration."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    truth = rng.normal(np.where(labels == 1, 0.5, -0.5), 1.0)  # its own logit at equal shares
    raw = 2.5 * truth - 1.2
    logits = np.stack([np.zeros_like(raw), raw], axis=1)
    fitted = PlattScaling().fit(logits, labels)
    figure = Figure(figsize=(8.2, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    line = np.linspace(-8, 8, 200)
    rows = np.stack([np.zeros_like(line), line], axis=1)
    left.plot(line, 1 / (1 + np.exp(-line)), color=CHANCE_COLOUR, linestyle=":", label="raw")
    left.plot(line, fitted.predict_proba(rows)[:, 1], color=_BLUE, label="Platt")
    left.plot(
        line, 1 / (1 + np.exp(-(line + 1.2) / 2.5)), color=MARK_COLOUR, linestyle="dashed",
        label="true",
    )  # fmt: skip
    left.set(xlabel="logit of the head", ylabel="probability of the class", ylim=(0, 1))
    _title(left, "From logits to probabilities")
    balanced_p = np.linspace(0.001, 0.999, 200)
    for share, style in ((0.5, "-"), (0.28, "--"), (0.05, ":")):
        shifted = shift_prior(
            np.stack([1 - balanced_p, balanced_p], axis=1), old=balanced(["", ""]),
            new=np.array([1 - share, share]),
        )  # fmt: skip
        right.plot(
            balanced_p, shifted[:, 1], color=_ORANGE, linestyle=style, label=f"share {share:.0%}"
        )
    right.set(xlabel="probability at equal shares", ylabel="at another prior", ylim=(0, 1))
    _title(right, "From one prior to another")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


_ROAD = (
    ("features", "mil embed", (
        ("slides", "open, read regions"), ("tiling", "tissue, grid, rules"),
        ("encoders", "frozen network"), ("embedding", "batches, workers"),
        ("bags", "HDF5 per slide"),
    )),
    ("mil", "mil train", (
        ("data", "cohort, splits"), ("heads", "pool a patient's tiles"),
        ("training", "cross-validation"), ("calibration", "logits to probabilities"),
        ("inference", "bundle of the run"),
    )),
    ("mil", "mil infer, report, score", (
        ("inference", "predict patients"), ("evaluation", "metrics, baselines"),
        ("audit", "leaks, shortcuts"), ("reporting", "pages, model card"),
    )),
)  # fmt: skip
_FILES = ("slides/*.tif", "bags/<slide_id>.h5, train.csv", "runs/<name>/, test.csv")


def draw_map(path: Path) -> None:
    """Draw the packages in the order in which data pass through them."""
    parts = []
    for row, ((package, command, rooms), files) in enumerate(zip(_ROAD, _FILES, strict=True)):
        y = 34 + row * 112
        fill = "#dbe9f4" if package == "features" else "#fbe3c0"
        parts.append(_text(12, y - 12, f"{files}  \u2192  {command}", style="font-weight:bold"))
        for column, (room, does) in enumerate(rooms):
            x = 12 + column * 190
            box = f'x="{x}" y="{y}" width="166" height="54" rx="6" fill="{fill}"'
            parts += [
                f'<rect {box} stroke="#777777"/>',
                _text(x + 83, y + 23, f"{package}.{room}", anchor="middle"),
                _text(x + 83, y + 43, does, anchor="middle", style="font-size:12px;fill:#444444"),
            ]
            if column:
                parts.append(
                    f'<path d="M{x - 22} {y + 27}h14m-5 -5l6 5l-6 5" fill="none"'
                    ' stroke="#555555" stroke-width="1.5"/>'
                )
    svg = 'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 954 330"'
    lines = [
        f'<svg {svg} font-family="sans-serif" font-size="14">',
        '<rect width="954" height="330" fill="#ffffff"/>',
        *parts,
        "</svg>",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _text(x: int, y: int, words: str, *, anchor: str = "start", style: str = "") -> str:
    """Return a line of text as SVG."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" style="{style}">{escape(words)}</text>'


def _arrow(width: float) -> dict[str, object]:
    return {"arrowstyle": "-|>", "linewidth": width, "color": "#555555", "shrinkA": 0, "shrinkB": 0}


def _box(axes: Axes, x: float, y: float, words: str, *, fill: str, width: float = 1.2) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, 0.7, boxstyle="round,pad=0,rounding_size=0.1", facecolor=fill,
            edgecolor="#777777",
        )
    )  # fmt: skip
    axes.text(x + width / 2, y + 0.35, words, ha="center", va="center", fontsize=11)


def _title(axes: Axes, words: str) -> None:
    axes.set_title(words, fontsize=10.5, loc="left", fontweight="bold")


def draw_typicality(measured: Path, path: Path) -> None:
    """Draw the median distance of each kind of patient that the benchmark measured."""
    found = json.loads(measured.read_text(encoding="utf-8"))["detection"]
    kinds = dict(sorted(found["kinds"].items(), key=lambda item: item[1]["distance"]))
    farthest = found["largest_training_distance"]
    figure = Figure(figsize=(8.2, 0.6 + 0.24 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0, farthest, color=CHANCE_COLOUR, alpha=0.15, linewidth=0)
    axes.axvline(farthest, color=CHANCE_COLOUR, linestyle="dashed", linewidth=1)
    for row, kind in enumerate(kinds.values()):
        is_marked = kind["distance"] > farthest
        axes.plot(
            kind["distance"], row, "o" if is_marked else "s", color=_ORANGE if is_marked else _BLUE
        )
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.set(xlabel="median distance; shaded: every training patient", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    _title(axes, f"Distance to {found['n_training_patients']} training patients")
    figure.savefig(path, metadata={"Date": None})


def draw_weights(page: Path, path: Path) -> None:
    """Draw the weights of the learners by kind of signal, from the table of the page on heads."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| signal in |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" `") for cell in line.strip("|").split("|")])
    learners, kinds = rows[0][1:], [row[0] for row in rows[2:]]
    weights: Floats = np.array([row[1:] for row in rows[2:]], float)  # (kinds, learners)
    figure = Figure(figsize=(8.2, 1.0 + 0.42 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    starts = weights.cumsum(axis=1) - weights
    for name, colour, left, width in zip(
        learners, _LEARNER_COLOURS, starts.T, weights.T, strict=True
    ):
        axes.barh(range(len(kinds)), width, left=left, color=colour, edgecolor="white", label=name)
        for row, (at, size) in enumerate(zip(left, width, strict=True)):
            if size >= _LEAST_NAMED_WEIGHT:
                axes.text(at + size / 2, row, f"{size:.2f}", ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="weight in the stack, mean over cohorts")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8.5)
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw all pictures; without ``--demo`` those that need no run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, help="folder of mil demo")
    parser.add_argument("--slide", type=Path, help="with --demo: the slide of the README")
    parser.add_argument("--typicality", type=Path, help="output of tests.benchmarks.typicality")
    options = parser.parse_args(arguments)
    _IMAGES.mkdir(exist_ok=True)
    draw_attention(_IMAGES / "attention-mil.svg")
    draw_calibration(_IMAGES / "calibration.svg")
    draw_map(_IMAGES / "map.svg")
    draw_weights(_IMAGES.parent / "reference" / "heads.md", _IMAGES / "stack-weights.svg")
    if options.typicality:
        draw_typicality(options.typicality, _IMAGES / "typicality.svg")
    if options.demo:
        draw_demo(options.demo, _IMAGES / "demo.png")
    if options.demo and options.slide:
        draw_readme(options.demo, options.slide, _IMAGES)


if __name__ == "__main__":
    main()
