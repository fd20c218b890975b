"""DICOM files that are rejected, with the reason."""

from importlib.resources import files

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLosslessSV1

from tests.support.dicom import compressed, encapsulate_frame, radiograph, to_bytes
from tests.support.images import RAMP

PYDICOM_FILES = files("pydicom") / "data" / "test_files"
SIDE = len(RAMP)
DEEP = RAMP.astype(np.uint16) << 4  # of 12 bits


def without(name: str) -> bytes:
    dataset = radiograph(RAMP)
    delattr(dataset, name)
    return to_bytes(dataset)


def lateral_by_code() -> bytes:
    code = Dataset()
    code.CodeMeaning = "left lateral"
    return to_bytes(radiograph(RAMP, ViewCodeSequence=Sequence([code])))


def jpeg_of(rows: int, columns: int, channels: int = 1, marker: int = 0xC3) -> bytes:
    """Return a file whose JPEG claims a size in its header, and has no pixels."""
    size = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    frame = b"\xff\xd8\xff" + bytes([marker]) + b"\0\x0b\x08" + size + bytes([channels, 1, 17, 0])
    dataset = radiograph(RAMP)
    encapsulate_frame(dataset, frame + b"\xff\xd9")
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    return to_bytes(dataset)


NO_WINDOW = "without a window uses few of its values, so white is unknown; add"
BROKEN = r"broken DICOM file \(ValueError\)"

RAW = to_bytes(radiograph(RAMP))
LOSSLESS_JPEG = compressed(radiograph(DEEP, 12), "lossless JPEG")
DEFLATED = (PYDICOM_FILES / "image_dfl.dcm").read_bytes()

REJECTED = {
    "no pixels": (without("PixelData"), "DICOM file without pixels"),
    "no size": (without("Rows"), r"broken DICOM file \(AttributeError\)"),
    "mark alone": (bytes(128) + b"DICM", "broken DICOM file"),
    "mark and zeros": (bytes(128) + b"DICM" + bytes(400), "broken DICOM file"),
    "truncated pixels": (RAW[:-1000], "broken DICOM file"),
    "truncated attributes": (RAW[:400], "DICOM file without pixels|broken DICOM file"),
    "truncated lossless JPEG": (LOSSLESS_JPEG[:-900], "DICOM file without pixels|broken"),
    "color": (
        to_bytes(radiograph(RAMP, PhotometricInterpretation="RGB", SamplesPerPixel=3)),
        "DICOM image in color; radiographs are MONOCHROME1 or 2",
    ),
    "two frames": (
        to_bytes(radiograph(RAMP, NumberOfFrames=2, PixelData=2 * RAMP.tobytes())),
        "DICOM file of 2 frames; save the right one as a file of its own",
    ),
    "32 bits": (
        to_bytes(radiograph(RAMP.astype(np.uint32), 32)),
        "DICOM image of 32 bits per pixel; 8 to 16 are supported",
    ),
    "huge declared size": (
        to_bytes(radiograph(RAMP, Rows=60_000, Columns=60_000)),
        "too many pixels for a radiograph",
    ),
    "size that is not that of the pixels": (
        to_bytes(radiograph(RAMP, Rows=SIDE + 1)),
        "broken DICOM file",
    ),
    "tiny": (to_bytes(radiograph(RAMP[:4])), f"{SIDE} × 4 pixels, too few for a radiograph"),
    "no window, and nearly black": (to_bytes(radiograph(RAMP.astype(np.uint16), 12)), NO_WINDOW),
    "no window, and nearly gray": (to_bytes(radiograph(RAMP.astype(np.int16), 16)), NO_WINDOW),
    "no window, and nearly white": (
        to_bytes(radiograph(65_535 - RAMP.astype(np.uint16), 16)),
        NO_WINDOW,
    ),
    "slope of zero": (
        to_bytes(radiograph(RAMP, RescaleSlope=0, RescaleIntercept=0)),
        "a window or rescaling that shows nothing",
    ),
    "endless slope": (
        to_bytes(
            radiograph(RAMP, RescaleSlope=1e308, RescaleIntercept=0, WindowCenter=9, WindowWidth=9)
        ),
        "a window or rescaling that shows nothing",
    ),
    "window far from all values": (
        to_bytes(radiograph(RAMP, WindowCenter=-900, WindowWidth=9)),
        "a window or rescaling that shows nothing",
    ),
    "bits that are not the lowest": (
        to_bytes(radiograph(DEEP, 12, HighBit=15)),
        "bits are not the lowest ones of each pixel",
    ),
    "JPEG that is larger than declared": (jpeg_of(20_000, 20_000), BROKEN),
    "JPEG in color": (jpeg_of(SIDE, SIDE, channels=3), BROKEN),
    "JPEG without a frame": (jpeg_of(SIDE, SIDE, marker=0xFE), BROKEN),
    "window without width": (
        to_bytes(radiograph(RAMP, WindowCenter=9, WindowWidth=0)),
        r"broken DICOM file \(ValueError\)",
    ),
    "lateral view": (
        to_bytes(radiograph(RAMP, ViewPosition="LL")),
        "lateral view; only frontal views are supported",
    ),
    "lateral view by its code": (lateral_by_code(), "lateral view; only frontal"),
    "deflated": (DEFLATED, "the unsupported transfer syntax Deflated .*; convert it"),
    "unknown transfer syntax": (
        RAW.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"),
        "the unsupported transfer syntax of a vendor; convert it",
    ),
}

LATERAL = ("lateral view", "lateral view by its code")  # left out wherever they are

READABLE = {
    "DICOM": RAW,
    "DICOM of 12 bits as lossless JPEG": LOSSLESS_JPEG,
    "DICOM without a suffix of its own": compressed(radiograph(RAMP), "RLE"),
}
