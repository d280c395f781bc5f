from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mil.data.bags import PatientBags, SlideRecord
from mil.reporting.run_report.caveats import run_caveats
from mil.training.config import TrainConfig
from mil.training.cross_validation import OutOfFoldPredictions
from tests.mil.training.test_ensemble import noise_cohort


def with_slides(bags: PatientBags, **changes: str) -> PatientBags:
    """A slide a patient, the second patient's changed."""
    notes = [
        SlideRecord(
            slide_id=f"{name}_0", patient_id=name, n_tiles=len(tiles), content_id=f"file of {name}",
            features_sha256=f"tiles of {name}",
        )
        for name, tiles in bags.features.items()
    ]  # fmt: skip
    notes[1] = replace(notes[1], **changes)  # type: ignore[arg-type]
    return replace(bags, slides=tuple(notes))


@pytest.mark.parametrize(
    "copied", [{"content_id": "file of p000"}, {"features_sha256": "tiles of p000"}]
)
def test_a_slide_under_two_patients_is_a_caveat(
    copied: dict[str, str],
) -> None:
    bags, cohort = noise_cohort(6, 0)
    oof = OutOfFoldPredictions(
        patient_ids=cohort.patient_ids, labels=cohort.labels, logits=np.zeros((1, 6, 2)),
        fold=np.zeros((1, 6), np.int64), history={}, heads={},
    )  # fmt: skip

    def caveats(**changes: str) -> str:
        return "\n".join(run_caveats(cohort, with_slides(bags, **changes), oof, TrainConfig()))

    assert "p000_0 of p000 and p001_0 of p001; no fold was trained" in caveats(**copied)
    assert "copies of each other" not in caveats()
    assert "copies of each other" not in caveats(content_id="")
    assert "copies of each other" not in caveats(**copied, patient_id="p000")
