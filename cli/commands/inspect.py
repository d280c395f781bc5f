"""``mil inspect``: metadata of slides."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from cli.console import (
    EXIT_KNOWN_ERROR,
    EXIT_PARTLY_FAILED,
    in_thread,
    print_json,
    print_next,
    stdout,
    warn,
)
from cli.options import JsonOutput, SceneNumber, SlideMpp, SlidePaths
from cli.shared.arguments import given_options, resolve_slides
from cli.shared.embed_progress import assumed_mpp_text
from cli.shared.executors import print_warning
from cli.shared.next_slides import repeat_paths
from cli.shared.output import print_failures
from cli.shared.passed_over import passed_over_as_dict, print_passed_over

if TYPE_CHECKING:
    from pathlib import Path

    from features.slides.base import Slide

__all__ = ["inspect"]


def inspect(
    context: typer.Context,
    *,
    paths: SlidePaths,
    scene: SceneNumber = None,
    slide_mpp: SlideMpp = None,
    as_json: JsonOutput = False,
) -> None:
    """Print the metadata of slides: reader, size in px, levels, mpp and its source.

    Headers are read, and some pixels to see whether the colours can be right.

    Example: `mil inspect slides/006388_0.tif`

    Exit codes: 0 all could be opened, 1 none, 2 usage, 3 some.
    """
    search = resolve_slides(paths)
    opened, failed = in_thread(lambda: _inspect(search.slides, scene, slide_mpp))
    assumed = [d["slide_id"] for d in opened if d["mpp_source"] == "assumed"]
    if as_json:
        passed_over = passed_over_as_dict(search.passed_over)
        print_json({
            "slides": opened, "mpp_assumed": assumed, "failed": failed, "passed_over": passed_over
        })  # fmt: skip
    else:
        for described in opened:
            _print(described)
        if assumed:
            warn(assumed_mpp_text(assumed))
        print_failures(failed.values(), len(search.slides))
    print_passed_over(search.passed_over)
    if opened and not as_json:
        print_next(
            "mil preview {paths} --out previews {options}", paths=repeat_paths(paths),
            options=given_options(context, "scene", "slide_mpp"),
        )  # fmt: skip
    if failed or search.unread:
        raise typer.Exit(EXIT_PARTLY_FAILED if opened else EXIT_KNOWN_ERROR)


def _inspect(
    paths: list[Path], scene: int | None, slide_mpp: float | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the metadata of the slides that can be opened, and the errors of others by path."""
    from features.embedding.sources import warn_of_silence
    from features.errors import MilError
    from features.slides.reader import open_slide

    opened: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for path in paths:
        try:
            with (
                warn_of_silence(path, print_warning),
                closing(open_slide(path, scene=scene)) as slide,
            ):
                opened.append(_describe(slide, scene, slide_mpp))
        except MilError as error:
            failed[str(path)] = str(error)
    return opened, failed


def _describe(slide: Slide, scene: int | None, slide_mpp: float | None) -> dict[str, Any]:
    from features.slides.reader import slide_id_of
    from features.slides.resolution import resolve_mpp
    from features.tiling.colours import inspect_colours

    resolution = resolve_mpp(slide.stated_mpp, given_mpp=slide_mpp, where=slide.path)
    first = slide.levels[0]
    return {
        "slide_id": slide_id_of(slide.path, scene),
        "path": str(slide.path),
        "reader": slide.reader,
        "width_px0": first.width_px,
        "height_px0": first.height_px,
        "gigapixels": first.width_px * first.height_px / 1e9,
        "width_mm": first.width_px * resolution.mpp_x / 1000,
        "height_mm": first.height_px * resolution.mpp_y / 1000,
        "mpp_in_file": None if slide.mpp_xy is None else list(slide.mpp_xy),
        "mpp_field": "" if slide.stated_mpp is None else slide.stated_mpp.field,
        "mpp_used": [resolution.mpp_x, resolution.mpp_y],
        "mpp_source": resolution.source,
        "warnings": [*slide.warnings, *inspect_colours(slide, mpp=resolution.mpp)],
        "background_rgb": list(slide.background_rgb),
        "scene": slide.scene,
        "other_scenes": [asdict(other) for other in slide.other_scenes],
        "associated_images": list(slide.associated_images),
        "levels": [[level.width_px, level.height_px, level.downsample] for level in slide.levels],
    }


def _print(described: dict[str, Any]) -> None:
    from features.slides.base import Scene

    in_file = described["mpp_in_file"]
    rows = {
        "slide id": described["slide_id"],
        "reader": described["reader"],
        "size": f"{described['width_px0']:,} x {described['height_px0']:,} px "
        f"({_count_pixels(described['gigapixels'])}, "
        f"{described['width_mm']:.3g} x {described['height_mm']:.3g} mm)",
        "µm/px in the file": "none"
        if in_file is None
        else f"{_pair(in_file)} ({described['mpp_field']})",
        "µm/px used": f"{_pair(described['mpp_used'])} ({described['mpp_source']})",
        "levels": "\n".join(f"{w:,} x {h:,} px, 1/{d:.4g}" for w, h, d in described["levels"]),
    }
    if described["warnings"]:
        rows["warnings"] = "\n".join(described["warnings"])
    if described["other_scenes"]:
        rows["scene"] = (
            f"{described['scene']} of {1 + len(described['other_scenes'])}; for --scene N:\n"
            + "\n".join(str(Scene(**other)) for other in described["other_scenes"])
        )
    if described["associated_images"]:
        rows["set aside"] = "\n".join(described["associated_images"])
    table = Table(title=described["path"], title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    stdout.print(table)


def _count_pixels(gigapixels: float) -> str:
    """Return a number of pixels in the larger unit that leaves no row of zeros."""
    if gigapixels >= 0.1:
        return f"{gigapixels:.3g} gigapixels"
    return f"{1000 * gigapixels:.3g} megapixels"


def _pair(mpp: list[float]) -> str:
    return " x ".join(f"{value:.5g}" for value in mpp)
