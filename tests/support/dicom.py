"""DICOM files that tests write."""

import io
import tempfile
from pathlib import Path

import gdcm
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

# What gdcm calls the syntaxes to which it converts
GDCM_SYNTAXES = {
    JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
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
    uid = LOSSLESS[syntax]
    if uid in GDCM_SYNTAXES:
        return _converted_by_gdcm(to_bytes(dataset), GDCM_SYNTAXES[uid])
    if uid == RLELossless:
        dataset.compress(uid)
    dataset.file_meta.TransferSyntaxUID = uid
    return to_bytes(dataset)


def _converted_by_gdcm(data: bytes, syntax: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("from", "to")]
        Path(paths[0]).write_bytes(data)
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(paths[0])
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(paths[1])
        assert writer.Write()
        return Path(paths[1]).read_bytes()


def with_jpeg(pixels: np.ndarray, **attributes) -> bytes:
    """Return the file of a radiograph whose pixels, uint8, are compressed as ordinary JPEG."""
    dataset = radiograph(pixels, **attributes)
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "JPEG", quality=90)
    dataset.PixelData = encapsulate([image.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return to_bytes(dataset)
