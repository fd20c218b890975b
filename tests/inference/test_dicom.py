"""DICOM files, decoded to the gray pixels that the same image has as PNG."""

from contextlib import suppress
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pneumo.inference.decode import decode
from pneumo.inference.untrusted import UnreadableImageError, is_lateral
from tests.bad.dicoms import REJECTED
from tests.support.dicom import LOSSLESS, compressed, radiograph, to_bytes, with_jpeg
from tests.support.images import RAMP, file_of

PYDICOM_FILES = files("pydicom") / "data" / "test_files"

SIDE = len(RAMP)
STEPS = np.tile(np.arange(SIDE, dtype=np.uint8) * (255 // (SIDE - 1)), (SIDE, 1))


def difference(data: bytes, expected: np.ndarray) -> int:
    """Return the greatest difference in gray levels between a decoded file and pixels."""
    return int(np.abs(decode(data, SIDE).astype(int) - expected).max())


def scaled(bits: int) -> np.ndarray:
    """Return `RAMP` as values of so many bits."""
    return RAMP if bits == 8 else RAMP.astype(np.uint16) << (bits - 8)


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("inverted", [False, True])
def test_pixels_are_those_of_the_png(bits, syntax, inverted):
    pixels = scaled(bits)
    if inverted:
        pixels = (2**bits - 1 - pixels.astype(int)).astype(pixels.dtype)
    interpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset = radiograph(pixels, bits, PhotometricInterpretation=interpretation)
    assert difference(compressed(dataset, syntax), decode(file_of(Image.fromarray(RAMP)), SIDE)) < 2


def test_ordinary_jpeg_loses_as_little_as_without_dicom():
    jpeg = decode(file_of(Image.fromarray(RAMP), "JPEG", quality=90), SIDE)
    assert difference(with_jpeg(RAMP), jpeg) == 0
    inverted = with_jpeg(255 - RAMP, PhotometricInterpretation="MONOCHROME1")
    assert difference(inverted, RAMP) <= 4


def test_a_window_cuts_values_off_at_both_ends():
    windowed = radiograph(scaled(12), 12, WindowCenter=2048, WindowWidth=2048)
    expected = np.clip((RAMP.astype(float) * 16 - 1024) / 2047, 0, 1) * 255
    assert difference(to_bytes(windowed), np.round(expected)) <= 1
    several = radiograph(scaled(12), 12, WindowCenter=[2048, 9], WindowWidth=[2048, 9])
    assert difference(to_bytes(several), np.round(expected)) <= 1


@pytest.mark.parametrize(
    ("function", "share"),
    [
        ("LINEAR_EXACT", lambda value: np.clip(value / 2048 - 0.5, 0, 1)),
        ("SIGMOID", lambda value: 1 / (1 + np.exp(-4 * (value - 2048) / 2048))),
    ],
)
def test_other_functions_of_a_window(function, share):
    window = {"WindowCenter": 2048, "WindowWidth": 2048, "VOILUTFunction": function}
    expected = np.round(255 * share(RAMP.astype(float) * 16))
    assert difference(to_bytes(radiograph(scaled(12), 12, **window)), expected) <= 1


def test_values_are_rescaled_before_the_window():
    stored = radiograph(
        scaled(12), 12, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=8191
    )
    assert difference(to_bytes(stored), RAMP) <= 1


def test_signed_values():
    pixels = (scaled(12).astype(int) - 2048).astype(np.int16)
    assert difference(to_bytes(radiograph(pixels, 12)), RAMP) <= 1


def lookup(values: list[int], first: int = 0, bits: int = 16) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = values
    return Sequence([item])


def test_a_lookup_table_takes_precedence_over_a_window():
    inverting = lookup([65535 - 257 * value for value in range(256)])
    dataset = radiograph(RAMP, VOILUTSequence=inverting, WindowCenter=9, WindowWidth=3)
    dataset["VOILUTSequence"][0]["LUTData"].VR = "US"
    dataset["VOILUTSequence"][0]["LUTDescriptor"].VR = "US"
    assert difference(to_bytes(dataset), 255 - RAMP) <= 1


def test_a_lookup_table_of_8_bits_is_for_images_of_8_bits():
    table = lookup(list(range(256)), bits=8)
    for dataset in (radiograph(RAMP, VOILUTSequence=table), radiograph(scaled(12), 12)):
        dataset.VOILUTSequence = table
        dataset["VOILUTSequence"][0]["LUTData"].VR = "US"
        dataset["VOILUTSequence"][0]["LUTDescriptor"].VR = "US"
        if dataset.BitsStored == 8:
            assert difference(to_bytes(dataset), RAMP) <= 1
            continue
        with pytest.raises(UnreadableImageError, match="values exceed its VOI LUT of 8 bits"):
            decode(to_bytes(dataset), SIDE)


def test_a_modality_lookup_table_gives_the_values_of_the_window():
    doubling = lookup([2 * value for value in range(256)])
    dataset = radiograph(RAMP, ModalityLUTSequence=doubling, WindowCenter=255.5, WindowWidth=511)
    dataset["ModalityLUTSequence"][0]["LUTData"].VR = "US"
    dataset["ModalityLUTSequence"][0]["LUTDescriptor"].VR = "US"
    assert difference(to_bytes(dataset), RAMP) <= 1


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black(interpretation):
    padded = STEPS.astype(np.uint16) << 4
    padded[:, :10] = 4095
    dataset = radiograph(padded, 12, PhotometricInterpretation=interpretation)
    dataset.add_new("PixelPaddingValue", "US", 4095)
    decoded = decode(to_bytes(dataset), SIDE)
    assert not decoded[:, :10].any()
    assert decoded[:, 20].all()


def test_padding_may_be_a_range_from_zero():
    padded = 50 + STEPS.astype(np.uint16) // 2
    padded[:, :10], padded[:, -10:] = 0, 20
    dataset = radiograph(padded.astype(np.uint8), PhotometricInterpretation="MONOCHROME1")
    dataset.add_new("PixelPaddingValue", "US", 20)
    dataset.add_new("PixelPaddingRangeLimit", "US", 0)
    decoded = decode(to_bytes(dataset), SIDE)
    assert not decoded[:, :10].any()
    assert not decoded[:, -10:].any()
    assert decoded[:, 15:-15].all()


def test_bits_above_those_of_the_pixels_are_ignored():
    with_overlay = scaled(12) | (np.arange(SIDE, dtype=np.uint16) % 2 << 13)
    assert difference(to_bytes(radiograph(with_overlay, 12)), RAMP) <= 1


@pytest.mark.parametrize("what", REJECTED)
def test_rejected_files(what):
    data, reason = REJECTED[what]
    with pytest.raises(UnreadableImageError, match=reason):
        decode(data, SIDE)


def test_frontal_views_of_any_name_are_decoded():
    for view in ("PA", "AP", "ANTERIOR", "", "LLD"):
        assert difference(to_bytes(radiograph(RAMP, ViewPosition=view)), RAMP) == 0


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        *[("LL", True), ("RL", True), ("LAT", True), ("LLAT", True), ("lateral", True)],
        *[("LATERAL_L", True), ("left lateral", True), ("XR CHEST LAT", True)],
        *[("", False), ("PA", False), ("LLD", False), ("LPO", False), ("bilateral", False)],
        *[("left lateral decubitus", False), ("LATIN", False), ("medio-lateral", True)],
    ],
)
def test_lateral_views(view, expected):
    assert is_lateral(view) == expected


