"""What the viewer shows: patients, their slides and pictures of them, addressed by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cli.viewer.images import draw_colours, draw_tile, render_region
from cli.viewer.slide_cache import SlideCache
from cli.viewer.slides import ViewedSlide, view_slide
from features.bags.bag import BagRef
from features.utils.hardware import CPU_COUNT
from features.utils.text import printable
from mil.data.cohort import Cohort
from mil.inference.attention import Explanation, explain_patients
from mil.inference.bundle import ModelBundle
from mil.inference.predict import PatientPrediction

__all__ = ["N_AT_ONCE", "ViewerState"]

N_AT_ONCE = min(max(2, CPU_COUNT), 6)
"""Pictures that a page asks for at a time: decoding keeps a core busy each."""

_KEPT_PATIENTS = 8
_KEPT_SLIDES = 32
_KEPT_PICTURES = 1024  # about 20 MB
_STATUS = {
    "ok": "",
    "slides_missing": "some slides have no bag",
    "no_tissue": "no tissue, so the prior",
    "no_bag": "no bag, so the prior",
}


class ViewerState:
    """A run, its patients, and pictures of their slides.

    Patients and slides are addressed by their place in the cohort, never by name or path. What is
    not there raises ``KeyError``. Safe for threads.

    Parameters
    ----------
    run
        The run.
    cohort
        Patients to show.
    predictions
        Of each patient of the cohort, in its order.
    bags
        Bags by slide id.
    prior
        Shape (classes,): the class shares that the probabilities are for.
    paths
        Slide files by slide id; None where no folder of slides was named.
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
        self._shelf = SlideCache()
        self._explained = lru_cache(_KEPT_PATIENTS)(self._explain)
        self._viewed = lru_cache(_KEPT_SLIDES)(self._view)
        self._pictures = lru_cache(_KEPT_PICTURES)(self._draw)

    def close(self) -> None:
        """Close all slides."""
        self._shelf.close()

    def patients(self) -> dict[str, object]:
        """The run, and each patient with its probabilities: of a seen one the out-of-fold ones."""
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
        """One patient with the tiles and scores of all its slides.

        Raises
        ------
        KeyError
            If there is no such patient.
        BagError
            If one of its bags cannot be read any more.
        """
        if not 0 <= number < len(self._predictions):
            raise KeyError(number)
        prediction = self._predictions[number]
        return {
            **_row(prediction),
            "seen_as": printable(prediction.matched_training_patient),
            "n_tiles": sum(prediction.n_tiles.values()),
            "slides": [
                self._told(place)
                for place, (owner, _) in enumerate(self._slides)
                if owner == number
            ],
        }

    def slide_window(self, slide: int, level: int, column: int, row: int) -> bytes:
        """A tile of a slide's pyramid, as JPEG."""
        return self._pictures("slide", slide, level, column, row)

    def colour_window(self, slide: int, level: int, column: int, row: int) -> bytes:
        """The same tile of the colours over it, as PNG."""
        return self._pictures("colours", slide, level, column, row)

    def tile(self, slide: int, index: int) -> bytes:
        """One tile as the backbone saw it, as PNG."""
        return draw_tile(self._viewed(slide), index, self._shelf)

    def _draw(self, what: str, slide: int, level: int, column: int, row: int) -> bytes:
        viewed = self._viewed(slide)
        window = None if viewed.zoom is None else viewed.zoom.region(level, column, row)
        if window is None:
            raise KeyError(slide, level, column, row)
        if what == "slide":
            return render_region(viewed, window, self._shelf)
        return draw_colours(viewed, window)

    def _view(self, slide: int) -> ViewedSlide:
        if not 0 <= slide < len(self._slides):
            raise KeyError(slide)
        number, slide_id = self._slides[slide]
        slides = {each.meta.slide_id: each for each in self._explained(number).slides}
        return view_slide(
            slide_id, slides.get(slide_id), (self._paths or {}).get(slide_id), self._shelf,
            has_bag=slide_id in self._predictions[number].n_tiles,
            expects_file=self._paths is not None,
        )  # fmt: skip

    def _explain(self, number: int) -> Explanation:
        alone = replace(self._cohort, patients=(self._cohort.patients[number],))
        return next(explain_patients(self._run, alone, self._bags, prior=self._prior))

    def _told(self, place: int) -> dict[str, object]:
        viewed = self._viewed(place)
        told: dict[str, object] = {
            "slide": place,
            "slide_id": printable(viewed.slide_id),
            "notes": viewed.notes,
            "has_picture": viewed.path is not None,
            "size_px0": viewed.zoom and (viewed.zoom.width_px0, viewed.zoom.height_px0),
            "tiles": None,
        }
        if viewed.shown is not None:
            told["share"] = viewed.shown.share
        if viewed.shown is not None and viewed.places is not None:
            told["tiles"] = {
                "span_px0": viewed.places.tile_size_px0,
                "mpp_x": viewed.places.mpp_xy[0],
                "mpp_is_assumed": viewed.places.mpp_is_assumed,
                "coords_px0": viewed.places.coords_px0.tolist(),
                "attention": viewed.shown.attention.tolist(),
                "percentile": viewed.shown.percentile.tolist(),
            }
        return told


def _row(prediction: PatientPrediction) -> dict[str, object]:
    unseen = prediction.out_of_fold
    shown = prediction.probabilities if unseen is None else unseen
    return {
        "patient_id": printable(prediction.patient_id),
        "probabilities": shown.tolist(),
        "out_of_fold": unseen is not None,
        "seen": bool(prediction.matched_training_patient),
        "n_slides": len(prediction.slide_ids),
        "status": _STATUS[prediction.status],
    }
