"""Content of the viewer: patients, slides and their images, addressed by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cli.viewer.slides import (
    SlideCache,
    ViewedSlide,
    draw_colours,
    draw_tile,
    render_region,
    view_slide,
)
from features.bags.bag import BagRef
from features.utils.hardware import CPU_COUNT
from features.utils.text import printable
from mil.data.cohort import Cohort
from mil.inference.attention import Explanation, explain_patients
from mil.inference.bundle import ModelBundle
from mil.inference.predict import PatientPrediction

__all__ = ["N_AT_ONCE", "ViewerState"]

N_AT_ONCE = min(max(2, CPU_COUNT), 6)
"""Number of images that a page requests at a time; decoding occupies a core for each."""

_CACHED_PATIENTS = 8
_CACHED_SLIDES = 32
_CACHED_IMAGES = 1024  # about 20 MB
_STATUS = {
    "ok": "",
    "slides_missing": "some slides have no bag that can be used",
    "no_tissue": "no tissue, so the prior",
    "no_bag": "no bag, so the prior",
    "out_of_range": "embeddings far outside those of the training, so the prior",
    "bag_refused": "no bag that can be used, so the prior",
}


class ViewerState:
    """A run, its patients, and images of their slides.

    Patients and slides are addressed by their index in the cohort, never by name or path; unknown
    ones raise ``KeyError``. Safe for threads. ``predictions`` are in the order of the cohort,
    ``bags`` and ``paths`` by slide id; ``paths`` is None without a folder of slides. ``prior``
    holds the class shares of the probabilities, shape (classes,).
    """

    def __init__(
        self,
        run: ModelBundle,
        cohort: Cohort,
        predictions: list[PatientPrediction],
        *,
        bags: Mapping[str, BagRef],
        prior: npt.NDArray[np.float64],
        paths: Mapping[str, Path] | None,
    ) -> None:
        self._run, self._cohort, self._bags, self._prior = run, cohort, bags, prior
        self._predictions, self._paths = predictions, paths
        self._slides = [
            (number, slide_id)
            for number, patient in enumerate(cohort.patients)
            for slide_id in patient.slide_ids
        ]
        self._slide_cache = SlideCache()
        self._explained = lru_cache(_CACHED_PATIENTS)(self._explain)
        self._viewed = lru_cache(_CACHED_SLIDES)(self._view)
        self._images = lru_cache(_CACHED_IMAGES)(self._draw)

    def close(self) -> None:
        """Close all slides."""
        self._slide_cache.close()

    def patients(self) -> dict[str, object]:
        """Return the run, and the patients with probabilities, shape (classes,).

        They are out-of-fold if the run was trained on the patient.
        """
        return {
            "run": printable(self._run.path.resolve().name),
            "head": self._run.head_name,
            "n_heads": len(self._run.heads),
            "classes": [printable(name) for name in self._run.classes],
            "prior": self._prior.tolist(),
            "with_slides": self._paths is not None,
            "n_at_once": N_AT_ONCE,
            "patients": [_row(prediction) for prediction in self._predictions],
        }

    def patient(self, number: int) -> dict[str, object]:
        """Return one patient with the tiles, level-0 px, and scores of all its slides.

        Raises ``KeyError`` if there is no such patient, and ``BagError`` if one of its bags can no
        longer be read.
        """
        if not 0 <= number < len(self._predictions):
            raise KeyError(number)
        prediction = self._predictions[number]
        return {
            **_row(prediction),
            "seen_as": printable(prediction.matched_training_patient),
            "n_tiles": sum(prediction.n_tiles.values()),
            "slides": [
                self._slide_as_dict(index)
                for index, (owner, _) in enumerate(self._slides)
                if owner == number
            ],
        }

    def slide_region(self, slide: int, level: int, column: int, row: int) -> bytes:
        """Return a region of a slide's pyramid, 256 px wide or less, as JPEG."""
        return self._images("slide", slide, level, column, row)

    def colour_region(self, slide: int, level: int, column: int, row: int) -> bytes:
        """Return the colours over the same region of the pyramid, px for px, as PNG."""
        return self._images("colours", slide, level, column, row)

    def tile(self, slide: int, index: int) -> bytes:
        """Return one tile of ``tile_px`` px as it was embedded, as PNG."""
        return draw_tile(self._viewed(slide), index, self._slide_cache)

    def _draw(self, what: str, slide: int, level: int, column: int, row: int) -> bytes:
        viewed = self._viewed(slide)
        region = None if viewed.zoom is None else viewed.zoom.region(level, column, row)
        if region is None:
            raise KeyError(slide, level, column, row)
        if what == "slide":
            return render_region(viewed, region, self._slide_cache)
        return draw_colours(viewed, region)

    def _view(self, slide: int) -> ViewedSlide:
        if not 0 <= slide < len(self._slides):
            raise KeyError(slide)
        number, slide_id = self._slides[slide]
        slides = {each.meta.slide_id: each for each in self._explained(number).slides}
        return view_slide(
            slide_id, slides.get(slide_id), (self._paths or {}).get(slide_id), self._slide_cache,
            has_bag=slide_id in self._predictions[number].n_tiles,
            expects_file=self._paths is not None,
        )  # fmt: skip

    def _explain(self, number: int) -> Explanation:
        if self._predictions[number].status == "bag_refused":
            return Explanation(prediction=self._predictions[number], slides=())
        cohort = replace(self._cohort, patients=(self._cohort.patients[number],))
        return next(explain_patients(self._run, cohort, self._bags, prior=self._prior))

    def _slide_as_dict(self, index: int) -> dict[str, object]:
        viewed = self._viewed(index)
        content: dict[str, object] = {
            "slide": index,
            "slide_id": printable(viewed.slide_id),
            "notes": viewed.notes,
            "has_picture": viewed.path is not None,
            "size_px0": viewed.zoom and (viewed.zoom.width_px0, viewed.zoom.height_px0),
            "tiles": None,
        }
        if viewed.attention is not None:
            content["share"] = viewed.attention.share
        if viewed.attention is not None and viewed.layout is not None:
            content["tiles"] = {
                "span_px0": viewed.layout.tile_size_px0,
                "mpp_x": viewed.layout.mpp_xy[0],
                "mpp_is_assumed": viewed.layout.mpp_is_assumed,
                "coords_px0": viewed.layout.coords_px0.tolist(),
                "attention": viewed.attention.attention.tolist(),
                "percentile": viewed.attention.percentile.tolist(),
            }
        return content


def _row(prediction: PatientPrediction) -> dict[str, object]:
    oof = prediction.out_of_fold
    shown = prediction.probabilities if oof is None else oof
    return {
        "patient_id": printable(prediction.patient_id),
        "probabilities": shown.tolist(),
        "out_of_fold": oof is not None,
        "seen": bool(prediction.matched_training_patient),
        "n_slides": len(prediction.slide_ids),
        "status": _STATUS[prediction.status],
    }
