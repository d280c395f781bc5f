"""Content of the viewer: patients, slides and their images, addressed by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from cli.viewer.overlays import OVERLAYS, Overlay, TileScores
from cli.viewer.slides import (
    SlideCache,
    ViewedSlide,
    draw_tile,
    encode_legend,
    encode_overlay,
    render_region,
    view_slide,
)
from features.bags.bag import BagRef
from features.bags.h5 import read_slide_bag
from features.utils.hardware import CPU_COUNT
from features.utils.text import printable
from mil.arrays import Floats
from mil.data.cohort import Cohort
from mil.inference.attention import Explanation, SlideAttention, explain_patients
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
    "out_of_range": "embeddings of another scale than those of the training, so the prior",
    "bag_refused": "no bag that can be used, so the prior",
}


class ViewerState:
    """A run, its patients, and images of their slides.

    Patients and slides are addressed by their index in the cohort, never by name or path; unknown
    ones raise ``KeyError``. Safe for threads. ``predictions`` are in the order of the cohort,
    ``bags`` and ``paths`` by slide id; ``paths`` is None without a folder of slides. ``prior``
    holds the class shares of the probabilities, shape (classes,); ``true_labels`` are by patient
    id, as far as they are known.
    """

    def __init__(
        self,
        run: ModelBundle,
        cohort: Cohort,
        predictions: list[PatientPrediction],
        *,
        bags: Mapping[str, BagRef],
        prior: Floats,
        paths: Mapping[str, Path] | None,
        true_labels: Mapping[str, str] | None = None,
    ) -> None:
        self._true_labels = true_labels or {}
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
            "with_labels": any(p.patient_id in self._true_labels for p in self._predictions),
            "overlays": [
                {
                    "name": each.name,
                    "low": each.low_words,
                    "high": each.high_words,
                    "is_outline": each.scale is None,
                }
                for each in self._overlays
            ],
            "patients": [self._row(prediction) for prediction in self._predictions],
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
            **self._row(prediction),
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
        return self._images(None, slide, level, column, row)

    def overlay_region(self, slide: int, overlay: int, level: int, column: int, row: int) -> bytes:
        """Return an overlay over the same region of the pyramid, px for px, as PNG."""
        return self._images(self._overlay(overlay), slide, level, column, row)

    def legend(self, overlay: int) -> bytes:
        """Return the colours of an overlay, as PNG of 256 by 1 px."""
        return encode_legend(self._overlay(overlay))

    def tile(self, slide: int, index: int) -> bytes:
        """Return one tile of ``tile_px`` px as it was embedded, as PNG."""
        return draw_tile(self._viewed(slide), index, self._slide_cache)

    @property
    def _overlays(self) -> tuple[Overlay, ...]:
        """Overlays that the run can show; only the last needs training tiles."""
        return OVERLAYS if self._run.typicality is not None else OVERLAYS[:-1]

    def _overlay(self, number: int) -> Overlay:
        if number >= len(self._overlays):
            raise KeyError(number)
        return self._overlays[number]

    def _draw(
        self, overlay: Overlay | None, slide: int, level: int, column: int, row: int
    ) -> bytes:
        viewed = self._viewed(slide)
        region = None if viewed.zoom is None else viewed.zoom.region(level, column, row)
        if region is None:
            raise KeyError(slide, level, column, row)
        if overlay is None:
            return render_region(viewed, region, self._slide_cache)
        return encode_overlay(viewed, overlay, region)

    def _view(self, slide: int) -> ViewedSlide:
        if not 0 <= slide < len(self._slides):
            raise KeyError(slide)
        number, slide_id = self._slides[slide]
        explanation = self._explained(number)
        slides = {each.meta.slide_id: each for each in explanation.slides}
        attention = slides.get(slide_id)
        return view_slide(
            slide_id, attention, (self._paths or {}).get(slide_id), self._slide_cache,
            scores=None if attention is None else self._score_tiles(attention, explanation),
            has_bag=slide_id in self._predictions[number].n_tiles,
            expects_file=self._paths is not None,
        )  # fmt: skip

    def _score_tiles(self, slide: SlideAttention, explanation: Explanation) -> TileScores:
        is_unlike = None
        if self._run.typicality is not None:
            slide_id = slide.meta.slide_id
            bag = self._run.apply_filter(read_slide_bag(slide_id, self._bags[slide_id]))
            distances = self._run.typicality.tile_distances(
                bag.features, training_patient=explanation.prediction.matched_training_patient
            )
            is_unlike = distances > self._run.typicality.tile_limit
        return TileScores(
            shares=slide.attention * explanation.n_tiles,
            percentile=slide.percentile,
            is_unlike=is_unlike,
        )

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
            unlike = viewed.scores.is_unlike if viewed.scores is not None else None
            content["tiles"] = {
                "span_px0": viewed.layout.tile_size_px0,
                "mpp_xy": viewed.layout.mpp_xy,
                "mpp_is_assumed": viewed.layout.mpp_is_assumed,
                "coords_px0": viewed.layout.coords_px0.tolist(),
                "attention": viewed.attention.attention.tolist(),
                "percentile": viewed.attention.percentile.tolist(),
                "is_unlike": None if unlike is None else unlike.tolist(),
            }
        return content

    def _row(self, prediction: PatientPrediction) -> dict[str, object]:
        oof = prediction.out_of_fold
        shown = prediction.probabilities if oof is None else oof
        typicality = prediction.typicality
        return {
            "patient_id": printable(prediction.patient_id),
            "label": printable(self._true_labels.get(prediction.patient_id, "")),
            "probabilities": shown.tolist(),
            "set": [printable(name) for name in prediction.prediction_set],
            "out_of_fold": oof is not None,
            "seen": bool(prediction.matched_training_patient),
            "n_slides": len(prediction.slide_ids),
            "status": _STATUS[prediction.status],
            "typicality": None if typicality is None else typicality.p_value,
            "unlike": prediction.unlike_training,
        }
