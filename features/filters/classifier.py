"""Tile filter: a logistic regression on embeddings that predicts which tiles to drop.

A filter carries its labelled tiles, so that it can be fitted again without those of held-out
patients. Its file is documented in ``docs/reference/filter.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from features.bags.bag import Bag, Fingerprint, as_json, check_format
from features.bags.setting_words import describe_difference
from features.errors import CONTENT_ERRORS, FilterError, one_line
from features.utils.files import atomic_write
from features.utils.paths import parse_url

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "REASON",
    "ConfusionCounts",
    "EmbeddingSpec",
    "ExampleSlide",
    "LabelledTiles",
    "TileFilter",
    "apply_filter",
    "check_compatible",
    "load_filter_copy",
    "read_filter",
    "save_filter_copy",
    "write_filter",
]

FORMAT = "mil-filter"
"""Name of the only entry of the file's metadata, a JSON object."""

FORMAT_VERSION = 1
"""Version that is written; newer versions are refused."""

REASON = "filter"
"""Key of the filter among the reasons for which tiles are rejected."""

_ROWS = 1024
_TENSORS = ("coef", "drop", "features", "slide")
_EXPECTED = "a file that 'mil filter fit' wrote"


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """The fields of a :class:`features.bags.bag.Fingerprint` that a filter depends on.

    Embeddings have shape (n_tiles, dim); tiles have ``tile_px`` px per side and
    ``target_mpp`` µm per px.
    """

    encoder: str
    weights_sha256: str
    transform: str
    dim: int
    tile_px: int
    target_mpp: float

    @classmethod
    def from_fingerprint(cls, fingerprint: Fingerprint) -> EmbeddingSpec:
        """Return the specification of bags with this fingerprint."""
        return cls(**{part.name: getattr(fingerprint, part.name) for part in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class ExampleSlide:
    """A slide with labelled tiles; patient and content are empty if unknown.

    ``content_id`` is the hash of its file, see :func:`features.slides.file_info.content_hash`.
    """

    slide_id: str
    content_id: str = ""
    patient_id: str = ""

    @property
    def group(self) -> tuple[str, str]:
        """Unit that is never split between folds: the patient, or the slide if that is unknown."""
        return ("patient", self.patient_id) if self.patient_id else ("slide", self.slide_id)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledTiles:
    """Embeddings of tiles that were labelled to keep or to drop.

    ``features`` has shape (n_tiles, dim), float16 or float32; ``drop``, True for tiles to drop, and
    ``slide_index``, the index of each tile's slide in ``slides``, have shape (n_tiles,).
    """

    features: npt.NDArray[np.floating[Any]]
    drop: npt.NDArray[np.bool_]
    slide_index: npt.NDArray[np.int64]
    slides: tuple[ExampleSlide, ...]

    def groups(self) -> npt.NDArray[np.int64]:
        """Return the index of each tile's group, shape (n_tiles,); see ExampleSlide.group."""
        names = sorted({slide.group for slide in self.slides})
        indices = np.array([names.index(slide.group) for slide in self.slides], np.int64)
        return indices[self.slide_index]

    def slides_of_patient(
        self, patient_id: str, *, slide_ids: Collection[str], content_ids: Collection[str]
    ) -> frozenset[ExampleSlide]:
        """Return the slides of a patient, by its id or by id or content of one of its slides.

        Where one slide matches, all others of its group match as well.
        """
        groups = {
            slide.group
            for slide in self.slides
            if slide.patient_id == patient_id
            or slide.slide_id in slide_ids
            or (slide.content_id and slide.content_id in content_ids)
        }
        return frozenset(slide for slide in self.slides if slide.group in groups)

    def without(self, slides: Collection[ExampleSlide]) -> LabelledTiles:
        """Return the tiles of all other slides, embeddings of shape (n_kept, dim)."""
        kept = np.array([slide not in slides for slide in self.slides], bool)
        rows = kept[self.slide_index]
        return LabelledTiles(
            features=self.features[rows],
            drop=self.drop[rows],
            slide_index=(np.cumsum(kept) - 1)[self.slide_index[rows]].astype(np.int64),
            slides=tuple(slide for slide in self.slides if slide not in slides),
        )


@dataclass(frozen=True, kw_only=True)
class ConfusionCounts:
    """Predictions of filters for labelled tiles of held-out patients or slides."""

    n_dropped_rightly: int
    n_dropped_wrongly: int
    n_kept_wrongly: int
    n_kept_rightly: int

    @property
    def precision(self) -> float:
        """Share of dropped tiles that are labelled to drop; NaN if none was dropped."""
        n_dropped = self.n_dropped_rightly + self.n_dropped_wrongly
        return self.n_dropped_rightly / n_dropped if n_dropped else math.nan

    @property
    def recall(self) -> float:
        """Share of tiles labelled to drop that were dropped."""
        return self.n_dropped_rightly / (self.n_dropped_rightly + self.n_kept_wrongly)


@dataclass(frozen=True, kw_only=True, eq=False)
class TileFilter:
    """A fitted filter; the same file gives the same predictions on every machine.

    ``coef``, shape (dim,), applies to embeddings that are not standardised; with ``intercept`` it
    gives the log odds of dropping, for equally frequent labels. A tile is dropped from the
    probability ``threshold`` on, above 0 and below 1. ``strength`` is the chosen inverse strength
    of regularisation (C). ``held_out`` is None for a filter fitted again inside a fold.
    ``software`` holds versions as JSON.
    """

    spec: EmbeddingSpec
    coef: npt.NDArray[np.float64]
    intercept: float
    threshold: float
    strength: float
    held_out: ConfusionCounts | None
    examples: LabelledTiles
    software: str

    def predict_drop(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """Return which tiles to drop, shape (n_tiles,), by their features, shape (n_tiles, dim).

        The result for a tile does not depend on the other tiles of the array, to the last bit.
        """
        log_odds = np.empty(len(features))
        for start in range(0, len(features), _ROWS):
            rows = features[start : start + _ROWS].astype(np.float64)
            log_odds[start : start + _ROWS] = (rows * self.coef).sum(axis=1)
        return log_odds + self.intercept >= math.log(self.threshold / (1 - self.threshold))

    @cached_property
    def sha256(self) -> str:
        """Hash of the filter's file."""
        return hashlib.sha256(_as_bytes(self)).hexdigest()


def apply_filter(tile_filter: TileFilter, bag: Bag) -> Bag:
    """Return the bag without the tiles that a filter drops, which ``left_out`` counts.

    Its arrays keep the rows of the other tiles: embeddings have shape (n_kept, dim).
    """
    kept = ~tile_filter.predict_drop(bag.features)
    left_out = json.loads(bag.meta.left_out)
    n_dropped = len(kept) - int(kept.sum())
    reason = bag.meta.empty_reason
    if n_dropped:
        left_out[REASON] = left_out.get(REASON, 0) + n_dropped
        reason = "" if kept.any() else f"all {len(kept)} tiles dropped by the filter"
    meta = replace(bag.meta, left_out=as_json(**left_out), empty_reason=reason)
    return bag.select(kept, meta=meta)


def check_compatible(tile_filter: TileFilter, fingerprint: Fingerprint, *, source: str) -> None:
    """Raise FilterError for a filter that was fitted on other embeddings than a fingerprint's.

    The message names the settings that differ and the ``source`` of these embeddings.
    """
    if fingerprint.stain_norm:
        raise FilterError(
            "the tile filter",
            actual="fitted on tiles without stain normalisation",
            expected=f"no stain normalisation of {source}",
            hint="Leave out --filter or --stain-norm.",
        )
    other = EmbeddingSpec.from_fingerprint(fingerprint)
    if tile_filter.spec != other:
        found, wanted = describe_difference(vars(tile_filter.spec), vars(other))
        raise FilterError(
            "the tile filter",
            actual=f"fitted on tiles made with {found}",
            expected=f"{wanted} as in {source}",
            hint="Fit it again: 'mil filter fit' with the same backbone, --mpp and --tile-px.",
        )


def write_filter(path: Path, tile_filter: TileFilter) -> None:
    """Write a filter atomically; equal filters give equal bytes.

    Raises OutputError if the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(_as_bytes(tile_filter))


def save_filter_copy(bags_dir: Path, tile_filter: TileFilter) -> None:
    """Save a copy of the filter in the folder of bags made with it, as :func:`write_filter`."""
    path = _copy_path(bags_dir, tile_filter.sha256)
    if not path.is_file():
        write_filter(path, tile_filter)


def load_filter_copy(bags_dir: Path, sha256: str) -> TileFilter:
    """Read the copy of the filter with this hash from a folder of bags.

    Raises FilterError if it is missing, damaged, or has another hash.
    """
    tile_filter = read_filter(path := _copy_path(bags_dir, sha256))
    if tile_filter.sha256 != sha256:
        raise FilterError(
            path, actual=f"filter {tile_filter.sha256[:12]}…", expected=f"{sha256[:12]}…"
        )
    return tile_filter


def copy_filter(bags_dir: Path, target_dir: Path, sha256: str) -> None:
    """Copy the filter that bags were embedded with to the folder of their copies.

    Does nothing without a hash, for bags behind a URL, and where the filter is missing or damaged;
    training must then be given the filter by name, as with the original folder. Raises OutputError
    if the target folder cannot be written to.
    """
    if not sha256 or parse_url(bags_dir) is not None:
        return
    with suppress(FilterError):
        save_filter_copy(target_dir, load_filter_copy(bags_dir, sha256))


def read_filter(path: Path) -> TileFilter:
    """Read a filter, weights of shape (dim,), without executing anything in its file.

    Raises
    ------
    FilterError
        If the file is missing, damaged, not a filter, or of a later version.
    """
    try:
        with path.open("rb") as stream:  # The library does not tell a folder or a table.
            if (start := stream.read(9)[8:]) and start != b"{":
                raise FilterError(
                    path, actual="another kind of file", expected=_EXPECTED,
                    hint="Name that file, or fit it again with 'mil filter fit'.",
                )  # fmt: skip
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            if not isinstance(header, dict):
                raise FilterError(path, actual="another kind of file", expected=_EXPECTED)
            stated = {"format": FORMAT, **header}  # The key of the metadata names the format.
            check_format(path, stated, name=FORMAT, newest=FORMAT_VERSION, error=FilterError)
            return _parse(header, {name: file.get_tensor(name) for name in _TENSORS})
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FilterError(path, actual="there is no such file", expected=_EXPECTED) from error
    except IsADirectoryError as error:
        raise FilterError(path, actual="a folder", expected=_EXPECTED) from error
    except (*CONTENT_ERRORS, SafetensorError) as error:
        raise FilterError(
            path,
            actual=f"not readable ({one_line(str(error), max_chars=200)})",
            expected=_EXPECTED,
            hint="Copy it again, or fit it again with 'mil filter fit'.",
        ) from error


def _copy_path(bags_dir: Path, sha256: str) -> Path:
    return bags_dir / f"filter-{sha256[:12]}.safetensors"


def _as_bytes(tile_filter: TileFilter) -> bytes:
    examples, held_out = tile_filter.examples, tile_filter.held_out
    header = as_json(
        format_version=FORMAT_VERSION,
        recipe=asdict(tile_filter.spec),
        intercept=tile_filter.intercept,
        threshold=tile_filter.threshold,
        strength=tile_filter.strength,
        held_out=None if held_out is None else asdict(held_out),
        slides=[asdict(slide) for slide in examples.slides],
        software=tile_filter.software,
    )
    tensors = (tile_filter.coef, examples.drop, examples.features, examples.slide_index)
    arrays = dict(zip(_TENSORS, map(np.ascontiguousarray, tensors), strict=True))
    return save(arrays, metadata={FORMAT: header})  # Several entries would have no fixed order.


def _parse(header: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> TileFilter:
    slides = tuple(ExampleSlide(**slide) for slide in header["slides"])
    held_out = header["held_out"]
    tile_filter = TileFilter(
        spec=EmbeddingSpec(**header["recipe"]),
        coef=tensors["coef"],
        intercept=float(header["intercept"]),
        threshold=float(header["threshold"]),
        strength=float(header["strength"]),
        held_out=None if held_out is None else ConfusionCounts(**held_out),
        examples=LabelledTiles(
            features=tensors["features"], drop=tensors["drop"], slide_index=tensors["slide"],
            slides=slides,
        ),
        software=str(header["software"]),
    )  # fmt: skip
    _check_consistent(tile_filter)
    return tile_filter


def _check_consistent(tile_filter: TileFilter) -> None:
    """Raise ValueError if shapes or values do not fit each other."""
    examples, dim = tile_filter.examples, tile_filter.spec.dim
    n_tiles, n_slides = len(examples.features), len(examples.slides)
    expected = {
        "coef": (tile_filter.coef, np.float64, (dim,)),
        "drop": (examples.drop, np.bool_, (n_tiles,)),
        "slide": (examples.slide_index, np.int64, (n_tiles,)),
        "features": (examples.features, np.floating, (n_tiles, dim)),
    }
    for name, (array, kind, shape) in expected.items():
        if array.shape != shape or not np.issubdtype(array.dtype, kind):
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, not {shape}")
    if not 0 < tile_filter.threshold < 1:
        raise ValueError(f"a threshold of {tile_filter.threshold:g}")
    numbers = (tile_filter.coef, examples.features, tile_filter.intercept)
    if not all(np.isfinite(values).all() for values in numbers):
        raise ValueError("NaN or infinity")
    if n_tiles and not 0 <= examples.slide_index.min() <= examples.slide_index.max() < n_slides:
        raise ValueError(f"a tile of a slide beyond the {n_slides} that are listed")
