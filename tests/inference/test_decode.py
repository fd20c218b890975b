"""Image files decoded to gray pixels of one size."""

import struct

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION

from pneumo.inference.decode import decode
from pneumo.inference.untrusted import UnreadableImageError
from tests.support.images import RAMP, file_of


def test_gray_pixels_stay_as_they_are():
    decoded = decode(file_of(Image.fromarray(RAMP)), 64)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, RAMP)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_of_32_bits_without_a_known_white_are_rejected(mode):
    with pytest.raises(UnreadableImageError, match="32 bits per pixel, so white is unknown"):
        decode(file_of(Image.fromarray(RAMP).convert(mode), "TIFF"), 64)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_color_becomes_gray(mode):
    assert np.array_equal(decode(file_of(Image.fromarray(RAMP).convert(mode)), 64), RAMP)


def test_sixteen_bits_keep_their_range():
    deep = Image.fromarray(RAMP.astype(np.uint16) * 256)
    assert np.array_equal(decode(file_of(deep), 64), RAMP)


def test_fourteen_of_sixteen_bits_would_be_too_dark():
    with pytest.raises(UnreadableImageError, match="only 14 of 16 bits per pixel are used"):
        decode(file_of(Image.fromarray(RAMP.astype(np.uint16) * 64)), 64)


def test_a_tiff_of_sixteen_bits_of_which_zero_is_white_is_rejected():
    content = file_of(Image.fromarray(RAMP.astype(np.uint16) * 256), "TIFF")
    assert np.array_equal(decode(content, 64), RAMP)
    interpretation = struct.pack("<HHII", PHOTOMETRIC_INTERPRETATION, 3, 1, 1)  # 1 is black
    assert content.count(interpretation) == 1
    inverted = content.replace(interpretation, interpretation[:8] + bytes(4))
    with pytest.raises(UnreadableImageError, match="16 bits in which 0 is white; save it with 0"):
        decode(inverted, 64)


def test_a_rotated_photograph_is_rotated_back():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = Image.fromarray(RAMP[::-1, ::-1].copy())
    decoded = decode(file_of(turned, "JPEG", quality=100, exif=exif), 64)
    assert np.abs(decoded.astype(int) - RAMP).max() <= 3


def test_a_large_jpeg_shrinks_to_what_a_whole_decoding_gives():
    large = Image.fromarray(RAMP).resize((1300, 1000), Image.Resampling.BICUBIC)
    from_jpeg = decode(file_of(large, "JPEG", quality=95), 64)
    from_png = decode(file_of(large), 64)
    assert np.abs(from_jpeg.astype(int) - from_png).max() <= 4


def test_squashed_or_padded_to_the_square():
    wide = file_of(Image.fromarray(np.full((20, 40), 200, np.uint8)))
    assert np.array_equal(decode(wide, 40), np.full((40, 40), 200))
    padded = decode(wide, 40, "pad")
    assert np.array_equal(padded[10:30], np.full((20, 40), 200))
    assert not padded[:10].any()
    assert not padded[30:].any()
    square = file_of(Image.fromarray(RAMP))
    assert np.array_equal(decode(square, 32, "pad"), decode(square, 32, "squash"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"This is text.", "not a supported image format"),
        (file_of(Image.fromarray(RAMP), "JPEG")[:400], "truncated"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_an_unreadable_file_says_why(data, why):
    with pytest.raises(UnreadableImageError, match=why):
        decode(data, 64)
