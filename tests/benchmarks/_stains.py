"""In how many degrees of colour the stains of real slides and pictures differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.embedding.config import EmbedConfig
from features.tiling.slide_tiles import open_slide_tiles
from mil.typicality.provenance import STAIN_DEGREES, stain_direction

__all__ = ["stains"]


def stains(data: Path) -> dict[str, Any]:
    """Return how far stains are apart: of the clots of STRIP AI, and of real pictures.

    Of the slides of STRIP AI only mean and standard deviation of each colour are known; taken as
    white glass and one colour of tissue, they give that colour. ``by_drawn_patients`` is the share
    of slides farther than a limit from all slides of 60 drawn patients, mean of 100 draws;
    ``by_one_centre`` that of the slides of other centres from all slides of one centre, mean over
    the centres with 20 slides or more. ``chosen_on`` has both on centres of odd numbers, by limit:
    the chosen one is the least multiple of 5 degrees at which one centre notes at most 1 %.
    """
    table = pd.read_csv(data / "strip/train_metadata.csv")
    glass_less_mean = 255 - table[[f"image_{c}_mean" for c in "rgb"]].to_numpy()
    variance = np.square(table[[f"image_{c}_std" for c in "rgb"]].to_numpy())
    tissue = np.clip(255 - glass_less_mean - variance / np.maximum(glass_less_mean, 1), 0, 255)
    clots = _degrees([stain_direction(colour, (255, 255, 255)) for colour in tissue])
    centres = table["center_id"].to_numpy()
    patients = np.unique(table["patient_id"], return_inverse=True)[1]
    odd = centres % 2 == 1
    of_pictures = {}
    for folder in ("slides", "images/histolab", "images/histoprep", "images/histolytics"):
        for path in sorted((data / folder).glob("*.*")):
            if path.suffix in {".svs", ".tif", ".png", ".jpg", ".jpeg"}:
                of_pictures |= _stain_of(path)
    other = ("pen", "ink", "kidney", "no-tissue", "-rgb")  # the last are copies of others
    he = [name for name in of_pictures if not any(word in name for word in other)]
    angles = _degrees([of_pictures[name] for name in he])
    kidney = _degrees([*map(of_pictures.get, he), of_pictures["kidney-48-5.tif"]])[-1, :-1]
    pairs = angles[np.triu_indices(len(he), 1)]
    return {
        "limit": STAIN_DEGREES,
        "chosen_on": {
            f"{limit:g}": _noted(clots, patients, centres, odd, limit=limit)
            for limit in (5.0, 10.0, 15.0, 20.0)
        },
        "strip, centres of even numbers": _noted(
            clots, patients, centres, ~odd, limit=STAIN_DEGREES
        ),
        "haematoxylin and eosin": {
            "n_pictures": len(he),
            "pairs_beyond": float((pairs > STAIN_DEGREES).mean()),
            "median": float(np.median(pairs)),
        },
        "kidney": {"beyond": float((kidney > STAIN_DEGREES).mean()),
                   "median": float(np.median(kidney)), "nearest": float(kidney.min())},
    }  # fmt: skip


def _noted(
    degrees: npt.NDArray[np.float64],
    patients: npt.NDArray[np.int64],
    centres: npt.NDArray[np.int64],
    part: npt.NDArray[np.bool_],
    *,
    limit: float,
) -> dict[str, float]:
    """Return the shares of slides of a part of the centres that are beyond a limit."""
    names, rng = np.unique(patients[part]), np.random.default_rng(0)
    drawn = [np.isin(patients, rng.permutation(names)[:60]) for _ in range(100)]
    numbers = [number for number in np.unique(centres[part]) if (centres == number).sum() >= 20]
    by_centre = [centres == number for number in numbers]
    beyond = [
        [float((degrees[part & ~own][:, own].min(axis=1) > limit).mean()) for own in trained]
        for trained in (drawn, by_centre)
    ]
    return {
        "n_slides": int(part.sum()),
        "by_drawn_patients": float(np.mean(beyond[0])),
        "by_one_centre": float(np.mean(beyond[1])),
        "by_one_centre_at_most": max(beyond[1]),
    }


def _stain_of(path: Path) -> dict[str, tuple[float, float, float]]:
    """Return the stain of a picture by its name; empty where there is none."""
    config = EmbedConfig()
    given = None if path.suffix == ".svs" else 0.25
    with open_slide_tiles(
        path, tiles=config.tiles, tissue=config.tissue, given_mpp=given
    ) as opened:
        tissue, glass = opened.tissue.tissue_rgb, opened.tissue.background_rgb
    stain = stain_direction(tissue, glass) if tissue else None
    return {path.name: stain} if stain else {}


def _degrees(directions: Sequence[Any]) -> npt.NDArray[np.float64]:
    stacked = np.array(directions)
    return np.asarray(np.degrees(np.arccos(np.clip(stacked @ stacked.T, -1, 1))))
