"""One slide into a bag, and a whole set of slides into a folder of bags."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd

from features.bags import (
    UNKNOWN,
    Bag,
    BagMeta,
    Fingerprint,
    as_json,
    bag_path,
    read_meta,
    require_same_fingerprint,
    write_bag,
)
from features.content import content_id
from features.embedding import EmbeddedTiles, embed_tiles
from features.encoders import Encoder
from features.errors import BagError, KnownError, SlideError, TableError
from features.files import make_folder, written_beside
from features.slides.opening import slide_id_of
from features.survey import Survey, survey_slide
from features.tables import find_column, read_table
from features.tiles import TileSettings
from features.tissue import TissueSettings

__all__ = [
    "EmbedProgress",
    "EmbedSettings",
    "SlideOutcome",
    "embed_slide",
    "embed_slides",
    "fingerprint_of",
    "read_mpp_table",
    "read_slide_table",
    "settings_like",
    "write_outcomes",
]

_SECONDS_BETWEEN_TABLES = 30.0

Status = Literal["done", "empty", "skipped", "failed"]
"""``done`` and ``empty`` wrote a bag, ``skipped`` found a finished one, ``failed`` wrote none."""


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """How slides become bags."""

    tiles: TileSettings
    """Size, resolution and choice of tiles."""
    tissue: TissueSettings
    """How tissue is told from glass."""
    batch_tiles: int = 64
    """Tiles through the backbone at once."""
    n_workers: int = 4
    """Threads that decode."""
    max_failed: float = 0.05
    """Share of a slide's tiles that may fail to decode before the slide fails, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class SlideOutcome:
    """What became of one slide; one row of ``embed.csv``."""

    slide_id: str
    """Its name without folder and suffix."""
    status: Status
    """What happened."""
    n_tiles: int = 0
    """Embeddings in its bag."""
    n_failed: int = 0
    """Tiles that could not be decoded."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Tiles that were left out, by rule."""
    mpp: float = float("nan")
    """µm per level-0 px that was used."""
    mpp_source: str = ""
    """``file``, ``given`` or ``assumed``."""
    seconds: float = 0.0
    """Time it took."""
    message: str = ""
    """Why it failed or is empty."""
    path: str = ""
    """Where the slide lies."""


