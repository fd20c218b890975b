"""DICOM files: the gray pixels of a radiograph, as a viewer shows them.

A reason for a rejected file never quotes the file, because any of its values may be personal.
"""

import io
import logging
from typing import NoReturn

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pneumo.inference.dicom_jpeg import PLUGIN, SYNTAXES, register, require_size
from pneumo.inference.untrusted import (
    LATERAL_REASON,
    UnreadableImageError,
    hide_warnings,
    is_lateral,
)

# pydicom also logs what it warns of, in words of the file
logging.getLogger("pydicom").propagate = False
register()

META_START = 132  # bytes, after the preamble and the mark

# Transfer syntax → the library that decodes it, always the same one, or '' for raw pixels. Deflated
# files are not among them: they could expand to a thousand times their size
DECODERS = {
    ImplicitVRLittleEndian: "",
    ExplicitVRLittleEndian: "",
    ExplicitVRBigEndian: "",
    RLELossless: "pydicom",
    **dict.fromkeys(SYNTAXES, PLUGIN),
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pillow",
    JPEG2000: "pillow",
}

MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # as Pillow permits for other formats
BITS = range(8, 17)  # of a pixel
JPEG_SYNTAXES = (*SYNTAXES, JPEGLSLossless, JPEGLSNearLossless)

# Fraction of the range of values that the pixels of an image without a window must cover
MIN_RANGE_USED = 1 / 8

FURTHEST = 1e12  # further than any value from any window


def read_header(data: bytes) -> Dataset:
    """Read all attributes of a file but its pixels.

    Raises:
        UnreadableImageError: The file is broken, or its transfer syntax is not supported.
    """
    return _read(data, stop_before_pixels=True)


def view_of(header: Dataset) -> str:
    """Return the view of a radiograph, such as PA, as the file names it, or '' if it does not."""
    codes = header.get("ViewCodeSequence") or [Dataset()]
    return str(header.get("ViewPosition") or codes[0].get("CodeMeaning") or "").strip()


def open_dicom(data: bytes) -> Image.Image:
    """Decode a file to gray values of 8 bits.

    The modality LUT or rescaling, then the first VOI LUT or window, are applied, and `MONOCHROME1`
    is inverted, so that 0 is black. Padding is black.

    Raises:
        UnreadableImageError: The file is broken, or is not one gray image of a frontal view.
    """
    dataset = _read(data)
    try:
        _check_supported(dataset)
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax in JPEG_SYNTAXES:
            require_size(dataset)  # before a decoder allocates what the frame says
        decoder = DECODERS[syntax]
        stored = pixel_array(dataset, decoding_plugin=decoder)
        table = _gray_table(dataset, stored)
        if first := _range_of(dataset)[0]:
            stored = stored.astype(np.int32) - first
        return Image.fromarray(table.take(stored))
    except UnreadableImageError:
        raise
    except Exception as error:  # untrusted files make a parser raise nearly anything
        _raise_broken(error)


def _read(data: bytes, **options: bool) -> Dataset:
    hide_warnings("pydicom")
    try:
        syntax = _transfer_syntax(data)
        if syntax in DECODERS:
            return pydicom.dcmread(io.BytesIO(data), **options)
    except Exception as error:
        _raise_broken(error)
    known = syntax.is_transfer_syntax and not syntax.is_private
    raise UnreadableImageError(
        f"DICOM in the unsupported transfer syntax {syntax.name if known else 'of a vendor'}; "
        "convert it with gdcmconv --raw"
    )


def _transfer_syntax(data: bytes) -> UID:
    """Read the transfer syntax from the file's meta information, and nothing after that."""
    file = io.BytesIO(data)
    file.seek(META_START)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    return UID(meta.TransferSyntaxUID)


def _raise_broken(error: Exception) -> NoReturn:
    raise UnreadableImageError(f"broken DICOM file ({type(error).__name__})") from error


