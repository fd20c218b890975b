"""An image file to grey pixels: one decoder for the cache, for `predict` and for a served model."""

import io
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

DECODER_VERSION = (
    3  # raised with every change of what `decode` returns: old caches are then not used
)

# Pillow knows more, such as EPS, which it has another program run for it
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

MIN_SIDE = 8  # pixels of a side, below which nothing can be seen

MIN_BITS_USED = 14  # of 16 that are used: detectors give 10 to 12, which would be all but black

PIL_WARNING_FILTER = (
    "ignore",
    None,
    Warning,
    re.compile(r"PIL\."),
    0,
)  # as `warnings.filters` has it


class UnreadableImageError(ValueError):
    """A file that is no image, or a broken one; the message says why."""


def decode(data: bytes, size: int, resize: str = "squash") -> np.ndarray:
    """An image file's bytes as grey pixels: uint8, shape (size, size), 0 black to 255 white.

    `resize`: `squash` fills the square, whatever the image's aspect ratio; `pad` keeps the ratio,
    the image in the middle of black. Raises `UnreadableImageError`.
    """
    try:
        image = open_image(io.BytesIO(data))
        _check_supported(image)
        if image.format == "PNG":  # whose checksums Pillow else passes over
            open_image(io.BytesIO(data)).verify()
        image.draft("L", (size, size))  # JPEG only: decodes fewer pixels, and grey at once
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits at 255
            image = Image.fromarray(_to_8_bit(np.asarray(image)))
        to_square = ImageOps.pad if resize == "pad" else Image.Image.resize
        return np.asarray(to_square(image.convert("L"), (size, size), Image.Resampling.BILINEAR))
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(_unidentified_reason(data)) from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(
            "it has more pixels than any radiograph; scale it down"
        ) from None
    except Exception as error:  # a parser fed with strangers' files raises nearly anything
        raise UnreadableImageError(str(error) or type(error).__name__) from error


def open_image(file: Path | BinaryIO) -> Image.Image:
    """An image whose pixels are not decoded yet.

    From then on Pillow's warnings are not shown: what they are about is read nevertheless, or
    refused with its reason.
    """
    if PIL_WARNING_FILTER not in warnings.filters:  # `warnings.catch_warnings` is not for threads
        warnings.filterwarnings("ignore", module=PIL_WARNING_FILTER[3].pattern)
    return Image.open(file, formats=FORMATS)


def _check_supported(image: Image.Image) -> None:
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise UnreadableImageError(f"{width} × {height} pixels, too few for a radiograph")
    if image.mode in ("I", "F"):  # which Pillow would clip at 255
        raise UnreadableImageError(
            "32 bits a pixel, whose white is not known; save it with 8 or 16"
        )
    if image.format == "TIFF" and image.info.get("compression") != "raw":
        # Pillow gives it to a library that writes to standard error what it thinks of it
        raise UnreadableImageError("a compressed TIFF; save it uncompressed, or as PNG")


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """16 bits as 8. Raises `UnreadableImageError` where white is not at their end."""
    bits = int(pixels.max()).bit_length()
    if bits < MIN_BITS_USED:
        raise UnreadableImageError(
            f"16 bits a pixel of which {bits} are used, and white is not known; "
            "stretch the values to 0 to 65535, or save it with 8 bits"
        )
    return (pixels >> 8).astype(np.uint8)


def _unidentified_reason(data: bytes) -> str:
    what = "no image format that can be read"
    if not data:
        return f"{what}: the file is empty"
    if data[128:132] == b"DICM":
        return f"{what}: DICOM; convert it to PNG, with dcmj2pnm --write-png or with pydicom"
    return what