class EmbedProgress(Protocol):
    """Whoever wants to know how far the work is."""

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Called when the tiles of a slide are known."""
        ...

    def tiles_done(self, n_tiles: int) -> None:
        """Called after each batch."""
        ...

    def slide_ended(self, outcome: SlideOutcome) -> None:
        """Called when a slide is dealt with."""
        ...


def fingerprint_of(encoder: Encoder, settings: EmbedSettings) -> Fingerprint:
    """How bags of this encoder and these settings are told from others."""
    return Fingerprint(
        encoder=encoder.name,
        weights_sha256=encoder.weights_sha256,
        transform=encoder.preprocessing.as_json(),
        dim=encoder.dim,
        tile_px=settings.tiles.tile_px,
        target_mpp=settings.tiles.target_mpp,
        overlap_px=settings.tiles.overlap_px,
        tissue=as_json(
            min_tissue=settings.tiles.min_tissue,
            rules=list(settings.tiles.rules),
            max_tiles=settings.tiles.max_tiles,
            **asdict(settings.tissue),
        ),
    )


def settings_like(fingerprint: Fingerprint, *, batch_tiles: int, n_workers: int) -> EmbedSettings:
    """Settings that make bags of this fingerprint, given the same encoder.

    Raises
    ------
    BagError
        If its bags were imported from another program, which does not tell how it found tissue.
    """
    if fingerprint.weights_sha256 == UNKNOWN:
        raise BagError(
            "the run's bags",
            found="imported from another program: how their tiles were made is unknown",
            expected="bags made by 'mil embed'",
            advice="Import the bags of these slides as well, and leave --slides out.",
        )
    tissue: dict[str, Any] = json.loads(fingerprint.tissue)
    return EmbedSettings(
        tiles=TileSettings(
            tile_px=fingerprint.tile_px,
            target_mpp=fingerprint.target_mpp,
            overlap_px=fingerprint.overlap_px,
            min_tissue=tissue.pop("min_tissue"),
            rules=tuple(tissue.pop("rules")),
            max_tiles=tissue.pop("max_tiles"),
        ),
        tissue=TissueSettings(**tissue),
        batch_tiles=batch_tiles,
        n_workers=n_workers,
    )


def embed_slide(
    path: Path,
    encoder: Encoder,
    *,
    settings: EmbedSettings,
    given_mpp: float | None,
    progress: EmbedProgress,
) -> Bag:
    """Embed one slide.

    Parameters
    ----------
    path
        The slide.
    encoder
        The backbone.
    settings
        How tiles are found and cut.
    given_mpp
        µm per level-0 px where the user knows better than the file; else None.
    progress
        Told about tiles as they are done.

    Returns
    -------
    Bag
        With ``features`` of shape (n_tiles, dim); ``n_tiles`` is 0 on a slide without tissue.

    Raises
    ------
    SlideError
        If the slide cannot be opened, or more of its tiles cannot be decoded than may fail.
    ResolutionError
        If ``given_mpp`` is implausible.
    """
    with survey_slide(
        path, tiles=settings.tiles, tissue=settings.tissue, given_mpp=given_mpp
    ) as survey:
        progress.slide_started(slide_id_of(path), len(survey.grid.coords_px0))
        embedded = embed_tiles(
            survey.slide,
            survey.grid,
            encoder,
            batch_tiles=settings.batch_tiles,
            n_workers=settings.n_workers,
            judge=survey.judge,
            on_tiles=progress.tiles_done,
        )
        _refuse_if_broken(path, embedded, n_tried=len(survey.grid.coords_px0), settings=settings)
        return Bag(
            features=embedded.features,
            coords_px0=survey.grid.coords_px0[embedded.kept],
            tissue_fraction=survey.grid.tissue_fraction[embedded.kept],
            meta=_describe(survey, embedded, encoder, settings),
        )


def embed_slides(
    paths: Sequence[Path],
    bags_dir: Path,
    encoder: Encoder,
    *,
    settings: EmbedSettings,
    given_mpp: Mapping[str, float],
    overwrite: bool,
    progress: EmbedProgress,
) -> list[SlideOutcome]:
    """Embed a set of slides, each into ``bags_dir/<slide_id>.h5``.

    A slide with a finished bag is skipped, one that fails does not stop the others, and what
    became of each is kept in ``bags_dir/embed.csv``, also when the run is stopped half way.

    Parameters
    ----------
    paths
        The slides.
    bags_dir
        Folder of the bags; made if missing.
    encoder
        The backbone.
    settings
        How tiles are found and cut.
    given_mpp
        µm per level-0 px by slide id, for slides whose file is silent or wrong.
    overwrite
        Embed slides again that have a bag.
    progress
        Told as the work goes on.

    Returns
    -------
    list of SlideOutcome
        One a slide, in the order of ``paths``.

    Raises
    ------
    SlideError
        If two slides have the same id.
    BagError
        If the folder holds bags of these slides made with other settings.
    """
    _refuse_same_ids(paths)
    make_folder(bags_dir)
    finished = {} if overwrite else _finished_bags(paths, bags_dir)
    require_same_fingerprint(
        fingerprint_of(encoder, settings),
        ((bag_path(bags_dir, name), meta.fingerprint) for name, meta in finished.items()),
        source="the settings asked for (--overwrite embeds again, --bags names another folder)",
    )
    outcomes: list[SlideOutcome] = []
    saved_at = time.monotonic()
    try:
        for path in paths:
            slide_id = slide_id_of(path)
            if meta := finished.get(slide_id):
                outcome = _skipped(path, meta)
            else:
                outcome = _embed_one(
                    path, bags_dir, encoder, settings, given_mpp.get(slide_id), progress
                )
            outcomes.append(outcome)
            progress.slide_ended(outcome)
            if time.monotonic() - saved_at > _SECONDS_BETWEEN_TABLES:
                write_outcomes(bags_dir, outcomes)
                saved_at = time.monotonic()
    finally:
        write_outcomes(bags_dir, outcomes)
    return outcomes


def write_outcomes(bags_dir: Path, outcomes: Sequence[SlideOutcome]) -> None:
    """Bring ``embed.csv`` up to date: rows of other slides stay as they are.

    A skipped slide keeps its earlier row, which says how it was made.

    Raises
    ------
    OutputError
        If the table cannot be written.
    """
    path = bags_dir / "embed.csv"
    rows: dict[str, dict[str, object]] = {}
    if path.is_file():
        for row in read_table(path).to_dict("records"):
            rows[str(row.get("slide_id", ""))] = {str(k): v for k, v in row.items()}
    for outcome in outcomes:
        if outcome.status != "skipped" or outcome.slide_id not in rows:
            rows[outcome.slide_id] = {
                **asdict(outcome), "left_out": _counts_text(outcome.left_out)
            }  # fmt: skip
    names = [part.name for part in fields(SlideOutcome)]
    if rows:
        with written_beside(path) as beside:
            pd.DataFrame(list(rows.values()), columns=names).to_csv(
                beside, index=False, float_format="%.6g", lineterminator="\n"
            )


def read_mpp_table(path: Path) -> dict[str, float]:
    """µm per level-0 pixel by slide id, from a CSV with columns ``slide_id`` and ``mpp``.

    Raises
    ------
    TableError
        If a column is missing or a value is not a number.
    """
    table = read_table(path)
    slide_column = find_column(table, ["slide_id", "image_id"], where=path, what="slide ids")
    mpp_column = find_column(table, ["mpp"], where=path, what="µm per level-0 pixel")
    values: dict[str, float] = {}
    for row, (slide, text) in enumerate(
        zip(table[slide_column], table[mpp_column], strict=True), start=2
    ):
        try:
            values[slide_id_of(Path(slide))] = float(text)
        except ValueError as error:
            raise TableError(
                f"{path}, row {row}", found=f"mpp {text!r}", expected="a number of µm per pixel"
            ) from error
    return values


def read_slide_table(path: Path) -> list[Path]:
    """Slides listed in a CSV; relative paths count from the table's folder.

    Raises
    ------
    TableError
        If there is no column of paths, or a listed file does not exist.
    """
    table = read_table(path)
    column = find_column(table, ["path", "slide_path", "file"], where=path, what="paths of slides")
    slides = [path.parent / text for text in table[column]]
    for row, slide in enumerate(slides, start=2):
        if not slide.exists():
            raise TableError(f"{path}, row {row}", found=f"no file {slide}", expected="a slide")
    return slides


def _embed_one(
    path: Path,
    bags_dir: Path,
    encoder: Encoder,
    settings: EmbedSettings,
    given_mpp: float | None,
    progress: EmbedProgress,
) -> SlideOutcome:
    """Embed one slide and write its bag; whatever is wrong with it stays with it."""
    started = time.monotonic()
    slide_id = slide_id_of(path)
    try:
        bag = embed_slide(path, encoder, settings=settings, given_mpp=given_mpp, progress=progress)
        write_bag(bag_path(bags_dir, slide_id), bag)
    except KnownError as error:
        return _failed(path, str(error), seconds=time.monotonic() - started)
    except Exception as error:  # noqa: BLE001 - the one boundary: no slide may stop the others
        text = f"{path}: unforeseen {type(error).__name__}: {error}"
        return _failed(path, text, seconds=time.monotonic() - started)
    return SlideOutcome(
        slide_id=slide_id,
        status="done" if len(bag.features) else "empty",
        n_tiles=len(bag.features),
        n_failed=bag.meta.n_failed,
        left_out=json.loads(bag.meta.left_out),
        mpp=(bag.meta.mpp_x * bag.meta.mpp_y) ** 0.5,
        mpp_source=bag.meta.mpp_source,
        seconds=time.monotonic() - started,
        message=bag.meta.empty_reason,
        path=str(path),
    )


def _failed(path: Path, message: str, *, seconds: float) -> SlideOutcome:
    return SlideOutcome(
        slide_id=slide_id_of(path),
        status="failed",
        seconds=seconds,
        message=" ".join(message.split()),
        path=str(path),
    )


def _skipped(path: Path, meta: BagMeta) -> SlideOutcome:
    return SlideOutcome(
        slide_id=meta.slide_id,
        status="skipped",
        n_tiles=meta.n_tried - meta.n_failed - sum(json.loads(meta.left_out).values()),
        n_failed=meta.n_failed,
        left_out=json.loads(meta.left_out),
        mpp=(meta.mpp_x * meta.mpp_y) ** 0.5,
        mpp_source=meta.mpp_source,
        message=meta.empty_reason,
        path=str(path),
    )


def _refuse_same_ids(paths: Sequence[Path]) -> None:
    counts = Counter(slide_id_of(path) for path in paths)
    for slide_id, n_paths in counts.items():
        if n_paths > 1:
            same = [str(path) for path in paths if slide_id_of(path) == slide_id]
            raise SlideError(
                f"slide {slide_id!r}",
                found=f"{n_paths} files of that name: {', '.join(same[:3])}",
                expected="one file a slide id",
                advice="Rename one, or embed them into different folders with --bags.",
            )


def _finished_bags(paths: Sequence[Path], bags_dir: Path) -> dict[str, BagMeta]:
    """Metas of the whole bags there; a damaged one is made again."""
    finished = {}
    for path in paths:
        slide_id = slide_id_of(path)
        try:
            finished[slide_id] = read_meta(bag_path(bags_dir, slide_id))
        except BagError:
            continue
    return finished


def _refuse_if_broken(
    path: Path, embedded: EmbeddedTiles, *, n_tried: int, settings: EmbedSettings
) -> None:
    n_failed = len(embedded.failures)
    if n_failed > settings.max_failed * n_tried:
        raise SlideError(
            path,
            found=f"{n_failed} of {n_tried} tiles cannot be decoded, first: {embedded.failures[0]}",
            expected=f"at most {settings.max_failed:.0%}",
            advice="Copy or export the slide again, or allow more with --max-failed.",
        )


def _describe(
    survey: Survey, embedded: EmbeddedTiles, encoder: Encoder, settings: EmbedSettings
) -> BagMeta:
    slide, resolution, grid = survey.slide, survey.resolution, survey.grid
    return BagMeta(
        slide_id=slide_id_of(slide.path),
        fingerprint=fingerprint_of(encoder, settings),
        width_px0=slide.levels[0].width_px,
        height_px0=slide.levels[0].height_px,
        mpp_x=resolution.mpp_x,
        mpp_y=resolution.mpp_y,
        mpp_source=resolution.source,
        span_x_px0=grid.span_x_px0,
        span_y_px0=grid.span_y_px0,
        slide_content_id=content_id(slide.path),
        background_rgb=survey.tissue.background_rgb,
        min_tissue_used=grid.min_tissue_used,
        n_tried=len(grid.coords_px0),
        n_failed=len(embedded.failures),
        left_out=as_json(**Counter(embedded.left_out.values())),
        empty_reason=_empty_reason(survey, embedded),
        software=_software(),
    )


def _empty_reason(survey: Survey, embedded: EmbeddedTiles) -> str:
    if len(embedded.kept):
        return ""
    if not survey.n_found:
        return "no tissue found"
    counts = Counter(embedded.left_out.values())
    return f"all {len(survey.grid.coords_px0)} tiles left out: {_counts_text(counts)}"


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _software() -> str:
    """Versions of what decides about pixels and embeddings."""
    names = (
        "mil-slides", "torch", "timm", "tifffile", "imagecodecs", "openslide-python", "pillow",
        "zarr",
    )  # fmt: skip
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return json.dumps(versions, sort_keys=True)
