"""Whether the attention lies where somebody saw something: labels of single images score it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.tables import find_column, read_table
from mil.cohort import without_suffix
from mil.errors import CohortError
from mil.explanation.attention import Explanation
from mil.labels.metrics import paired
from mil.metrics import auroc

__all__ = ["Agreement", "PatientAgreement", "measure_agreement", "read_image_labels", "summarise"]

ImageLabels = Mapping[tuple[str, str], int]
"""1 for images that show something, 0 for the others, by bag and source."""


@dataclass(frozen=True, kw_only=True)
class PatientAgreement:
    """Attention beside labels of a patient whose images have both answers."""

    auroc: float
    """Chance that an image that shows something has more attention than one that does not."""
    hit: bool
    """Whether the most attended image shows something."""
    share: float
    """Share of the images that do: how often a random image would."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Means over patients."""

    n_patients: int
    """Patients whose images have both answers."""
    auroc: float
    """Mean area; 0.5 is chance."""
    hits: float
    """Share of patients whose most attended image shows something."""
    chance: float
    """What that share would be for images drawn at random."""


def read_image_labels(path: Path, names: Sequence[str]) -> dict[tuple[str, str], int]:
    """Labels of single images: ``slide_id`` (or ``bag_id``), ``source`` (or ``path``), 0 or 1.

    Parameters
    ----------
    path
        CSV table; sources are those that bags name, see ``docs/reference/bag.md``.
    names
        Columns that may hold the label, preferred first.

    Raises
    ------
    TableError
        If a column is missing.
    CohortError
        If a label is neither 0 nor 1.
    """
    table = read_table(path)
    bag = find_column(table, ["slide_id", "bag_id", "scan_id"], where=path, what="bag ids")
    source = find_column(table, ["source", "path", "file"], where=path, what="files of images")
    label = find_column(table, names, where=path, what="0 or 1 for each image")
    odd = ~table[label].isin(["0", "1"])
    if odd.any():
        row = int(table.index[odd][0])
        raise CohortError(
            f"{path}, row {row + 2}", found=f"{label} is {table[label][row]!r}", expected="0 or 1"
        )
    keys = zip(table[bag].map(without_suffix), table[source], strict=True)
    return dict(zip(keys, table[label].astype(int), strict=True))


def measure_agreement(explanation: Explanation, labels: ImageLabels) -> PatientAgreement | None:
    """Compare the attention of one patient with labels of its images.

    Images without a label are left out; None where those left do not have both answers.
    """
    attention, truth = [], []
    for slide in explanation.slides:
        for place, source in enumerate(slide.source or ()):
            if (found := labels.get((slide.meta.slide_id, source))) is not None:
                attention.append(float(slide.attention[place]))
                truth.append(found)
    if len(set(truth)) < 2:
        return None
    values, answers = np.array(attention), np.array(truth, np.int64)
    return PatientAgreement(
        auroc=auroc(paired(values), answers),
        hit=bool(answers[values.argmax()]),
        share=float(answers.mean()),
    )


def summarise(found: Sequence[PatientAgreement]) -> Agreement:
    """Means over patients; NaN where there is none."""
    rows = [(each.auroc, float(each.hit), each.share) for each in found] or [(math.nan,) * 3]
    area, hits, chance = np.array(rows, np.float64).mean(axis=0).tolist()
    return Agreement(n_patients=len(found), auroc=area, hits=hits, chance=chance)
