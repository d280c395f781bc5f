from __future__ import annotations

import numpy as np
import pytest

from mil.calibration import (
    IdentityCalibrator,
    PlattScaling,
    StackedPlattScaling,
    TemperatureScaling,
)
from mil.calibration.recalibration import recalibrated


@pytest.mark.parametrize(
    "first",
    [
        IdentityCalibrator(),
        TemperatureScaling(slope=0.4),
        PlattScaling(slope=0.7, bias=[0.2, -0.1, -0.1]),
        StackedPlattScaling(slopes=[0.5, 0.0, 2.0], bias=[0.1, 0.1, -0.2], weights=[0.3, 0.0, 0.7]),
    ],
)
def test_the_result_does_what_both_do_one_after_the_other(first) -> None:
    rng = np.random.default_rng(0)
    shape = (9, 3, 3) if isinstance(first, StackedPlattScaling) else (9, 3)
    logits = rng.normal(size=shape)
    local = PlattScaling(slope=1.3, bias=[0.3, -0.4, 0.1])
    expected = local.predict_proba(np.log(first.predict_proba(logits)))
    both = recalibrated(first, local)
    assert np.allclose(both.predict_proba(logits), expected)
    assert np.allclose(type(both).from_dict(both.as_dict()).predict_proba(logits), expected)
