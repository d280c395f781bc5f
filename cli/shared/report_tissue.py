"""Report of a run with the tissue of a few patients, where their slides can be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from PIL import Image

from cli.shared.next_slides import embedded_files
from cli.viewer.slides import check_slide_size
from features.errors import SlideError, TileError
from features.slides.reader import open_slide, slide_id_of
from features.slides.search import find_slides
from features.tiling.grid import read_tile
from features.visualization.heatmap import grid_from_layout, tile_layout
from mil.inference.attention import SlideAttention
from mil.multilabel.page import write_label_page
from mil.multilabel.train import is_multilabel_bundle, load_multilabel_bundle
from mil.reporting.figures import embed_image
from mil.reporting.run_report import (
    PatientTissue,
    ShowSlide,
    SlidePictures,
    index_link,
    patient_links,
    read_report_data,
    show_best,
    write_report,
)

__all__ = ["draw_report"]

_THUMBNAIL_PX = 320
_TILE_PX = 160


def draw_report(
    run: Path,
    bags: Path,
    *,
    name: str | None = None,
    slides: Path | None = None,
    explanations: Path | None = None,
) -> Path:
    """Write ``report.html`` of a run, or of each label of one, and return the path of its page.

    Slides are those of a folder, or the files that ``embed.csv`` beside the bags names. The title
    of the run is ``name``, by default that of the folder.

    Raises
    ------
    RunError
        If a file of the run is absent or damaged.
    SlideError
        If there is no folder ``slides``, or no slide in it.
    OutputError
        If the page cannot be written.
    """
    paths = _reachable_slides(bags, slides)
    show = _slide_pictures(paths) if paths else None
    if not is_multilabel_bundle(run):
        return write_report(run, name=name, explanations=explanations, bags=bags, show_slide=show)
    overview = run / "report.html"
    labels = load_multilabel_bundle(run)
    tissue: dict[str, Sequence[PatientTissue]] = {}
    for label, bundle in labels.bundles.items():
        write_report(
            bundle.path, overview=overview, explanations=explanations, bags=bags, show_slide=show
        )
        if show:
            data = read_report_data(bundle.path, classes=bundle.classes)
            tissue[label] = show_best(bundle, data, bags, show, class_index=1)
    shown = [patient.patient_id for patients in tissue.values() for patient in patients]
    counts = next(iter(labels.bundles.values())).cohort_counts
    write_label_page(
        overview, name or run.resolve().name, labels.scores,
        {label: int(bundle.cohort_counts[1]) for label, bundle in labels.bundles.items()},
        n_patients=int(sum(counts)), tissue=tissue,
        links=patient_links(run, explanations, shown), explained=index_link(run, explanations),
    )  # fmt: skip
    return overview


def _reachable_slides(bags: Path, slides: Path | None) -> dict[str, Path]:
    """Return the files of slides by id: those of a folder, or those that ``embed.csv`` names."""
    if slides is not None:
        return {slide_id_of(path): path for path in find_slides([slides])}
    return embedded_files(bags)


def _slide_pictures(paths: Mapping[str, Path]) -> ShowSlide:
    """Return a function that reads the thumbnail and the most attended tiles of a slide by id."""

    def show(slide: SlideAttention, n_tiles: int) -> SlidePictures | None:
        meta = slide.meta
        path = paths.get(meta.slide_id)
        layout = None if slide.order is not None else tile_layout(meta, slide.coords_px0)
        if path is None or layout is None:
            return None
        grid = grid_from_layout(layout, meta)
        tiles = []
        try:
            with closing(open_slide(path, scene=meta.scene or None)) as opened:
                check_slide_size(opened, meta)
                long_side_px = max(opened.levels[0].width_px, opened.levels[0].height_px)
                overview = opened.overview(downsample=max(1, long_side_px // _THUMBNAIL_PX))
                for index in slide.top(n_tiles).tolist():
                    with suppress(TileError):  # the next ones may be decodable
                        tiles.append((index, read_tile(opened, grid, index)))
        except SlideError:
            return None
        return SlidePictures(
            thumbnail=embed_image(
                Image.fromarray(overview), alt=f"Slide {meta.slide_id}", max_px=_THUMBNAIL_PX
            ),
            tiles=[
                embed_image(
                    Image.fromarray(pixels), max_px=_TILE_PX,
                    alt=f"Tile at {slide.describe_tile(index)} of slide {meta.slide_id}",
                )
                for index, pixels in tiles
            ],
        )  # fmt: skip

    return show
