from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from features.utils.image_headers import jpeg_dimensions, png_dimensions, webp_dimensions

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
    assert jpeg_dimensions(stream) == size


@given(st.binary(max_size=80), st.sampled_from([b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b""]))
def test_no_stream_of_noise_upsets_the_search_for_its_size(noise: bytes, start: bytes) -> None:
    found = jpeg_dimensions(start + noise)
    assert found is None or len(found) == 2


@pytest.mark.parametrize("noise", [b"\x00", b"\x12\x34\x56", b"\xff\xff", b"\xff\x00"])
def test_noise_that_a_decoder_skips_does_not_hide_a_frame(noise: bytes) -> None:
    frame = JPEG.index(b"\xff\xc0")
    noisy = JPEG[:frame] + noise + JPEG[frame:]
    assert imagecodecs.jpeg_decode(noisy).shape == GREY.shape
    assert jpeg_dimensions(noisy) == (30, 20)


COLOURS = np.zeros((20, 30, 3), np.uint8)
LOSSY_WEBP = imagecodecs.webp_encode(COLOURS, lossless=False)
LOSSLESS_WEBP = imagecodecs.webp_encode(COLOURS, lossless=True)


def webp_of(*pictures: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    pictures[0].save(content, "webp", save_all=True, append_images=pictures[1:], **options)
    return content.getvalue()


CLEAR = webp_of(Image.new("RGBA", (30, 20)), quality=50)
MOVING = webp_of(Image.new("RGB", (30, 20), "red"), Image.new("RGB", (30, 20), "blue"))


@pytest.mark.parametrize(
    "stream",
    [
        LOSSY_WEBP, LOSSY_WEBP[12:], LOSSY_WEBP[20:], LOSSLESS_WEBP, LOSSLESS_WEBP[12:],
        CLEAR, CLEAR[CLEAR.index(b"ALPH") :], MOVING,
    ],
    ids=["lossy", "chunk", "frame", "lossless", "lossless chunk", "alpha", "bare", "moving"],
)  # fmt: skip
def test_the_size_that_webp_claims_is_found_wherever_it_stands(stream: bytes) -> None:
    assert imagecodecs.webp_decode(stream).shape[:2] == (20, 30)
    assert webp_dimensions(stream) == (30, 20)


@given(st.integers(1, 400), st.integers(1, 400), st.booleans())
def test_sizes_of_webp_and_png_are_those_of_the_encoders(
    width: int, height: int, lossless: bool
) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    webp = imagecodecs.webp_encode(picture, lossless=lossless, method=0)
    assert webp_dimensions(webp) == (width, height)
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG", compress_level=0)
    assert png_dimensions(png.getvalue()) == (width, height)


def test_a_chunk_before_it_does_not_hide_what_a_png_claims() -> None:
    png = imagecodecs.png_encode(COLOURS)
    chunk = struct.pack(">I4s", 4, b"abCd") + b"IHDR"
    hidden = png[:8] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + png[8:]
    assert imagecodecs.png_decode(hidden).shape == COLOURS.shape
    assert png_dimensions(hidden) == (30, 20)


@given(
    st.binary(max_size=80),
    st.sampled_from([b"RIFF1234WEBPVP8X", b"RIFF1234WEBPVP8 ", b"ALPH", b"\x89PNG\r\n\x1a\n", b""]),
)
def test_no_webp_or_png_of_noise_upsets_the_search_for_its_size(noise: bytes, start: bytes) -> None:
    for found in (webp_dimensions(start + noise), png_dimensions(start + noise)):
        assert found is None or len(found) == 2


def test_a_box_of_its_own_hides_no_codestream() -> None:
    start = BOXED.index(b"jp2c") - 4
    decoy = b"\xff\x4f\xff\x51" + bytes(60)
    for n_padding in (0, 2 << 20):
        box = struct.pack(">I4s", 8 + len(decoy) + n_padding, b"free") + decoy + bytes(n_padding)
        hidden = BOXED[:start] + box + BOXED[start:]
        assert imagecodecs.jpeg2k_decode(hidden).shape == GREY.shape
        assert jpeg_dimensions(hidden) == (30, 20)
