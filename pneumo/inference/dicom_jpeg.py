"""Decoder of the JPEG frames of DICOM files, as a plugin of pydicom.

Pillow does not decode lossless JPEG or 12 bits. Of pydicom's other plugins, one writes to standard
error, and one has a license that spreads to the programs that use it.
"""

import imagecodecs
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

PLUGIN = "imagecodecs"
SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)

DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("imagecodecs",))  # which pydicom requires


def is_available(uid: str) -> bool:
    """Return whether the plugin decodes a transfer syntax."""
    return uid in SYNTAXES


def decode_frame(data: bytes, runner: DecodeRunner) -> bytes:
    """Return the pixels of a gray frame, in the byte order that pydicom expects.

    Raises:
        ValueError: The frame has another size than the file says.
    """
    pixels = imagecodecs.jpeg_decode(data)
    if pixels.shape != (runner.rows, runner.columns):
        raise ValueError("the frame has another size than the file says")
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    return pixels.tobytes()


def register() -> None:
    """Make the plugin known to pydicom, once in a process."""
    for syntax in SYNTAXES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))
