from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import MilError
from features.series.windowing import DEFAULT_WINDOWS, WINDOWS, Window, parse_windows


def test_the_brain_window_spreads_0_to_80_hu() -> None:
    values = np.array([-1000, 0, 40, 80, 3000], np.float32)
    assert WINDOWS["brain"](values).tolist() == [0, 0, 128, 255, 255]


def test_the_subdural_window_spreads_minus_20_to_180_hu() -> None:
    assert WINDOWS["subdural"](np.array([-20, 80, 180], np.float32)).tolist() == [0, 128, 255]


@given(st.lists(st.floats(-3000, 3000, width=32), min_size=2), st.sampled_from(list(WINDOWS)))
def test_a_window_never_reverses_what_is_denser(values: list[float], name: str) -> None:
    grey = WINDOWS[name](np.sort(np.array(values, np.float32)))
    assert (np.diff(grey.astype(int)) >= 0).all()


def test_windows_are_given_by_name_or_by_number() -> None:
    assert parse_windows(DEFAULT_WINDOWS)[0] == WINDOWS["brain"]
    assert parse_windows("bone, soft,35.5/90")[2] == Window(centre_hu=35.5, width_hu=90)


@pytest.mark.parametrize("text", ["brain", "a,b,c", "brain,soft,40/0", "brain,soft,nan/1", "1/2/3"])
def test_other_windows_are_refused(text: str) -> None:
    with pytest.raises(MilError, match="three of brain, subdural"):
        parse_windows(text)
