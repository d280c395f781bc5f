from __future__ import annotations

import struct

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.codestreams import claimed_size

GREY = np.zeros((20, 30), np.uint8)
JPEG = imagecodecs.jpeg_encode(GREY)
BOXED = imagecodecs.jpeg2k_encode(GREY, codecformat="jp2")


@pytest.mark.parametrize(
    ("stream", "size"),
    [
        (JPEG, (30, 20)),
        (imagecodecs.jpegls_encode(np.zeros((20, 30), np.uint16)), (30, 20)),
        (imagecodecs.ljpeg_encode(np.zeros((20, 30), np.uint16)), (30, 20)),
        (imagecodecs.jpeg2k_encode(GREY, codecformat="j2k"), (30, 20)),
        (BOXED, (30, 20)),
        (b"anything else", None),
        (b"", None),
    ],
)
def test_the_size_that_a_stream_claims_is_found(stream: bytes, size: object) -> None:
    assert claimed_size(stream) == size


@given(st.binary(max_size=80), st.sampled_from([b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b""]))
def test_no_stream_of_noise_upsets_the_search_for_its_size(noise: bytes, start: bytes) -> None:
    found = claimed_size(start + noise)
    assert found is None or len(found) == 2


@pytest.mark.parametrize("noise", [b"\x00", b"\x12\x34\x56", b"\xff\xff", b"\xff\x00"])
def test_noise_that_a_decoder_skips_does_not_hide_a_frame(noise: bytes) -> None:
    frame = JPEG.index(b"\xff\xc0")
    noisy = JPEG[:frame] + noise + JPEG[frame:]
    assert imagecodecs.jpeg_decode(noisy).shape == GREY.shape
    assert claimed_size(noisy) == (30, 20)


def test_a_box_of_its_own_hides_no_codestream() -> None:
    start = BOXED.index(b"jp2c") - 4
    decoy = b"\xff\x4f\xff\x51" + bytes(60)
    for n_padding in (0, 2 << 20):
        box = struct.pack(">I4s", 8 + len(decoy) + n_padding, b"free") + decoy + bytes(n_padding)
        hidden = BOXED[:start] + box + BOXED[start:]
        assert imagecodecs.jpeg2k_decode(hidden).shape == GREY.shape
        assert claimed_size(hidden) == (30, 20)
