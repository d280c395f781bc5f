from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mil.data.cohort import Cohort, Patient
from mil.evaluation.metrics import as_two_columns
from mil.multilabel import train
from mil.multilabel.metrics import label_log_losses, label_weights, shift_labels
from mil.multilabel.table import LabelTable

NAMES = ("any", "left")


def test_the_loss_of_all_labels_is_the_mean_over_repeats_and_patients_keep_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    ids = [f"p{number}" for number in range(12)]
    truth = np.stack([np.arange(12) % 3 > 0, np.arange(12) % 3 == 1], axis=1).astype(np.int64)
    balanced = rng.uniform(0.1, 0.9, (2, 12, 2))  # (repeats, patients, labels)
    patients = [Patient(patient_id=p, slide_ids=(p,), label=None, center_id=None) for p in ids]
    cohort = Cohort(path=tmp_path / "labels.csv", patients=tuple(patients), classes=())

    def evidence_of(folder: Path, *, classes: tuple[str, ...]) -> SimpleNamespace:
        of_label = balanced[:, ::-1, NAMES.index(classes[1])]  # held out in another order
        assert folder.name == classes[1]
        return SimpleNamespace(
            patient_ids=ids[::-1], proba={"calibrated": as_two_columns(of_label)}
        )

    monkeypatch.setattr(train, "read_report_data", evidence_of)
    table = LabelTable(patients=cohort, names=NAMES, truth=truth)
    summary = train._summarize(table, tmp_path, tmp_path / "run", {}, n_resamples=50, seed=0)
    proba = shift_labels(balanced, old=np.full(2, 0.5), new=truth.mean(axis=0))
    losses = [label_weights(NAMES) @ label_log_losses(each, truth) for each in proba]
    assert summary.losses["calibrated"].value == pytest.approx(np.mean(losses))
    assert summary.losses["calibrated"].value != pytest.approx(losses[0])
    written = pd.read_csv(tmp_path / "out_of_fold.csv")
    assert written["patient_id"].tolist() == ids
    np.testing.assert_allclose(written[list(NAMES)], proba[0])
