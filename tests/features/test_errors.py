from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import MilError, SlideError, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a b"),
        ("a\r\n\tb", "a b"),
        ("a  \n    b\n", "a b"),
        ("a\x1b\x85b", "a b"),
        ("a\u2028\u2029b", "a b"),
        ("a\x00\x07b", "a b"),
        ("\x1b[1;31ma\x1b[0m b", "a b"),
        ("a\x9b2K b", "a b"),
        ("\x1b]0;title\x07a \x1b]8;;http://x\x1b\\b\x1b]8;;\x1b\\", "a b"),
        ("a\u00a0b", "a b"),
        ("two  blanks", "two  blanks"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("a\udcffb", "a\\udcffb"),
        ("Schädel 頭 نسيج", "Schädel 頭 نسيج"),
    ],
)
def test_a_message_is_one_printable_line_whatever_a_library_says(text: str, shown: str) -> None:
    error = MilError(text, actual=text, expected=text, hint=text)
    assert str(error) == f"{shown}: {shown}; expected {shown}. {shown}"
    assert one_line(text) == shown


@pytest.mark.parametrize("part", ["where", "actual", "expected"])
def test_kilobytes_of_a_library_do_not_displace_the_advice(part: str) -> None:
    parts = {"where": "a.tif", "actual": "no tiles", "expected": "some"}
    parts[part] = "begins " + "x\n" * 100_000 + "ends"
    error = MilError(parts.pop("where"), **parts, hint="Copy it again.")
    text = str(error)
    assert len(text) < 1000
    assert text.isprintable()
    assert all(words in text for words in ("begins", "…", "ends"))
    assert text.endswith(". Copy it again.")


@given(st.text(), st.integers(min_value=8, max_value=50))
def test_any_text_becomes_one_printable_line_of_limited_length(text: str, most: int) -> None:
    line = one_line(text, max_chars=most)
    assert line.isprintable()
    assert len(line) <= most


def test_full_stops_are_not_doubled() -> None:
    error = MilError("a.tif", actual="It is damaged.", hint="Copy it again.")
    assert str(error) == "a.tif: It is damaged. Copy it again."


def test_an_error_survives_the_way_back_from_another_process() -> None:
    error = SlideError("a.tif", actual="2 images", expected="1", hint="Name one.")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), str(again)) == (SlideError, "a.tif: 2 images; expected 1. Name one.")
