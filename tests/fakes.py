"""Synthetic bags and cohorts without slides, slides without files, and pickles that do harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.bags.bag import IMAGE, Bag, BagMeta, Fingerprint, as_json
from features.bags.h5 import write_bag
from features.errors import TileError
from features.filters.classifier import EmbeddingSpec, ExampleSlide, LabelledTiles, TileFilter
from features.filters.training import fit_filter
from features.slides.base import Level, StatedMpp

FINGERPRINT = Fingerprint(
    encoder="fake",
    weights_sha256="0" * 64,
    transform=as_json(input_px=224),
    dim=8,
    tile_px=224,
    target_mpp=0.5,
    overlap_px=0,
    tissue=as_json(min_tissue=0.3),
)


def make_bag(
    slide_id: str,
    *,
    n_tiles: int = 4,
    dim: int = 8,
    seed: int = 0,
    shift: float = 0.0,
    empty_reason: str = "",
    content_id: str = "",
    n_views: int = 0,
) -> Bag:
    """Return a bag of normal noise plus ``shift``; views differ from it by a tenth of the noise."""
    rng = np.random.default_rng([seed, *slide_id.encode()])
    columns = max(1, int(np.ceil(np.sqrt(n_tiles))))
    index = np.arange(n_tiles)
    meta = BagMeta(
        slide_id=slide_id,
        fingerprint=replace(
            FINGERPRINT, dim=dim, views=as_json(n_views=n_views, seed=0) if n_views else ""
        ),
        width_px0=columns * 448,
        height_px0=columns * 448,
        mpp_x=0.25,
        mpp_y=0.25,
        mpp_source="assumed",
        span_x_px0=448.0,
        span_y_px0=448.0,
        slide_content_id=content_id or f"content of {slide_id}",
        n_tried=n_tiles,
        empty_reason=empty_reason,
    )
    features = rng.normal(size=(n_tiles, dim)) + shift
    views = features[:, None] + 0.1 * rng.normal(size=(n_tiles, n_views, dim)) if n_views else None
    return Bag(
        features=features.astype(np.float16),
        views=None if views is None else views.astype(np.float16),
        coords_px0=np.stack([index % columns, index // columns], axis=1).astype(np.int64) * 448,
        tissue_fraction=np.ones(n_tiles, np.float32),
        meta=meta,
    )


def make_series(
    bag_id: str, *, n_images: int = 4, dim: int = 8, seed: int = 0, shift: float = 0.0
) -> Bag:
    """Return a bag of images: normal noise plus ``shift``."""
    tiles = make_bag(bag_id, n_tiles=n_images, dim=dim, seed=seed, shift=shift)
    made = replace(
        tiles.meta.fingerprint,
        target_mpp=0.0,
        tissue=as_json(images="whole", windows=[{"centre_hu": 40, "width_hu": 80}] * 3),
    )
    meta = replace(
        tiles.meta, fingerprint=made, kind=IMAGE, width_px0=0, height_px0=0, mpp_x=0.0, mpp_y=0.0,
        mpp_source="", span_x_px0=0.0, span_y_px0=0.0,
    )  # fmt: skip
    return Bag.from_series(
        tiles.features,
        order=np.arange(n_images),
        source=tuple(f"{bag_id}_{index}.png" for index in range(n_images)),
        meta=meta,
    )


def write_cohort(
    folder: Path,
    *,
    n_patients: int,
    shift: float,
    seed: int = 0,
    n_tiles: int = 12,
    dim: int = 16,
    signal_share: float = 1.0,
    n_views: int = 0,
) -> Path:
    """Write bags and a table of patients of two classes; every fifth patient has two slides.

    ``shift`` is added to ``signal_share`` of the tiles of the second class.
    """
    (folder / "bags").mkdir(parents=True, exist_ok=True)
    rows = ["image_id,patient_id,label"]
    for number in range(n_patients):
        label = number % 3 == 0
        for image in range(1 + (number % 5 == 0)):
            slide_id = f"{number:03d}_{image}"
            bag = make_bag(slide_id, n_tiles=n_tiles, dim=dim, seed=seed, n_views=n_views)
            if label:
                raised = slice(max(1, round(signal_share * n_tiles)))
                bag.features[raised] += np.float16(shift)
                if bag.views is not None:
                    bag.views[raised] += np.float16(shift)
            write_bag(folder / "bags" / f"{slide_id}.h5", replace(bag))
            rows.append(f"{slide_id},{number:03d},{'LAA' if label else 'CE'}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder / "train.csv"


def make_examples(
    *,
    n_slides: int,
    dim: int = 8,
    seed: int = 0,
    slide_ids: Sequence[str] = (),
    patient_ids: Sequence[str] = (),
) -> LabelledTiles:
    """Return ten tiles per slide of normal noise; the first four, plus 3, are to be dropped."""
    rng = np.random.default_rng([seed, 77])
    slide = np.repeat(np.arange(n_slides), 10)
    drop = np.tile(np.arange(10) < 4, n_slides)
    names = [*slide_ids, *(f"s{number}" for number in range(len(slide_ids), n_slides))]
    owners = [*patient_ids, *[""] * n_slides]
    return LabelledTiles(
        features=(rng.normal(size=(len(slide), dim)) + 3 * drop[:, None]).astype(np.float16),
        drop=drop,
        slide_index=slide,
        slides=tuple(
            ExampleSlide(slide_id=name, patient_id=owner)
            for name, owner in zip(names, owners, strict=False)
        ),
    )


def make_filter(*, n_slides: int, dim: int = 8, **examples: Any) -> TileFilter:
    """Return a filter that drops tiles of :func:`make_bag` to which 3 was added."""
    return fit_filter(
        make_examples(n_slides=n_slides, dim=dim, **examples),
        spec=EmbeddingSpec.from_fingerprint(replace(FINGERPRINT, dim=dim)),
    )


real_data = pytest.mark.real_data


class FakeSlide:
    """A slide in memory; ``broken`` regions (x, y, width, height in level-0 px) fail to read."""

    reader = "fake"
    path = Path("fake.tif")
    background_rgb = (255, 255, 255)
    warnings = ()

    def __init__(
        self,
        pixels: np.ndarray,
        *,
        downsamples: tuple[int, ...] = (1,),
        mpp_xy: tuple[float, float] | None = None,
        broken: tuple[tuple[int, int, int, int], ...] = (),
    ) -> None:
        self._pixels = [pixels[::factor, ::factor] for factor in downsamples]
        self.mpp_xy = mpp_xy
        self.stated_mpp = mpp_xy and StatedMpp(x=mpp_xy[0], y=mpp_xy[1], field="a fake")
        self.broken = broken
        self.levels_read: list[int] = []
        self.levels = tuple(
            Level(width_px=p.shape[1], height_px=p.shape[0], downsample=float(factor))
            for p, factor in zip(self._pixels, downsamples, strict=True)
        )

    def read(
        self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int
    ) -> np.ndarray:
        self.levels_read.append(level)
        for x, y, width, height in self.broken:
            if (
                x < x_px + width_px
                and x_px < x + width
                and y < y_px + height_px
                and y_px < y + height
            ):
                raise TileError(self.path, actual=f"nothing at ({x_px}, {y_px})")
        picture = np.full((height_px, width_px, 3), 255, np.uint8)
        part = self._pixels[level][y_px : y_px + height_px, x_px : x_px + width_px]
        picture[: part.shape[0], : part.shape[1]] = part
        return picture

    def overview(self, *, downsample: int) -> np.ndarray:
        return self._pixels[0][::downsample, ::downsample]

    def release_memory(self) -> None:
        """Do nothing: all pixels stay in memory."""

    def close(self) -> None:
        """Do nothing: no file is open."""


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)
