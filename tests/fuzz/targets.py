"""Every parser that is owned or called, each with what to feed it and how it is used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from features.bags.formats.base import ImportDefaults, to_bag
from features.bags.formats.registry import BAG_FORMATS
from features.bags.h5 import read_bag, read_bag_info, read_features, read_meta, read_views
from features.bags.store import open_bags
from features.encoders.weights import read_checkpoint
from features.errors import MilError, TileError
from features.filters.classifier import read_filter
from features.filters.examples import read_example_table
from features.series.dicom import read_hu, read_slice_headers
from features.series.images import read_image
from features.series.manifest import read_series
from features.series.series import open_series
from features.series.windowing import parse_windows
from features.slides.backends.image import ImageSlide
from features.slides.backends.ome_zarr import OmeZarrSlide
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.tiff import TiffSlide
from features.slides.base import Slide
from features.slides.file_info import compression_of, content_hash
from features.slides.manifest import read_mpp_table, read_slide_table
from features.slides.reader import open_slide
from features.slides.search import find_slides
from mil.audit.tables import audit_table, read_split
from mil.data.cohort import read_cohort
from mil.evaluation.predictions import read_predictions
from mil.inference.bundle import load_bundle
from mil.multilabel.scoring import read_label_predictions
from mil.multilabel.table import read_label_table
from mil.part_digests import with_digests
from mil.reporting.cohort_report.table import read_cohort_table
from mil.reporting.run_report.data import read_report_data
from mil.reporting.run_report.page import _read_history, _read_scores
from tests.fuzz import samples
from tests.fuzz.samples import Samples

__all__ = ["TARGETS", "Target"]

_OF_HDF5 = 5 << 30
"""HDF5 allocates the length that a text claims, up to 4 GiB, before it checks it."""
_SMALL_PX = 4_000_000
"""Pixels up to which a whole level is looked at."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One parser."""

    samples: Samples
    """Healthy files."""
    read: Callable[[Path], object]
    """Reader of the slides in a folder, as in the program."""
    share: int = 2
    """Cases of this target beside those of others; fewer where one takes long."""
    most_memory: int = 2 << 30
    """Bytes that a case may use."""