def _check_supported(dataset: Dataset) -> None:
    """Raise `UnreadableImageError` if the attributes are not those of one gray frontal image."""
    if "PixelData" not in dataset:
        raise UnreadableImageError("DICOM file without pixels")
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableImageError("DICOM image in color; radiographs are MONOCHROME1 or 2")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        raise UnreadableImageError(
            f"DICOM file of {frames} frames; save the right one as a file of its own"
        )
    if dataset.BitsAllocated not in (8, 16) or dataset.BitsStored not in BITS:
        raise UnreadableImageError(
            f"DICOM image of {int(dataset.BitsStored)} bits per pixel; 8 to 16 are supported"
        )
    if dataset.HighBit != dataset.BitsStored - 1:
        raise UnreadableImageError("DICOM image whose bits are not the lowest ones of each pixel")
    if is_lateral(view_of(dataset)):
        raise UnreadableImageError(LATERAL_REASON)
    if dataset.Rows * dataset.Columns > MAX_PIXELS:
        raise UnreadableImageError("too many pixels for a radiograph; scale the image down")


def _range_of(dataset: Dataset) -> tuple[int, int]:
    """Return the least and the greatest value that a pixel can have."""
    count = 2**dataset.BitsStored
    return (-count // 2, count // 2 - 1) if dataset.PixelRepresentation else (0, count - 1)


def _gray_table(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Return the gray value of each value that a pixel can have: uint8, from the least value.

    A table is much faster than the same arithmetic for each pixel.

    Raises:
        UnreadableImageError: It is not known which values are black and white.
    """
    first, last = _range_of(dataset)
    with np.errstate(all="ignore"):
        values = apply_modality_lut(np.arange(first, last + 1), dataset)
        shares = _shares_of_white(dataset, values)
    ends = int(stored.min()) - first, int(stored.max()) - first
    used = abs(float(shares[ends[1]] - shares[ends[0]]))
    if not np.isfinite(shares).all() or (ends[0] != ends[1] and used == 0):
        raise UnreadableImageError("DICOM image with a window or rescaling that shows nothing")
    if not _has_window(dataset) and dataset.BitsStored > 8 and used < MIN_RANGE_USED:
        raise UnreadableImageError(
            "DICOM without a window uses few of its values, so white is unknown; add WindowCenter "
            "and WindowWidth"
        )
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shares = 1 - shares
    table = np.round(255 * shares).astype(np.uint8)
    _blacken_padding(dataset, table)
    return table


def _has_window(dataset: Dataset) -> bool:
    return bool(dataset.get("VOILUTSequence")) or (
        dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None
    )


def _shares_of_white(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Return the brightness from 0 to 1 of values after the modality LUT, before any inversion."""
    if not _has_window(dataset):
        low, high = float(values.min()), float(values.max())
        return (values - low) / (high - low)
    if dataset.get("VOILUTSequence"):
        _, first, bits = map(int, dataset.VOILUTSequence[0].LUTDescriptor)
        if values.max() - first >= (2**8 if bits == 8 else 2**16):
            # pydicom counts the entries in a type of 8 or 16 bits, so it would begin again at 0
            raise UnreadableImageError(
                f"DICOM image whose values exceed its VOI LUT of {bits} bits; replace the LUT by "
                "WindowCenter and WindowWidth"
            )
        low, high = 0, 2**bits - 1
    else:
        low, high = apply_voi_lut(np.array([-FURTHEST, FURTHEST]), dataset)
    return (apply_voi_lut(values, dataset) - low) / (high - low)


def _blacken_padding(dataset: Dataset, table: np.ndarray) -> None:
    """Make the values black that mark pixels outside of the image."""
    padding = dataset.get("PixelPaddingValue")
    if padding is None:
        return
    first, limit = _range_of(dataset)[0], dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(padding), int(padding if limit is None else limit)))
    table[max(low - first, 0) : max(high - first + 1, 0)] = 0
