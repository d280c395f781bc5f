"""Pickles that make much out of few bytes are found out without being made."""

from __future__ import annotations

import io
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.utils.pickles import require_plain_pickle

FETCHED_AGAIN = "the same things again and again"
GROWS = "grows after it was fetched"

HOSTILE = {
    "pairs of pairs as a key": (b"})q\x00" + b"h\x00\x86q\x00" * 40 + b"Ns.", FETCHED_AGAIN),
    "lists of lists": (b"]q\x00" + b"]q\x01(h\x00h\x00eq\x00" * 40 + b".", FETCHED_AGAIN),
    "a long key in many dictionaries": (
        b"](" + b"N" * 20_000 + b"tq\x00a" + b"}h\x00Nsa" * 20_000 + b".", FETCHED_AGAIN
    ),
    "a list that holds itself": (b"]q\x00h\x00a.", GROWS),
    "a list that is filled once a pair holds it": (b"]q\x00h\x00\x86h\x00Na.", GROWS),
    "a dictionary that is filled so": (b"}q\x00h\x00\x86h\x00(NNu.", GROWS),
}  # fmt: skip


@pytest.mark.parametrize(("content", "why"), HOSTILE.values(), ids=HOSTILE)
def test_much_made_out_of_few_bytes_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        require_plain_pickle(io.BytesIO(b"\x80\x02" + content))


@pytest.mark.parametrize(
    "content", [b"", b"}", b"a.", b"h\x00.", b"t.", b"\xff.", b"X\xff\xff\xff"]
)
def test_a_damaged_pickle_is_an_error(content: bytes) -> None:
    with pytest.raises((ValueError, LookupError)):
        require_plain_pickle(io.BytesIO(content))


THINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(THINGS, st.integers(0, 30), st.sampled_from([1, 2, 4]))
def test_plain_things_pass_however_often_they_stand_there_and_the_file_stands_behind_them(
    thing: object, n_times: int, protocol: int
) -> None:
    content = pickle.dumps({"once": thing, "often": [thing] * n_times}, protocol=protocol)
    file = io.BytesIO(content + b"tensors")
    require_plain_pickle(file)
    assert file.read() == b"tensors"
