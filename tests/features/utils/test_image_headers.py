from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from features.utils import image_headers
from features.utils.image_headers import (
    jpeg_dimensions,
    jpeg_scan,
    jpeg_stores_rgb,
    png_or_webp_dimensions,
)

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
    result = jpeg_dimensions(start + noise)
    assert result is None or len(result) == 2


@pytest.mark.parametrize("noise", [b"\x00", b"\x12\x34\x56", b"\xff\xff", b"\xff\x00"])
def test_noise_that_a_decoder_skips_does_not_hide_a_frame(noise: bytes) -> None:
    frame = JPEG.index(b"\xff\xc0")
    noisy = JPEG[:frame] + noise + JPEG[frame:]
    assert imagecodecs.jpeg_decode(noisy).shape == GREY.shape
    assert jpeg_dimensions(noisy) == (30, 20)


COLOURS = np.zeros((20, 30, 3), np.uint8)
LOSSY_WEBP = imagecodecs.webp_encode(COLOURS, lossless=False)
LOSSLESS_WEBP = imagecodecs.webp_encode(COLOURS, lossless=True)


def webp_of(*images: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    images[0].save(content, "webp", save_all=True, append_images=images[1:], **options)
    return content.getvalue()


@pytest.mark.parametrize(
    "stream",
    [
        LOSSY_WEBP, LOSSLESS_WEBP, imagecodecs.png_encode(COLOURS),
        webp_of(Image.new("RGBA", (30, 20)), quality=50),
        webp_of(Image.new("RGB", (30, 20), "red"), Image.new("RGB", (30, 20), "blue")),
    ],
    ids=["lossy", "lossless", "PNG", "alpha", "animated"],
)  # fmt: skip
def test_the_size_of_png_and_webp_is_that_of_the_decoder(stream: bytes) -> None:
    assert png_or_webp_dimensions(stream) == (30, 20)


@pytest.mark.parametrize("stream", [LOSSY_WEBP[12:], LOSSLESS_WEBP[20:], JPEG, b""])
def test_bare_chunks_and_other_formats_have_no_size(stream: bytes) -> None:
    assert png_or_webp_dimensions(stream) is None


@given(
    st.binary(max_size=80),
    st.sampled_from([b"RIFF1234WEBPVP8X", b"RIFF1234WEBPVP8 ", b"\x89PNG\r\n\x1a\n", b""]),
)
def test_no_webp_or_png_of_noise_upsets_the_search_for_its_size(noise: bytes, start: bytes) -> None:
    size = png_or_webp_dimensions(start + noise)
    assert size is None or len(size) == 2


def test_a_stream_that_is_cut_off_upsets_no_search_for_its_colours() -> None:
    stream = imagecodecs.jpeg_encode(COLOURS, colorspace="rgb", outcolorspace="ycbcr")
    assert jpeg_stores_rgb(stream) is False
    for n_bytes in range(len(stream)):
        assert jpeg_stores_rgb(stream[:n_bytes]) in (None, False)
    frame = stream.index(b"\xff\xc0")
    assert jpeg_stores_rgb(stream[:2] + stream[frame : frame + 9]) is None


def test_a_box_of_its_own_hides_no_codestream() -> None:
    start = BOXED.index(b"jp2c") - 4
    decoy = b"\xff\x4f\xff\x51" + bytes(60)
    for n_padding in (0, 2 << 20):
        box = struct.pack(">I4s", 8 + len(decoy) + n_padding, b"free") + decoy + bytes(n_padding)
        hidden = BOXED[:start] + box + BOXED[start:]
        assert imagecodecs.jpeg2k_decode(hidden).shape == GREY.shape
        assert jpeg_dimensions(hidden) == (30, 20)


COMMENT = b"\xff\xfe\x00\x08\xff\xda\x00\x0c\x01\x02"  # the bytes that begin a scan, in a comment


def test_a_scan_begins_behind_its_header_whatever_a_comment_holds() -> None:
    start, end, is_flat = jpeg_scan(JPEG)
    assert JPEG[start - 10 :].startswith(b"\xff\xda")
    assert end == len(JPEG) - 2
    shift = len(COMMENT)
    assert jpeg_scan(JPEG[:2] + COMMENT + JPEG[2:]) == (start + shift, end + shift, is_flat)


@given(st.binary(max_size=30), st.integers(0, len(JPEG)))
def test_a_header_that_is_remembered_is_read_as_by_the_first_time(noise: bytes, at: int) -> None:
    stream = JPEG[:at] + noise + JPEG[at:]
    header = image_headers._read_header(stream)
    start, _, is_flat = jpeg_scan(stream)
    assert start == (len(stream) if header.end is None else header.end)
    assert is_flat == (
        not header.is_huffman or not any(symbol & 15 for symbol in header.first_symbols.values())
    )


def test_one_header_of_many_tiles_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    segments = image_headers._segments

    def watch(stream: bytes) -> Iterator[tuple[int, int]]:
        read.append(stream)
        return segments(stream)

    monkeypatch.setattr(image_headers, "_segments", watch)
    tiles = [imagecodecs.jpeg_encode(np.full((16, 24), grey, np.uint8)) for grey in range(50)]
    assert len({jpeg_scan(tile)[0] for tile in tiles}) == 1
    assert len(read) <= 2  # the header, and the tables that these streams do not share


def test_tables_of_a_stream_take_the_place_of_shared_ones() -> None:
    glass = np.full((64, 64), 243, np.uint8)
    tile = imagecodecs.jpeg_encode(glass, optimize=True)
    shared = JPEG[:2] + b"".join(
        JPEG[at : at + 2 + int.from_bytes(JPEG[at + 2 : at + 4], "big")]
        for at in range(len(JPEG)) if JPEG.startswith(b"\xff\xc4", at)
    ) + b"\xff\xd9"  # fmt: skip
    assert not jpeg_scan(JPEG)[2]  # zeros are blocks that change, in the standard tables
    assert jpeg_scan(tile)[2]
    assert jpeg_scan(tile, shared)[2]