def _look_at(slide: Slide) -> None:
    """Use a slide as embedding does: its overview, and squares of all levels."""
    with closing(slide):
        size = slide.levels[0]
        assert min(size.width_px, size.height_px) > 0
        if size.width_px * size.height_px <= _SMALL_PX:
            slide.overview(downsample=16)
        for level, size in enumerate(slide.levels[:8]):
            positions = [(0, 0), (size.width_px - 20, size.height_px - 20), (size.width_px // 2, 5)]
            for x, y in positions:
                with suppress(TileError):
                    result = slide.read(level=level, x_px=x, y_px=y, width_px=40, height_px=40)
                    assert result.shape == (40, 40, 3)


def _only(folder: Path) -> Path:
    return min(folder.iterdir())


def _slide_by(reader: Callable[[Path], Slide]) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        compression_of(_only(folder))
        _look_at(reader(_only(folder)))

    return read


def _any_slide(folder: Path) -> None:
    for path in find_slides([folder]):
        content_hash(path)
        compression_of(path)
        _look_at(open_slide(path))


def _all_of(*readers: Callable[[], object]) -> None:
    """Read in several ways, each of which may refuse; the first refusal stands for all."""
    refusals = []
    for read in readers:
        try:
            read()
        except MilError as error:
            refusals.append(error)
    if len(refusals) == len(readers):
        raise refusals[0]


def _slice(folder: Path) -> None:
    path = _only(folder)
    _all_of(lambda: read_slice_headers(path), lambda: read_hu(path))


def _bag(folder: Path) -> None:
    path = _only(folder)
    views = read_bag_info(path).meta.fingerprint.n_views
    _all_of(
        lambda: read_meta(path), lambda: read_features(path), lambda: read_bag(path),
        lambda: read_views(path) if views else None,
    )  # fmt: skip


def _pack(folder: Path) -> None:
    pack = open_bags(_only(folder))

    def bag(slide_id: str) -> Callable[[], object]:
        return lambda: read_bag(pack[slide_id])

    _all_of(*map(bag, pack))


def _foreign(folder: Path) -> None:
    source = _only(folder)
    layout = BAG_FORMATS[source.name]
    for slide_id, path in layout.find(source).paths.items():
        result = layout.read(path, "")
        to_bag(result, path=path, slide_id=slide_id, layout=source.name, defaults=ImportDefaults())


def _run(folder: Path) -> None:
    run = folder / "run"
    classes = ("CE", "LAA")
    for read in (lambda: read_report_data(run, classes=classes), lambda: _read_scores(run),
                 lambda: _read_history(run)):  # fmt: skip
        with suppress(MilError):
            read()
    # Digests refuse nearly all that is spoilt: what they let pass, and what lies behind them.
    with suppress(MilError):
        load_bundle(run)
    _tie_again(run)
    load_bundle(run)


def _tie_again(run: Path) -> None:
    """Write the digests of a spoilt run again, as far as its description can be read."""
    path = run / "model.json"
    with suppress(OSError, RecursionError, TypeError, ValueError):
        path.write_text(json.dumps(with_digests(json.loads(path.read_text()), run)))


def _cohort(folder: Path) -> None:
    path = _only(folder)
    _all_of(
        lambda: read_cohort(path, labelled=True), lambda: read_cohort(path, labelled=False),
        lambda: read_label_table(path, ("any", "subdural")), lambda: read_cohort_table(path),
        lambda: list(audit_table(read_split(path, name="train"))),
    )  # fmt: skip


@cache
def _asked(folder: Path) -> Path:
    """A healthy cohort of eight patients, whose predictions are read."""
    rows = [f"{n:03d}_0,{n:03d},{'CE' if n % 2 else 'LAA'},{n % 2},{n // 4}" for n in range(8)]
    path = folder.parent / "asked.csv"
    path.write_text("\n".join(["image_id,patient_id,label,any,subdural", *rows]))
    return path


def _predictions(folder: Path) -> None:
    path, asked = _only(folder), _asked(folder)
    cohort = read_cohort(asked, labelled=True)
    labels = read_label_table(asked, ("any", "subdural"))
    _all_of(
        lambda: read_predictions(path, cohort, class_name=None),
        lambda: read_predictions(path, cohort, class_name="LAA"),
        lambda: read_label_predictions(path, labels),
    )


def _series(folder: Path) -> None:
    windows = parse_windows("brain,subdural,600/2800")
    for spec in read_series(folder / "t.csv"):
        result = open_series(spec, windows=windows, side_px=32)
        for place in range(len(result.images)):
            result.read(place)


def _tables(folder: Path) -> None:
    path = _only(folder)
    _all_of(
        lambda: read_example_table(path), lambda: read_mpp_table(path),
        lambda: read_slide_table(path),
    )  # fmt: skip


def _checkpoint(folder: Path) -> None:
    read_checkpoint(_only(folder))


TARGETS: Mapping[str, Target] = MappingProxyType({
    "tiff": Target(samples=samples.tiffs, read=_slide_by(TiffSlide), share=8),
    "openslide": Target(samples=samples.openslide_files, read=_slide_by(OpenSlideSlide), share=3),
    "picture": Target(samples=samples.pictures, read=_slide_by(ImageSlide), share=4),
    "zarr": Target(samples=samples.zarrs, read=_slide_by(OmeZarrSlide), share=4),
    "slide": Target(
        samples=lambda *a: [*samples.openslide_files(*a)[:4], *samples.pictures(*a)[:3]],
        read=_any_slide,
    ),
    "image": Target(
        samples=lambda *a: [*samples.pictures(*a), *samples.tiffs(*a)[:19]],
        read=lambda folder: read_image(_only(folder)), share=4,
    ),
    "dicom": Target(samples=samples.slices, read=_slice, share=4),
    "bag": Target(samples=samples.bags, read=_bag, share=8, most_memory=_OF_HDF5),
    "pack": Target(samples=samples.packs, read=_pack),
    "foreign": Target(samples=samples.foreign, read=_foreign, share=4, most_memory=_OF_HDF5),
    "run": Target(samples=samples.runs, read=_run, share=2),
    "filter": Target(samples=samples.filters, read=lambda folder: read_filter(_only(folder))),
    "weights": Target(samples=samples.weights, read=_checkpoint),
    "cohort": Target(samples=samples.cohorts, read=_cohort, share=4),
    "predictions": Target(samples=samples.predictions, read=_predictions),
    "series": Target(samples=samples.series, read=_series),
    "tables": Target(samples=samples.examples, read=_tables),
})  # fmt: skip
"""By name."""
