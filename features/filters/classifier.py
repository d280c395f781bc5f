"""The tile filter: a logistic classifier on embeddings that says which tiles to leave out.

A filter carries the examples it learned from, so that it can be fitted again without those of
patients who are to be judged. Its file is documented in ``docs/reference/filter.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from features.bags.bag import Bag, Fingerprint, as_json
from features.errors import FilterError
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
"""Name of the one entry of the file's metadata, a JSON object."""

FORMAT_VERSION = 1
"""Version that is written; newer ones are refused."""

REASON = "filter"
"""Stands for the filter where tiles that are left out are counted by reason."""

_ROWS = 1024
_TENSORS = ("coef", "drop", "features", "slide")


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """What a tile's embedding must agree in for a filter to judge it."""

    encoder: str
    """timm name of the backbone."""
    weights_sha256: str
    """SHA-256 of its weights."""
    transform: str
    """Its preprocessing, as JSON."""
    dim: int
    """Length of one embedding."""
    tile_px: int
    """Side of a tile in px."""
    target_mpp: float
    """Resolution of a tile in µm per px."""

    @classmethod
    def from_fingerprint(cls, fingerprint: Fingerprint) -> EmbeddingSpec:
        """The part of a bag's fingerprint that a filter depends on."""
        return cls(**{part.name: getattr(fingerprint, part.name) for part in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class ExampleSlide:
    """A slide that examples come from."""

    slide_id: str
    """Its name."""
    content_id: str = ""
    """Content of its file, see :func:`features.slides.file_info.content_hash`; empty where it is
    not known."""
    patient_id: str = ""
    """Whose it is; empty where that was not said."""

    @property
    def group(self) -> tuple[str, str]:
        """What is never on two sides of a split: the patient, or the slide where none is named."""
        return ("patient", self.patient_id) if self.patient_id else ("slide", self.slide_id)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledTiles:
    """Embeddings of tiles of which a person said whether to keep or to drop them."""

    features: npt.NDArray[np.floating[Any]]
    """Shape (tiles, dim), float16 or float32."""
    drop: npt.NDArray[np.bool_]
    """Shape (tiles,): True on tiles to be left out."""
    slide_index: npt.NDArray[np.int64]
    """Shape (tiles,): index into ``slides`` of the slide each comes from."""
    slides: tuple[ExampleSlide, ...]
    """The slides."""

    def groups(self) -> npt.NDArray[np.int64]:
        """Number of the patient or slide of each tile, shape (tiles,); see ExampleSlide.group."""
        names = sorted({slide.group for slide in self.slides})
        return np.array([names.index(slide.group) for slide in self.slides], np.int64)[
            self.slide_index
        ]

    def slides_of_patient(
        self, patient_id: str, *, slide_ids: Collection[str], content_ids: Collection[str]
    ) -> frozenset[ExampleSlide]:
        """Slides here that are a patient's: by its id, by a slide's id, or by a slide's content.

        Where one slide is the patient's, so are all that were given the same patient here.

        Parameters
        ----------
        patient_id, slide_ids, content_ids
            The patient, and the names and contents of its slides.
        """
        found = {
            slide.group
            for slide in self.slides
            if slide.patient_id == patient_id
            or slide.slide_id in slide_ids
            or (slide.content_id and slide.content_id in content_ids)
        }
        return frozenset(slide for slide in self.slides if slide.group in found)

    def without(self, slides: Collection[ExampleSlide]) -> LabelledTiles:
        """The examples of all other slides."""
        rows = np.array([slide not in slides for slide in self.slides], bool)[self.slide_index]
        places = np.cumsum([slide not in slides for slide in self.slides]) - 1
        return LabelledTiles(
            features=self.features[rows],
            drop=self.drop[rows],
            slide_index=places[self.slide_index[rows]].astype(np.int64),
            slides=tuple(slide for slide in self.slides if slide not in slides),
        )


@dataclass(frozen=True, kw_only=True)
class ConfusionCounts:
    """How filters judged examples of patients or slides that they had not learned from."""

    n_dropped_rightly: int
    """Tiles to drop that were dropped."""
    n_dropped_wrongly: int
    """Tiles to keep that were dropped."""
    n_kept_wrongly: int
    """Tiles to drop that were kept."""
    n_kept_rightly: int
    """Tiles to keep that were kept."""

    @property
    def precision(self) -> float:
        """Share of the dropped tiles that were to be dropped; NaN where none was dropped."""
        n_dropped = self.n_dropped_rightly + self.n_dropped_wrongly
        return self.n_dropped_rightly / n_dropped if n_dropped else math.nan

    @property
    def recall(self) -> float:
        """Share of the tiles to drop that were dropped."""
        return self.n_dropped_rightly / (self.n_dropped_rightly + self.n_kept_wrongly)


@dataclass(frozen=True, kw_only=True, eq=False)
class TileFilter:
    """A fitted filter; frozen, and the same file gives the same decisions everywhere."""

    spec: EmbeddingSpec
    """How the embeddings must have been made."""
    coef: npt.NDArray[np.float64]
    """Weights of an embedding's numbers as they are, standardisation included, shape (dim,)."""
    intercept: float
    """Added to the weighted sum: log odds of dropping, both answers taken as equally frequent."""
    threshold: float
    """Probability from which on a tile is dropped, above 0 and below 1."""
    strength: float
    """Inverse strength of regularisation that was chosen (C)."""
    held_out: ConfusionCounts | None
    """How it does on slides it has not seen; None for one fitted again inside a fold."""
    examples: LabelledTiles
    """What it learned from."""
    software: str
    """Versions of what made it, as JSON."""

    def predict_drop(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """Which tiles to leave out.

        Each is judged by itself: whatever tiles come along, its number is the same to the last bit.

        Parameters
        ----------
        features
            Embeddings, shape (tiles, dim).

        Returns
        -------
        numpy.ndarray
            Shape (tiles,), bool.
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
    """The bag without the tiles that a filter drops, which are counted in ``left_out``."""
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
    """Refuse a filter that was fitted on other embeddings than it is to judge.

    Parameters
    ----------
    tile_filter
        The filter.
    fingerprint
        How the embeddings to judge are made.
    source
        What they are, for the message.

    Raises
    ------
    FilterError
        If a field differs; the message names it and both values.
    """
    if fingerprint.stain_norm:
        raise FilterError(
            "the tile filter",
            actual="fitted on tiles whose stains were left alone",
            expected=f"the same of {source}, whose stains are made alike",
            hint="Leave out --filter or --stain-norm.",
        )
    own, other = asdict(tile_filter.spec), asdict(EmbeddingSpec.from_fingerprint(fingerprint))
    for name, value in own.items():
        if other[name] != value:
            raise FilterError(
                "the tile filter",
                actual=f"fitted on tiles whose {name} is {value!r}",
                expected=f"{other[name]!r} as in {source}",
                hint="Fit it again with the same backbone, --mpp and --tile-px.",
            )


def write_filter(path: Path, tile_filter: TileFilter) -> None:
    """Write a filter whole or not at all; equal filters give equal bytes.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with atomic_write(path) as beside:
        beside.write_bytes(_as_bytes(tile_filter))


def save_filter_copy(bags_dir: Path, tile_filter: TileFilter) -> None:
    """Put a copy of the filter beside the bags it helped to make, for whoever trains on them.

    Raises
    ------
    OutputError
        If the folder cannot be written to.
    """
    path = _kept_path(bags_dir, tile_filter.sha256)
    if not path.is_file():
        write_filter(path, tile_filter)


def load_filter_copy(bags_dir: Path, sha256: str) -> TileFilter:
    """Read the filter of this hash that lies beside bags.

    Raises
    ------
    FilterError
        If it is missing, damaged, or another one.
    """
    tile_filter = read_filter(path := _kept_path(bags_dir, sha256))
    if tile_filter.sha256 != sha256:
        raise FilterError(
            path, actual=f"filter {tile_filter.sha256[:12]}…", expected=f"{sha256[:12]}…"
        )
    return tile_filter


def copy_filter(bags_dir: Path, target_dir: Path, sha256: str) -> None:
    """Copy the filter that bags were embedded with beside their copies.

    Does nothing without a hash, for bags behind a URL, and where the filter is missing or damaged:
    whoever trains must then name it, as with the folder itself.

    Raises
    ------
    OutputError
        If the target folder cannot be written to.
    """
    if not sha256 or parse_url(bags_dir) is not None:
        return
    with suppress(FilterError):
        save_filter_copy(target_dir, load_filter_copy(bags_dir, sha256))


def read_filter(path: Path) -> TileFilter:
    """Read a filter; nothing in it is ever executed.

    Raises
    ------
    FilterError
        If the file is missing, no filter, damaged, or of a later version.
    """
    try:
        with safe_open(path, framework="np") as file:
            described = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            if not isinstance(described, dict):
                raise FilterError(path, actual="another kind of file", expected=_EXPECTED)
            _require_version(path, described)
            return _parse(described, {name: file.get_tensor(name) for name in _TENSORS})
    except FileNotFoundError as error:
        raise FilterError(path, actual="there is no such file", expected=_EXPECTED) from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FilterError(
            path,
            actual=f"not readable ({' '.join(str(error).split())[:200]})",
            expected=_EXPECTED,
            hint="Copy it again, or fit it again with 'mil filter fit'.",
        ) from error


_EXPECTED = "a file that 'mil filter fit' wrote"


def _kept_path(bags_dir: Path, sha256: str) -> Path:
    return bags_dir / f"filter-{sha256[:12]}.safetensors"


def _require_version(path: Path, described: Mapping[str, Any]) -> None:
    version = described.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise FilterError(
            path,
            actual=f"format version {version!r}",
            expected=f"at most {FORMAT_VERSION}",
            hint="Install the version of this program that wrote it, or a later one.",
        )


def _as_bytes(tile_filter: TileFilter) -> bytes:
    examples, held_out = tile_filter.examples, tile_filter.held_out
    described = as_json(
        format_version=FORMAT_VERSION,
        recipe=asdict(tile_filter.spec),
        intercept=tile_filter.intercept,
        threshold=tile_filter.threshold,
        strength=tile_filter.strength,
        held_out=None if held_out is None else asdict(held_out),
        slides=[asdict(slide) for slide in examples.slides],
        software=tile_filter.software,
    )
    tensors = {
        "coef": tile_filter.coef,
        "drop": examples.drop,
        "features": examples.features,
        "slide": examples.slide_index,
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return save(arrays, metadata={FORMAT: described})  # one entry: several have no fixed order


def _parse(described: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> TileFilter:
    slides = tuple(ExampleSlide(**slide) for slide in described["slides"])
    held_out = described["held_out"]
    found = TileFilter(
        spec=EmbeddingSpec(**described["recipe"]),
        coef=tensors["coef"],
        intercept=float(described["intercept"]),
        threshold=float(described["threshold"]),
        strength=float(described["strength"]),
        held_out=None if held_out is None else ConfusionCounts(**held_out),
        examples=LabelledTiles(
            features=tensors["features"], drop=tensors["drop"], slide_index=tensors["slide"],
            slides=slides,
        ),
        software=str(described["software"]),
    )  # fmt: skip
    _require_sound(found)
    return found


def _require_sound(tile_filter: TileFilter) -> None:
    """Refuse arrays that do not fit each other, as a ValueError."""
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
    if not _all_finite([tile_filter.coef, examples.features, np.float64(tile_filter.intercept)]):
        raise ValueError("NaN or infinity")
    if n_tiles and not 0 <= examples.slide_index.min() <= examples.slide_index.max() < n_slides:
        raise ValueError(f"an example of a slide beyond the {n_slides} that are named")


def _all_finite(arrays: Iterable[Any]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)
