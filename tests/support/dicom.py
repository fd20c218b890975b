"""DICOM files that tests write."""

import io

import imagecodecs
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

# Name of a transfer syntax that loses nothing → its UID
LOSSLESS = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG-LS": JPEGLSLossless,
    "lossless JPEG": JPEGLosslessSV1,
    "JPEG 2000": JPEG2000Lossless,
}


def radiograph(pixels: np.ndarray, bits: int = 8, **attributes) -> Dataset:
    """Make an uncompressed radiograph.

    Args:
        pixels: Stored values: uint8 or uint16, shape (rows, columns).
        bits: Bits of a value.
        **attributes: Further attributes by keyword, or others of those below.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def compressed(dataset: Dataset, syntax: str) -> bytes:
    """Return the file of a radiograph in another transfer syntax, one of `LOSSLESS`."""
    uid, pixels = LOSSLESS[syntax], dataset.pixel_array
    if uid in (RLELossless, JPEGLSLossless):
        dataset.compress(uid)
    elif uid == JPEGLosslessSV1:
        # The encoder takes as many bits as the type has, unless it is told
        bits = dataset.BitsStored
        frame = imagecodecs.jpeg_encode(pixels, lossless=True, bitspersample=bits)
        encapsulate_frame(dataset, frame)
    elif uid == JPEG2000Lossless:
        bits = dataset.BitsStored
        frame = imagecodecs.jpeg2k_encode(
            pixels, codecformat="j2k", reversible=True, bitspersample=bits
        )
        encapsulate_frame(dataset, frame)
    dataset.file_meta.TransferSyntaxUID = uid
    return to_bytes(dataset)


def encapsulate_frame(dataset: Dataset, frame: bytes) -> None:
    """Make a frame, as a coder returns it, the pixels of a radiograph."""
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset["PixelData"].is_undefined_length = True


def with_jpeg(pixels: np.ndarray, **attributes) -> bytes:
    """Return the file of a radiograph whose pixels, uint8, are compressed as ordinary JPEG."""
    dataset = radiograph(pixels, **attributes)
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "JPEG", quality=90)
    encapsulate_frame(dataset, image.getvalue())
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return to_bytes(dataset)
