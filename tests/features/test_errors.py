from __future__ import annotations

import pickle

import pytest

from features.errors import MilError, SlideError


@pytest.mark.parametrize("text", ["a\nb", "a\r\n\tb", "a\x1b\x85b", "a\u2028\u2029b"])
def test_a_message_is_one_line_whatever_a_library_says(text: str) -> None:
    error = MilError(text, actual=text, expected=text, hint=text)
    assert str(error) == "a b: a b; expected a b. a b"


def test_an_error_survives_the_way_back_from_another_process() -> None:
    error = SlideError("a.tif", actual="2 images", expected="1", hint="Name one.")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), str(again)) == (SlideError, "a.tif: 2 images; expected 1. Name one.")
