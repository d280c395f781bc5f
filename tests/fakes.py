"""Stand-ins that tests share: bags and cohorts without slides, slides without files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.bags import Bag, BagMeta, Fingerprint, as_json, write_bag

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
) -> Bag:
    """A bag of normal noise, every number of it raised by ``shift``."""
    rng = np.random.default_rng([seed, *slide_id.encode()])
    columns = max(1, int(np.ceil(np.sqrt(n_tiles))))
    index = np.arange(n_tiles)
    meta = BagMeta(
        slide_id=slide_id,
        fingerprint=Fingerprint(**{**FINGERPRINT.__dict__, "dim": dim}),
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
    return Bag(
        features=(rng.normal(size=(n_tiles, dim)) + shift).astype(np.float16),
        coords_px0=np.stack([index % columns, index // columns], axis=1).astype(np.int64) * 448,
        tissue_fraction=np.ones(n_tiles, np.float32),
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
) -> Path:
    """Bags and a table of patients of two classes; every fifth patient has two slides.

    Of the second class, ``signal_share`` of the tiles are raised by ``shift``.
    """
    (folder / "bags").mkdir(parents=True, exist_ok=True)
    rows = ["image_id,patient_id,label"]
    for number in range(n_patients):
        label = number % 3 == 0
        for image in range(1 + (number % 5 == 0)):
            slide_id = f"{number:03d}_{image}"
            bag = make_bag(slide_id, n_tiles=n_tiles, dim=dim, seed=seed)
            if label:
                bag.features[: max(1, round(signal_share * n_tiles))] += np.float16(shift)
            write_bag(folder / "bags" / f"{slide_id}.h5", replace(bag))
            rows.append(f"{slide_id},{number:03d},{'LAA' if label else 'CE'}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder / "train.csv"


real_data = pytest.mark.real_data
