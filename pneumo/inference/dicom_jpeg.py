"""Decoder of the JPEG frames of DICOM files, as a plugin of pydicom.

Pillow does not decode lossless JPEG or 12 bits. Of pydicom's other plugins, one writes to standard
error, and one has a license that spreads to the programs that use it.
"""

import imagecodecs
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

PLUGIN = "imagecodecs"
SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)

# Of the structure of JPEG and JPEG-LS: a marker begins with this byte. Those of a frame follow with
# length, precision, height, width and number of channels
MARKER, HEADER_LENGTH = 0xFF, 10
FRAME_MARKERS = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), 0xF7)

DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("imagecodecs",))  # which pydicom requires


def is_available(uid: str) -> bool:
    """Return whether the plugin decodes a transfer syntax."""
    return uid in SYNTAXES


def decode_frame(data: bytes, runner: DecodeRunner) -> bytes:
    """Return the pixels of a gray frame, in the byte order that pydicom expects."""
    pixels = imagecodecs.jpeg_decode(data)
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    return pixels.tobytes()


def require_size(dataset: Dataset) -> None:
    """Require that a frame has one channel, and the size that its file says.

    Raises:
        ValueError: It has another size or more channels, or is no JPEG.
    """
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    position = 2  # after the mark of the start
    while position + HEADER_LENGTH <= len(frame) and frame[position] == MARKER:
        if frame[position + 1] in FRAME_MARKERS:
            header = frame[position + 5 : position + HEADER_LENGTH]
            size = int.from_bytes(header[:2], "big"), int.from_bytes(header[2:4], "big")
            if (*size, header[4]) == (dataset.Rows, dataset.Columns, 1):
                return
            break
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise ValueError("the frame has another size than the file says")


def register() -> None:
    """Make the plugin known to pydicom, once in a process."""
    for syntax in SYNTAXES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))