def test_files_of_pydicom_in_all_syntaxes_are_the_same():
    names = ("", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless")
    decoded = [decode((PYDICOM_FILES / f"MR_small{name}.dcm").read_bytes(), SIDE) for name in names]
    assert decoded[0].std() > 20
    assert all(np.array_equal(decoded[0], other) for other in decoded)


def test_all_other_files_of_pydicom_are_decoded_or_rejected():
    accepted = set()
    for file in sorted(path for path in PYDICOM_FILES.rglob("*.dcm") if path.is_file()):
        with suppress(UnreadableImageError):
            decode(file.read_bytes(), SIDE)
            accepted.add(file.name)
    assert {"693_J2KI.dcm", "JPEGLSNearLossless_08.dcm"} < accepted
    assert not [name for name in accepted if "rgb" in name or "truncated" in name]


def test_a_reason_never_quotes_the_file():
    secret = "MEIER^ANNA"
    for name in ("WindowWidth", "Rows", "BitsStored", "PixelRepresentation"):
        element = radiograph(RAMP, WindowCenter=1, WindowWidth=1)
        tag = element[name].tag
        data = to_bytes(element)
        place = data.index(tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little"))
        value = secret.encode()
        length = len(value).to_bytes(2, "little")
        broken = data[: place + 4] + b"LO" + length + value + data[place + 10 :]
        with pytest.raises(UnreadableImageError) as caught:
            decode(broken, SIDE)
        assert secret not in str(caught.value)
        assert "MEIER" not in str(caught.value)
